"""Catch-up: images that a model has yet to encode outside the normal path.

The row is the job, with its own lease and fence, like an image's; in addition, a result must belong to the revision
that was claimed. A row that failed for good is a named exception of the model's generations.

A worker that waits for rows has locked their images before, in the order of their ids; one that has not skips rows
that are locked. So settling an image, which deletes rows in several steps, never waits for them in a circle.
"""

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import LOST
from shared.store.images import ALONE, ORIGINAL, RELEASED, Claimed, Verdict
from shared.store.tables import FREE, INDEXABLE, WAITS
from shared.types import Status

#: SET clause that makes a row due again. A worker that holds the row keeps its lease.
AGAIN = "state = 'due', failures = 0, waited = 0, not_before = NULL, reason = NULL, last_error = NULL"

_FILL = sa.text(
    f"""
    INSERT INTO catch_up (model_id, image_id)
    SELECT :model, i.id FROM image i
    WHERE i.id = ANY(CAST(:images AS bigint[])) AND {INDEXABLE}
      AND (i.status = 'encoded'
           OR EXISTS (SELECT 1 FROM ledger l WHERE l.image_id = i.id AND l.op = 'upsert' AND l.applied_at IS NOT NULL))
      AND NOT EXISTS (SELECT 1 FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model)
      AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = i.id AND b.model_id = :model)
    ON CONFLICT DO NOTHING
    """
)
#: As `_FILL`, it waits for no row: whoever has locked one may wait for the generation that is filled.
_ANEW = sa.text(
    f"""
    UPDATE catch_up SET {AGAIN}
    WHERE model_id = :model AND image_id IN (
        SELECT image_id FROM catch_up WHERE model_id = :model AND image_id = ANY(CAST(:images AS bigint[]))
        FOR UPDATE SKIP LOCKED
    ) AND (SELECT count(*) FROM generation WHERE model_id = :model AND state = 'open') = 1
    """
)


def fill(db: Session, model_id: int, images: Sequence[int]) -> None:
    """Those of these images that searches find and that this model has not encoded are due.

    If the model has no other open generation, what its closed ones left is due as if it had never failed.
    """
    chosen = {"model": model_id, "images": list(images)}
    db.execute(_ANEW, chosen)
    db.execute(_FILL, chosen)


_ADD = sa.text(
    """
    INSERT INTO catch_up (model_id, image_id, state, reason)
    SELECT * FROM unnest(CAST(:models AS bigint[]), CAST(:images AS bigint[]), CAST(:states AS text[]),
                         CAST(:reasons AS text[]))
    ON CONFLICT (model_id, image_id) DO UPDATE SET state = excluded.state, reason = excluded.reason,
        attempt = catch_up.attempt + 1, failures = 0, waited = 0, lease_until = NULL,
        not_before = NULL
    """
)


def add(db: Session, due: Iterable[tuple[int, int]], failed: Iterable[tuple[int, int, str]] = ()) -> None:
    """Each (model, image) is due, each (model, image, reason) an exception. Claims on these rows are lost."""
    rows = [(m, i, "due", None) for m, i in due] + [(m, i, "failed", reason) for m, i, reason in failed]
    if rows:
        models, images, states, reasons = zip(*rows, strict=True)
        db.execute(
            _ADD, {"models": list(models), "images": list(images), "states": list(states), "reasons": list(reasons)}
        )


def drop(db: Session, images: Sequence[int], models: Sequence[int]) -> None:
    """Delete the catch-up rows of these images for these models."""
    db.execute(
        sa.text(
            "DELETE FROM catch_up WHERE image_id = ANY(CAST(:images AS bigint[])) "
            "AND model_id = ANY(CAST(:models AS bigint[]))"
        ),
        {"images": list(images), "models": list(models)},
    )


_KEEP = sa.text("SELECT id FROM image WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR SHARE")
_LOCK = sa.text(
    "SELECT image_id FROM catch_up WHERE model_id = :model AND image_id = ANY(CAST(:ids AS bigint[])) "
    "ORDER BY image_id FOR NO KEY UPDATE"
)


def _lock(db: Session, model_id: int, images: Sequence[int]) -> None:
    """Lock the images, which are not erased, replaced or judged meanwhile, and then the rows, each in one order."""
    values = {"model": model_id, "ids": list(images)}
    db.execute(_KEEP, values)
    db.execute(_LOCK, values)


#: Deletes catch-up rows before the images are encoded, and with them the outdated encodings, which only they mark.
_WITHDRAW = """
    WITH dropped AS (
        DELETE FROM catch_up WHERE {rows} RETURNING model_id, image_id
    ), outdated AS (
        DELETE FROM encoding e USING dropped d WHERE e.model_id = d.model_id AND e.image_id = d.image_id
    )
    SELECT count(*) FROM dropped
"""
_WITHDRAW_IMAGES = sa.text(_WITHDRAW.format(rows="image_id = ANY(CAST(:images AS bigint[]))"))
_NEXT = sa.text("SELECT image_id FROM catch_up WHERE model_id = :model ORDER BY image_id LIMIT :limit")
_OF_CLOSED = """
    model_id = :model AND image_id = ANY(CAST(:ids AS bigint[]))
    AND NOT EXISTS (SELECT 1 FROM generation WHERE model_id = :model AND state = 'open')
"""
_DROP_NEXT = sa.text(_WITHDRAW.format(rows=_OF_CLOSED))
_CLOSED = sa.text(
    """
    SELECT m.id FROM model m WHERE EXISTS (SELECT 1 FROM catch_up WHERE model_id = m.id)
      AND NOT EXISTS (SELECT 1 FROM generation WHERE model_id = m.id AND state = 'open') ORDER BY m.id
    """
)


def withdraw(db: Session, images: Sequence[int]) -> None:
    """Delete the catch-up rows of these images, and the encodings of earlier bytes that the rows stood for."""
    db.execute(_WITHDRAW_IMAGES, {"images": list(images)})


def closed(db: Session) -> list[int]:
    """Return the models that have catch-up rows but no open generation."""
    return list(db.execute(_CLOSED).scalars())


def drop_next(db: Session, model_id: int, limit: int) -> int:
    """If the model has no open generation, delete the next catch-up rows; return how many.

    Its outdated encodings of those images are deleted, too.
    """
    ids = list(db.execute(_NEXT, {"model": model_id, "limit": limit}).scalars())
    _lock(db, model_id, ids)
    found: int = db.execute(_DROP_NEXT, {"model": model_id, "ids": ids}).scalar_one()
    return found


def retry(db: Session, model_id: int) -> None:
    """All catch-up rows of this model are due again, exceptions included. Rows that are being written come after."""
    free = "SELECT image_id FROM catch_up WHERE model_id = :model FOR UPDATE SKIP LOCKED"
    db.execute(
        sa.text(f"UPDATE catch_up SET {AGAIN} WHERE model_id = :model AND image_id IN ({free})"),
        {"model": model_id},
    )


def found_again(db: Session, image_ids: Sequence[int]) -> None:
    """The catch-up rows of these images that failed because their bytes were missing are due again."""
    db.execute(
        sa.text(
            f"UPDATE catch_up SET {AGAIN} WHERE image_id = ANY(CAST(:images AS bigint[])) "
            "AND state = 'failed' AND reason = ANY(CAST(:lost AS text[]))"
        ),
        {"images": list(image_ids), "lost": sorted(LOST)},
    )


#: The time is that of the statement, as for images, so that an index can serve the condition on the back-off.
_DUE = f"state = 'due' AND {FREE} AND {WAITS} <= statement_timestamp()"
#: An expired lease counts as a failure, which only the next claim of the row would record.
_FAILURES = "failures + (CASE WHEN lease_until IS NOT NULL THEN 1 ELSE 0 END)"

_CLAIM = sa.text(
    f"""
    WITH due AS (
        SELECT image_id AS id, {_FAILURES} AS failed, lease_until IS NOT NULL AS left_behind FROM catch_up
        WHERE model_id = :model AND {_DUE} AND {_FAILURES} < :failures AND (lease_until IS NULL OR NOT :beside)
            AND (SELECT {INDEXABLE} FROM image i WHERE i.id = image_id)
        ORDER BY {WAITS}, image_id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE catch_up b SET attempt = b.attempt + 1, failures = chosen.failed,
                          lease_until = clock_timestamp() + make_interval(secs => :lease)
    FROM ({ALONE.format("due")}) AS chosen JOIN image i ON i.id = chosen.id
    WHERE b.model_id = :model AND b.image_id = chosen.id
    RETURNING i.id, b.attempt, i.sop_uid, i.path, i.revision, {RELEASED.format("i")}, {ORIGINAL.format("i")},
              b.waited, chosen.left_behind
    """
)

_OVER = f"""
    WHERE model_id = :model AND {_DUE} AND (lease_until IS NOT NULL OR failures > 0) AND {_FAILURES} >= :failures
"""
_FAILED = sa.text(f"SELECT image_id FROM catch_up {_OVER}")
_EXHAUST = sa.text(
    f"""
    UPDATE catch_up SET state = 'failed', reason = coalesce(last_error, 'worker-died'), lease_until = NULL
    {_OVER} AND image_id = ANY(CAST(:ids AS bigint[])) RETURNING image_id
    """
)


def claim(
    db: Session, model_id: int, *, limit: int, lease_s: float, max_failures: int, beside: bool = False
) -> list[Claimed]:
    """Claim up to `limit` images for this model, as `images.claim` does, each with its revision."""
    values = {"model": model_id, "limit": limit, "lease": lease_s, "failures": max_failures, "beside": beside}
    return sorted((Claimed(*row) for row in db.execute(_CLAIM, values)), key=lambda image: image.id)


def exhaust(db: Session, model_id: int, max_failures: int) -> list[int]:
    """Images on which this model failed `max_failures` times by errors of Similis are exceptions; returns their ids.

    The images stay locked, as after `settle`.
    """
    over = {"model": model_id, "failures": max_failures}
    found = list(db.execute(_FAILED, over).scalars())
    if not found:
        return []
    _lock(db, model_id, found)
    return list(db.execute(_EXHAUST, over | {"ids": found}).scalars())


#: A row that is locked is about to be settled or deleted, or is renewed a third of the lease later.
_RENEW = sa.text(
    """
    UPDATE catch_up SET lease_until = clock_timestamp() + make_interval(secs => :lease)
    WHERE model_id = :model AND image_id IN (
        SELECT image_id FROM catch_up JOIN unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) AS u(id, attempt)
            ON image_id = u.id AND catch_up.attempt = u.attempt
        WHERE model_id = :model AND lease_until IS NOT NULL FOR UPDATE OF catch_up SKIP LOCKED
    )
    """
)


def renew(db: Session, model_id: int, claimed: Iterable[Claimed], lease_s: float) -> None:
    """Extend the lease of the claims that are still held."""
    ours = list(claimed)
    values = {"ids": [c.id for c in ours], "attempts": [c.attempt for c in ours]}
    db.execute(_RENEW, values | {"model": model_id, "lease": lease_s})


_SETTLE = sa.text(
    f"""
    UPDATE catch_up b SET lease_until = NULL, last_error = u.reason,
        state = CASE WHEN u.over THEN 'failed' ELSE 'due' END, reason = CASE WHEN u.over THEN u.reason END,
        failures = b.failures + CASE WHEN u.fault THEN 1 ELSE 0 END,
        waited = b.waited + CASE WHEN u.retry IS NULL THEN 0 ELSE 1 END,
        not_before = clock_timestamp() + make_interval(secs => u.retry)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[]), CAST(:revisions AS bigint[]), CAST(:overs AS bool[]),
                CAST(:reasons AS text[]), CAST(:retries AS float8[]), CAST(:faults AS bool[]))
         AS u(id, attempt, revision, over, reason, retry, fault)
    JOIN image i ON i.id = u.id AND i.revision = u.revision AND {INDEXABLE}
    WHERE b.model_id = :model AND b.image_id = u.id AND b.attempt = u.attempt AND b.state = 'due'
      AND EXISTS (SELECT 1 FROM generation g WHERE g.model_id = :model AND g.state = 'open')
    RETURNING b.image_id, i.revision
    """
)


def settle(db: Session, model_id: int, verdicts: Sequence[Verdict]) -> dict[int, int]:
    """Apply the verdicts whose claim holds and whose image has the claimed revision; returns these images' revisions.

    `encoded` deletes the row, `received` makes it due again, any other status makes it an exception. The images stay
    locked, so that no erasure and no other bytes come between this call and what the caller writes for them.
    """
    _lock(db, model_id, [v.image.id for v in verdicts])
    rows = db.execute(
        _SETTLE,
        {
            "model": model_id,
            "ids": [v.image.id for v in verdicts],
            "attempts": [v.image.attempt for v in verdicts],
            "revisions": [v.image.revision for v in verdicts],
            "overs": [v.status not in (Status.ENCODED, Status.RECEIVED) for v in verdicts],
            "reasons": [v.reason for v in verdicts],
            "retries": [v.retry_after_s for v in verdicts],
            "faults": [v.our_fault for v in verdicts],
        },
    )
    ours = {row.image_id: row.revision for row in rows}
    drop(db, [v.image.id for v in verdicts if v.image.id in ours and v.status is Status.ENCODED], [model_id])
    return ours


def release(db: Session, model_id: int, claimed: Sequence[Claimed]) -> None:
    """Give back claims that were not settled: they are due again at once, without counting as a failure."""
    ids = [c.id for c in claimed]
    _lock(db, model_id, ids)
    db.execute(
        sa.text(
            "UPDATE catch_up SET lease_until = NULL "
            "FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) AS u(id, attempt) "
            "WHERE model_id = :model AND image_id = u.id AND catch_up.attempt = u.attempt"
        ),
        {"model": model_id, "ids": ids, "attempts": [c.attempt for c in claimed]},
    )


#: Not EXISTS for the rows, for which the planner would scan the table from its start, expecting an early match.
_ASKING = sa.text(
    f"""
    SELECT m.id FROM model m
    WHERE (SELECT image_id FROM catch_up WHERE model_id = m.id AND {_DUE}
           ORDER BY {WAITS}, image_id LIMIT 1) IS NOT NULL
      AND EXISTS (SELECT 1 FROM generation g LEFT JOIN operation o ON o.id = g.operation_id
                  WHERE g.model_id = m.id AND g.state = 'open' AND o.state IS DISTINCT FROM 'paused')
    ORDER BY m.id
    """
)


def asking(db: Session | sa.Connection) -> list[int]:
    """The models that have something to encode now, and are not paused."""
    return list(db.execute(_ASKING).scalars())
