"""Reconcile: compare files, rows, ledgers and indexes, and report what does not agree.

Safe while images come in: whatever looks wrong without a lock is checked again under one before it becomes a finding.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from sqlalchemy.orm import Session

from shared.encoder import cards
from shared.errors import Invalid, NotFound
from shared.index.base import IndexStore
from shared.pipeline import arrive, canary, erase, points
from shared.pipeline.receive import Inspector, Rules
from shared.pipeline.replay import measure_again
from shared.store import checks, erasure, files, generations, images, operations
from shared.store.blobs import Blobs
from shared.store.checks import Registered
from shared.store.files import Seen
from shared.store.locks import Lock, alone
from shared.store.session import Begin, enqueue
from shared.types import Job, OperationKind

SHOWN = 20  #: ids that a finding names
NAMED = 16  #: leading digits of a file's digest, by which a finding names it
FILES = 2000  #: rows of files, or of images, read by one query


@dataclass(kw_only=True)
class Finding:
    """One kind of mismatch: the first twenty ids of images, points, files, operations, generations or models.

    A file without a row is named by the beginning of its name in the store, the digest of its content.
    """

    kind: str
    count: int
    ids: list[int | str]
    repaired: bool = False


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is compared.

    Args:
        models: the folder of the model cards.
        blobs: the files that were sent to us.
        rules: of intake, for files that have to be decided on once more.
        digest: computes the digest of a file, as intake does.
    """

    begin: Begin
    indexes: IndexStore
    models: Path
    blobs: Blobs
    inspector: Inspector
    rules: Rules
    digest: Callable[[Path], bytes] = field(default=lambda path: blake3().update_mmap(path).digest())


def examine(
    site: Site, *, repair: bool = False, deep: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Return everything that does not agree, by kind; `repair` mends it or makes it due, where that is possible.

    `deep` reads every file and every vector. What a repair made due is no finding any more: workers do it.

    Raises: `Unavailable` if the database or the index is unavailable.
    """
    found: list[Finding] = []
    for name, look in _LOOKS:
        say(name)
        found += [one for one in look(site, repair, deep) if one.count]
    return found


def _named(kind: str, ids: Sequence[int | str], *, repaired: bool) -> Finding:
    return Finding(kind=kind, count=len(ids), ids=list(ids[:SHOWN]), repaired=repaired)


def _generations(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:  # noqa: ARG001
    """Check that the pointer names an open generation with enough recall, and that generations own all collections."""
    with site.begin() as db:
        alone(db, Lock.GENERATIONS)
        row, opened = generations.live(db, lock=True), generations.opened(db)
        if row is not None and generations.get(db, row.generation_id).state == "retired":
            mended = repair and _reopen(db, row.generation_id)
            yield _named("pointer-retired", [row.generation_id], repaired=mended)
        if row is None and opened:
            if repair:
                generations.publish(db, opened[-1].generation_id)
            yield _named("pointer-missing", [opened[-1].generation_id], repaired=repair)
    with site.begin() as db:
        row = generations.live(db)
        low = row is not None and canary.failing(generations.get(db, row.generation_id))
    yield _named("recall-low", [row.generation_id] if row is not None and low else [], repaired=False)
    if _stray(site):
        with site.begin() as db:
            alone(db, Lock.CREATING)  # a collection is created before its generation's row
            stray = _stray(site)
            for name in stray if repair else ():
                site.indexes.drop(name)
        yield _named("collection-stray", stray, repaired=repair)


def _reopen(db: Session, number: int) -> bool:
    """Open the retired, published generation again, to be filled with what came meanwhile; False if it was purged."""
    found = generations.get(db, number)
    if found.purged_at is not None:
        return False
    found.state, found.retired_at = "open", None
    found.filled_to, found.filled_at = 0, None
    found.operation_id = operations.create(db, OperationKind.REINDEX, {"repair": number}).id
    enqueue(db, Job.REINDEX)
    enqueue(db, Job.PROJECT)
    return True


def _stray(site: Site) -> list[str]:
    """Collections that no generation has, or whose generation was purged."""
    names = site.indexes.names()
    with site.begin() as db:
        known = {one.collection for one in generations.every(db) if one.purged_at is None}
    return [name for name in names if name not in known]


def _models(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:
    """Check that the folder and the row of each model with an open generation hold its own card."""
    wrong, mended = [], 0
    with site.begin() as db:
        served = {one.model_id for one in generations.opened(db)}
        for model in generations.models(db):
            if model.id not in served:
                continue
            if _fingerprint(site.models / model.folder, deep) == model.fingerprint == model.card.get("fingerprint"):
                continue
            wrong.append(model.id)
            folders = (f for f in cards.folders(site.models) if _fingerprint(f, True) == model.fingerprint)
            if repair and (home := next(folders, None)) is not None:
                model.folder, model.card = home.name, cards.read(home).to_json()
                mended += 1
    yield _named("model-changed", wrong, repaired=bool(wrong) and mended == len(wrong))


def _fingerprint(folder: Path, verify: bool) -> str | None:
    try:
        return cards.read(folder, verify=verify).fingerprint
    except (NotFound, Invalid):
        return None


def _rows(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:  # noqa: ARG001
    """Run the checks that need the rows alone; what they find is checked again, and mended, under the writers' lock."""
    for check in checks.IMAGES:
        with site.begin() as db:
            ids = check.found(db)
        if ids:
            with site.begin() as db:
                alone(db, Lock.GENERATIONS)
                ids = check.found(db)
                if repair and ids:
                    images.lock(db, ids)
                    check.mend(db, ids)
                if repair and check.kind == "calibration-foreign":
                    measure_again(db, ids)
            yield _named(check.kind, ids, repaired=repair)
    with site.begin() as db:
        stuck = checks.stuck(db)
        if repair:
            checks.release_leases(db, stuck)
    yield _named("operation-stuck", list(map(str, stuck)), repaired=repair)


def _tombstones(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:  # noqa: ARG001
    """Check that nothing erased has come back."""
    if not (ids := _risen(site)):
        return
    with site.begin() as db:
        alone(db, Lock.INTAKE)  # waits for an erasure under way
    ids = _risen(site)
    if repair and ids:
        with site.begin() as db:
            erase.replay(db, site.rules.secret)
    yield _named("tombstoned", ids, repaired=repair)


def _risen(site: Site) -> list[int]:
    after = 0
    risen: list[int] = []
    while True:
        with site.begin() as db:
            rows = erasure.known(db, after, FILES)
            found = erase.risen(db, site.rules.secret, rows or erasure.stopped(db))
        risen += [row.id for row in found]
        if not rows:
            return risen
        after = rows[-1].id


def _files(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:
    """Check that each image has its file, unchanged, and that each file that was taken in has its image."""
    wrong: dict[str, list[int]] = {"file-missing": [], "file-changed": [], "file-without-image": []}
    beyond: set[str] = set()  # a person has to put the bytes back
    after = 0
    while True:
        with site.begin() as db:
            rows = checks.files(db, after, FILES)
        if not rows:
            break
        after = rows[-1].id
        odd = {row: kind for row in rows if (kind := _odd(site, row, deep)) is not None}
        with site.begin() as db:  # a scan may have changed them meanwhile
            same = [row for row in checks.files(db, rows[0].id - 1, FILES) if row in odd]
            for kind, ids in wrong.items():
                found = [row for row in same if odd[row] == kind]
                ids += [row.image_id or row.id for row in found]
                if any(kind == "file-changed" and row.sent for row in found):
                    beyond.add(kind)
                if repair and found:
                    _look_again(db, kind, found)
    for kind, ids in wrong.items():
        yield _named(kind, sorted(ids), repaired=repair and kind not in beyond)


def _odd(site: Site, row: Registered, deep: bool) -> str | None:
    if row.image_id is None:
        return "file-without-image"
    path = Path(os.fsdecode(row.path))
    try:
        found = Seen.of(row.path, path.stat())
        untouched = (found.size, found.mtime_ns) == (row.size, row.mtime_ns)
        if not untouched and not row.sent:
            return "file-changed"
        return "file-changed" if (deep or not untouched) and site.digest(path) != row.digest else None
    except OSError:
        return "file-missing"


def _look_again(db: Session, kind: str, rows: Sequence[Registered]) -> None:
    """Make a scan read these files again. A missing file is marked; its image stays, and points to a copy if any."""
    ids = [row.id for row in rows]
    if kind != "file-missing":
        operations.retry_ended(db, files.reread(db, ids), OperationKind.SCAN)  # each with its label table
        enqueue(db, Job.SCAN)
        return
    images.lock(db, [row.image_id for row in rows if row.image_id is not None])  # before their files, as intake does
    files.mark_missing(db, ids)
    for row in rows:
        assert row.image_id is not None  # noqa: S101 - or it would be a file without an image
        copy = next((one for one in checks.copies(db, row.image_id) if os.path.isfile(one)), None)  # noqa: PTH113 - bytes
        if copy is not None:
            images.move(db, row.image_id, copy)


def _store(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:  # noqa: ARG001
    """Check that each sent file has its row; a file that was put aside is a finding only if it can be read."""
    found = arrive.strays(site.begin, site.inspector, site.blobs)
    if repair:
        arrive.recover(site.begin, site.inspector, site.blobs, site.rules, found)
    yield _named("blob-without-row", [path.stem[:NAMED] for path in found], repaired=repair)


def _points(site: Site, repair: bool, deep: bool) -> Iterator[Finding]:
    """Check that each open generation's index holds what its ledger says, and nothing else."""
    for kind, names in sorted(points.compare(site.begin, site.indexes, repair=repair, deep=deep).items()):
        yield _named(kind, names, repaired=repair)


_LOOKS = (
    ("generations", _generations),
    ("models", _models),
    ("tombstones", _tombstones),
    ("rows", _rows),
    ("files", _files),
    ("store", _store),
    ("indexes", _points),
)
