"""Project: write the pending rows of the ledger to the index, durably, and mark them applied."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from sqlalchemy.orm import Session

from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.imaging.pseudonym import patient_number
from shared.index.base import Damaged, Index, Payload, Point, Spec
from shared.log import get
from shared.pipeline import erase
from shared.store import encodings, generations, ledger, operations
from shared.store.generations import Published
from shared.store.ledger import Pending
from shared.store.locks import Lock, share
from shared.store.session import Begin

log = get(__name__)

STEP = 256
#: Pause between two small steps: rows that arrive meanwhile share one transaction and one wait for the disk.
GATHER_S = 0.5


def drain(
    begin: Begin, open_index: Callable[[str], Index], budget_s: float = 20.0, gather_s: float = GATHER_S
) -> tuple[int, bool]:
    """Apply the pending rows of every open generation; return how many, and whether some may be left.

    Raises: `Unavailable` if an index does not answer, after everything else was done.
    """
    until, done, left = time.monotonic() + budget_s, 0, True
    away: dict[int, Unavailable] = {}  # by generation: each is tried once
    while left and time.monotonic() < until:
        with begin() as db:
            opened = generations.opened(db)
        step = sum(_guarded(begin, open_index, one, away) for one in opened if one.generation_id not in away)
        done, left = done + step, step > 0
        if 0 < step < STEP and time.monotonic() < until:
            time.sleep(gather_s)
    with begin() as db:
        operations.finish_settled(db)
    erase.certify(begin, open_index)
    for error in away.values():
        raise error
    return done, left


def _guarded(
    begin: Begin, open_index: Callable[[str], Index], generation: Published, away: dict[int, Unavailable]
) -> int:
    """Apply one step of a generation; return how many rows.

    If its collection is gone, damaged, wrong or unavailable, its rows stay pending and the other generations go on.
    """
    try:
        return _step(begin, open_index, generation)
    except (NotFound, Conflict, Invalid, Damaged):
        log.exception("generation_not_served", generation_id=generation.generation_id)
    except Unavailable as error:
        away[generation.generation_id] = error
    return 0


def _step(begin: Begin, open_index: Callable[[str], Index], generation: Published) -> int:
    """Apply up to `STEP` rows of one generation; the row locks are held while the index is written."""
    with begin() as db:
        share(db, Lock.GENERATIONS)  # a publish finds nothing half applied
        rows = ledger.take(db, generation.generation_id, generation.model_id, STEP)
        if not rows:
            return 0
        index = open_index(generation.collection)
        gone = [row.point_id for row in rows if row.op == "delete" or row.embedding is None]
        if gone:
            index.delete(gone)
        upserts = [row for row in rows if row.op == "upsert" and row.embedding is not None]
        written = _write(db, index, generation, upserts)
        ledger.applied(db, generation.generation_id, [*gone, *(row.point_id for row in written)])
        return len(rows)


def _write(db: Session, index: Index, generation: Published, rows: Sequence[Pending]) -> Sequence[Pending]:
    """Write all rows at once, or one by one if one of them is refused; return those that were written."""
    try:
        index.write([to_point(row, index.spec) for row in rows])
    except Invalid:
        written = []
        for row in rows:
            try:
                index.write([to_point(row, index.spec)])
                written.append(row)
            except Invalid:
                log.warning("point_refused", generation_id=generation.generation_id, image_id=row.image_id)
                ledger.failed(db, generation.generation_id, row.point_id, "refused")
        return written
    return rows


def to_point(row: Pending, spec: Spec) -> Point:
    """Return the index's point: vector, opaque numbers and coded attributes; no UID and no name."""
    assert row.embedding is not None  # noqa: S101 - the caller passes only rows with one
    code = np.frombuffer(row.code, np.uint8) if spec.bits and row.code is not None else None
    return Point(id=row.point_id, vector=encodings.unpack(row.embedding), payload=payload(row), code=code)


def payload(row: Pending) -> Payload:
    assert row.patient_key is not None  # noqa: S101 - an image has a study
    fields: dict[str, int | str | None] = {
        "image": row.image_id,
        "study": row.study_id,
        "patient": patient_number(row.patient_key),
        "revision": row.revision,
        "modality": row.modality,
        "view": row.view,
        "laterality": row.laterality,
        "density": row.density,
        "birads": row.birads,
        "study_date": None if row.study_date is None else int(row.study_date.strftime("%Y%m%d")),
    }
    return {name: value for name, value in fields.items() if value is not None and value != ""}
