"""Tombstones outside the database: a backup that is older than an erasure must not bring back what was erased.

One file in the home, written anew and renamed into place whenever the tombstones change. It holds keyed hashes, as the
table does.
"""

import json
import os
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy.orm import Session

from shared.disk import exists, sync
from shared.errors import Invalid
from shared.log import get
from shared.pipeline import erase
from shared.store import operations, tombstones
from shared.store.tombstones import Kind
from shared.types import OperationKind

NAME = "tombstones"
BEFORE = "tombstones.before"
log = get(__name__)


class TombstoneFile:
    """Keeps the file in step with the table; while nothing changes, one query of two numbers tells so.

    If the file names erasures that the database does not know, the database is the older one: their lines are kept in
    `tombstones.before` beside the file, for `similis tombstones replay`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[object, ...] | None = None

    def update(self, db: Session) -> None:
        """Write the file, unless it holds every committed tombstone already."""
        seen = tombstones.standing(db)
        if seen == self._seen or (seen[0] == 0 and not exists(self._path)):
            return
        _keep_before(db, self._path)
        write(db, self._path)
        self._seen = seen


def _keep_before(db: Session, path: Path) -> None:
    """Add the lines whose erasure the database does not know to `tombstones.before`, durably.

    An erasure that the database knows but has no tombstone of was lifted.
    """
    named = [(line, _operation(line)) for line in _lines(path)]
    known = operations.known(db, {operation for _, operation in named if operation is not None})
    lines = [line for line, operation in named if operation not in known]
    if not lines:
        return
    before = path.with_name(BEFORE)
    _replace(before, list(dict.fromkeys([*_lines(before), *lines])))
    log.warning("tombstones_unknown_to_the_database", count=len(lines))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if exists(path) else []


def _operation(line: str) -> uuid.UUID | None:
    """Return the id of a line's erasure; None for a damaged line, which is kept."""
    try:
        return uuid.UUID(json.loads(line)["operation"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def write(db: Session, path: Path) -> int:
    """Write every tombstone to the file, durably; return how many."""
    stones = tombstones.every(db)
    lines = [
        json.dumps({"digest": one.digest.hex(), "kind": one.kind, "operation": str(one.operation_id)}) for one in stones
    ]
    _replace(path, lines)
    return len(stones)


def _replace(path: Path, lines: Sequence[str]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # two sweeps may write at once
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: each sweep would leave another file
        Path(name).unlink()
        raise
    Path(name).replace(path)
    sync(path.parent)


_WIDTH: Final[Mapping[Kind, int]] = {"image": 0, "study": 1, "patient": 2}


def replay(db: Session, path: Path, secret: bytes) -> int:
    """Add the tombstones of the file, and erase whatever tombstones name; return how many images were erased.

    Raises: `Invalid` if the file is damaged.
    """
    if exists(path):
        _add_tombstones(db, path)
    return erase.replay(db, secret)


def _add_tombstones(db: Session, path: Path) -> None:
    """Add the tombstones of the file, and a row for each erasure that the database lacks: a later lift needs it."""
    erasures: defaultdict[uuid.UUID, dict[bytes, Kind]] = defaultdict(dict)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            erasures[uuid.UUID(one["operation"])][bytes.fromhex(one["digest"])] = one["kind"]
        widest = {id_: max(names.values(), key=_WIDTH.__getitem__) for id_, names in erasures.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Invalid("the file of tombstones is damaged") from None
    for operation_id, names in erasures.items():
        operations.stand_for(db, operation_id, OperationKind.ERASE, {"of": widest[operation_id]})
        tombstones.add(db, names, operation_id)
