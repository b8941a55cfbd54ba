"""Tombstones outside the database: a backup that is older than an erasure must not bring back what was erased.

One file in the home, rewritten beside and renamed whenever they change. Keyed hashes, as in the table.
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

from shared.disk import sync
from shared.errors import Invalid
from shared.log import get
from shared.pipeline import erase
from shared.store import operations, tombstones
from shared.store.tombstones import Kind

NAME = "tombstones"
BEFORE = "tombstones.before"
log = get(__name__)


class TombstoneFile:
    """The file, kept in step with the table; two numbers are asked for unless something changed.

    A file that names more than the table is of a newer database than this one: what only it knows is kept in
    `tombstones.before` beside it, for `similis tombstones replay`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[object, ...] | None = None

    def update(self, db: Session) -> None:
        """The file names every tombstone that is committed."""
        seen = tombstones.standing(db)
        if seen == self._seen or (seen[0] == 0 and not self._path.exists()):
            return
        _keep_before(db, self._path)
        write(db, self._path)
        self._seen = seen


def _keep_before(db: Session, path: Path) -> None:
    """Lines of the file whose erasure the database does not know stand in the other one, durably, too.

    What it knows and has no tombstone of was lifted.
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
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _operation(line: str) -> uuid.UUID | None:
    """The erasure that a line is of; None for a damaged line, which is kept."""
    try:
        return uuid.UUID(json.loads(line)["operation"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def write(db: Session, path: Path) -> int:
    """The file holds every tombstone, durably; returns how many."""
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
    except OSError:  # a full disk, at every sweep once more
        Path(name).unlink()
        raise
    Path(name).replace(path)
    sync(path.parent)


_WIDTH: Final[Mapping[Kind, int]] = {"image": 0, "study": 1, "patient": 2}


def replay(db: Session, path: Path, secret: bytes) -> int:
    """What the file names has a tombstone here, too, and is erased where it stands; returns how many images were.

    Raises: `Invalid` for a file that is no such list.
    """
    if path.exists():
        _add_tombstones(db, path)
    return erase.replay(db, secret)


def _add_tombstones(db: Session, path: Path) -> None:
    """Each erasure of the file has a row, too, where the database has none: a later lift asks for it."""
    erasures: defaultdict[uuid.UUID, dict[bytes, Kind]] = defaultdict(dict)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            erasures[uuid.UUID(one["operation"])][bytes.fromhex(one["digest"])] = one["kind"]
        widest = {id_: max(names.values(), key=_WIDTH.__getitem__) for id_, names in erasures.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Invalid("the file of tombstones is damaged") from None
    for operation_id, names in erasures.items():
        operations.stand_for(db, operation_id, "erase", {"of": widest[operation_id]})
        tombstones.add(db, names, operation_id)
