"""Tombstones outside the database: a backup that is older than an erasure must not bring back what was erased.

One file in the home, rewritten beside and renamed whenever they change. Keyed hashes, as in the table.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.disk import sync
from shared.errors import Invalid
from shared.log import get
from shared.pipeline import erase
from shared.store import operations
from shared.store.tables import Tombstone

NAME = "tombstones"
BEFORE = "tombstones.before"
log = get(__name__)

_STAND = sa.text("SELECT count(*), max(created_at) FROM tombstone")


class Keeper:
    """Keeps the file in step with the table; asks for two numbers unless something changed.

    A file that names more than the table, when we begin, is of a newer database than this one: what only it knows is
    kept in `tombstones.before` beside it, for `similis tombstones replay`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[object, ...] | None = None

    def keep(self, db: Session) -> None:
        """The file names every tombstone that is committed."""
        seen = tuple(db.execute(_STAND).one())
        if seen == self._seen or (seen[0] == 0 and not self._path.exists()):
            return
        if self._seen is None:
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
    stones = db.scalars(sa.select(Tombstone).order_by(Tombstone.digest)).all()
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


_BURY = sa.text(
    "INSERT INTO tombstone (digest, kind, operation_id) SELECT u.digest, u.kind, u.operation "
    "FROM unnest(CAST(:digests AS bytea[]), CAST(:kinds AS text[]), CAST(:operations AS uuid[])) "
    "AS u(digest, kind, operation) ON CONFLICT DO NOTHING"
)
#: The erasure that buried them, where the database does not know it: a later lift asks for it.
_KNOWN = sa.text(
    "INSERT INTO operation (id, kind, params, state, finished_at) "
    "SELECT o, 'erase', jsonb_build_object('of', k), 'succeeded', clock_timestamp() "
    "FROM unnest(CAST(:operations AS uuid[]), CAST(:kinds AS text[])) AS u(o, k) ON CONFLICT DO NOTHING"
)
_WIDTH = {"image": 0, "study": 1, "patient": 2}


def replay(db: Session, path: Path, secret: bytes) -> int:
    """What the file names is buried in this database, and erased where it stands; returns how many images were.

    Raises: `Invalid` for a file that is no such list.
    """
    if path.exists():
        _bury(db, path)
    return erase.replay(db, secret)


def _bury(db: Session, path: Path) -> None:
    try:
        stones = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [(bytes.fromhex(one["digest"]), str(one["kind"]), str(one["operation"])) for one in stones]
        widest: dict[str, str] = {}
        for _, kind, operation in rows:
            widest[operation] = max(widest.get(operation, "image"), kind, key=_WIDTH.__getitem__)
    except (ValueError, KeyError, TypeError):
        raise Invalid("the file of tombstones is damaged") from None
    db.execute(_KNOWN, {"operations": list(widest), "kinds": list(widest.values())})
    columns = {
        "digests": [one[0] for one in rows],
        "kinds": [one[1] for one in rows],
        "operations": [one[2] for one in rows],
    }
    db.execute(_BURY, columns)
