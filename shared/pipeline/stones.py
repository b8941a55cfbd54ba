"""Tombstones outside the database: a backup that is older than an erasure must not bring back what was erased.

One file in the home, rewritten beside and renamed whenever they change. Keyed hashes, as in the table.
"""

import json
import os
import tempfile
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.disk import sync
from shared.errors import Invalid
from shared.log import get
from shared.pipeline import erase
from shared.store import tombstones
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
    """Lines of the file that the table does not know stand in the other one, durably, too."""
    named = {_digest(line): line for line in path.read_text(encoding="utf-8").splitlines()} if path.exists() else {}
    known = tombstones.buried(db, named)
    lines = [line for digest, line in named.items() if digest not in known]
    if not lines:
        return
    before = path.with_name(BEFORE)
    with os.fdopen(os.open(before, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    sync(before.parent)
    log.warning("tombstones_unknown_to_the_database", count=len(lines))


def _digest(line: str) -> bytes:
    """What a line names; nothing for a damaged one, which is kept."""
    try:
        return bytes.fromhex(json.loads(line)["digest"])
    except (ValueError, KeyError, TypeError):
        return line.encode()


def write(db: Session, path: Path) -> int:
    """The file holds every tombstone, durably; returns how many."""
    stones = db.scalars(sa.select(Tombstone).order_by(Tombstone.digest)).all()
    lines = [
        json.dumps({"digest": one.digest.hex(), "kind": one.kind, "operation": str(one.operation_id)}) for one in stones
    ]
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # two sweeps may write at once
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
    sync(path.parent)
    return len(stones)


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
