"""Images: claiming and settling.

A claim moves an image to `encoding` and increments `attempt`, the fencing token, which never decreases. A worker can
settle an image only with its current attempt and while it is still `encoding`; otherwise it has lost the image.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Conflict
from shared.imaging.reasons import LOST, Reason
from shared.store.tables import WAITS
from shared.types import MOVES, Status


@dataclass(frozen=True, slots=True)
class Claimed:
    id: int
    attempt: int
    sop_uid: str
    path: bytes
    revision: int = 0  #: when it was claimed; catch-up settles the image only while it is the same
    released: bool = False  #: a person has released these bytes: no gate stops them
    digest: bytes = b""  #: of the registered bytes
    size: int | None = None  #: of the file they were registered from; None if its row describes other bytes by now
    mtime_ns: int | None = None  #: ditto
    waited: int = 0  #: back-offs since it was last settled or retried
    left_behind: bool = False  #: its last holder was lost, perhaps because of this image: it is claimed alone


#: Due: received with its back-off over, or claimed under a lease that has expired, which counts as a failure. The time
#: is that of the statement, not of each row, so that an index can serve the condition on the back-off.
_DUE = f"""
    status IN ('received', 'encoding') AND {WAITS} <= statement_timestamp()
    AND (status = 'received' OR lease_until < clock_timestamp())
"""
_FAILURES = "failures + (CASE WHEN status = 'encoding' THEN 1 ELSE 0 END)"

#: A release covers these bytes only: others under the same UID are judged again. The release of an image that an
#: admission rule held does not count here, because no gate had judged it.
RELEASED = f"""
    EXISTS (SELECT 1 FROM review r WHERE r.image_id = {{0}}.id AND r.digest = {{0}}.digest
            AND r.decision = 'released' AND r.reason <> '{Reason.SITE_RULE}')
"""

#: SET clause that makes an image due again and clears its previous outcome.
AGAIN = (
    "status = 'received', failures = 0, waited = 0, not_before = NULL, lease_until = NULL, gate = NULL, reason = NULL, "
    "last_error = NULL"
)

#: Columns: digest, size and mtime of the file from which an image was registered.
ORIGINAL = """
    {0}.digest,
    (SELECT f.size FROM file f WHERE f.path_digest = sha256({0}.path) AND f.digest = {0}.digest),
    (SELECT f.mtime_ns FROM file f WHERE f.path_digest = sha256({0}.path) AND f.digest = {0}.digest)
"""

#: If a batch has an image that was left behind, only one such is claimed: a crash must not take others with it.
ALONE = """
    SELECT * FROM {0} ORDER BY left_behind DESC, id LIMIT CASE WHEN (SELECT bool_or(left_behind) FROM {0}) THEN 1 END
"""

#: Images that never failed come first, but a quarter of the batch is for retries whose back-off is over: behind all new
#: images they would wait until the whole archive is taken in.
_CLAIM = sa.text(
    f"""
    WITH rested AS MATERIALIZED (
        SELECT id, status FROM image WHERE {_DUE} AND {_FAILURES} < :failures AND {WAITS} > '-infinity'
            AND (status = 'received' OR NOT :beside)
        ORDER BY {WAITS}, id LIMIT (CAST(:limit AS int) + 3) / 4 FOR UPDATE SKIP LOCKED
    ), others AS MATERIALIZED (
        SELECT id, status FROM image WHERE {_DUE} AND {_FAILURES} < :failures AND id NOT IN (SELECT id FROM rested)
            AND (status = 'received' OR NOT :beside)
        ORDER BY {WAITS}, id LIMIT CAST(:limit AS int) - (SELECT count(*) FROM rested) FOR UPDATE SKIP LOCKED
    ), batch AS (
        SELECT id, status = 'encoding' AS left_behind FROM (SELECT * FROM rested UNION ALL SELECT * FROM others) AS due
    )
    UPDATE image SET status = 'encoding', attempt = attempt + 1, failures = {_FAILURES},
                     lease_until = clock_timestamp() + make_interval(secs => :lease)
    FROM ({ALONE.format("batch")}) AS chosen WHERE image.id = chosen.id
    RETURNING image.id, attempt, sop_uid, path, revision, {RELEASED.format("image")}, {ORIGINAL.format("image")},
              waited, left_behind
    """
)

_EXHAUST = sa.text(
    f"""
    UPDATE image SET status = 'failed', reason = coalesce(last_error, 'worker-died'), lease_until = NULL,
                     settled_at = clock_timestamp()
    WHERE id IN (SELECT id FROM image WHERE {_DUE} AND (status = 'encoding' OR failures > 0)
                 AND {_FAILURES} >= :failures FOR UPDATE SKIP LOCKED)
    RETURNING id
    """
)


def claim(db: Session, *, limit: int, lease_s: float, max_failures: int, beside: bool = False) -> list[Claimed]:
    """Claim up to `limit` due images, or a single one that was left behind, for a lease by the database's clock.

    With `beside`, for a worker that holds other images already, none that was left behind is claimed.
    """
    rows = db.execute(_CLAIM, {"limit": limit, "lease": lease_s, "failures": max_failures, "beside": beside})
    return sorted((Claimed(*row) for row in rows), key=lambda image: image.id)


def exhaust(db: Session, max_failures: int) -> list[int]:
    """Images with `max_failures` failures by errors of Similis are `failed`; returns their ids."""
    return list(db.execute(_EXHAUST, {"failures": max_failures}).scalars())


#: Every change of several rows locks them in this order, because a batch may be renewed while it is settled.
_LOCK = sa.text("SELECT id FROM image WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE")


def lock(db: Session, ids: Iterable[int]) -> None:
    """Lock these images until the commit; do it before several of them, or their catch-up rows, are changed."""
    db.execute(_LOCK, {"ids": list(ids)})


_RENEW = sa.text(
    """
    UPDATE image SET lease_until = clock_timestamp() + make_interval(secs => :lease)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) AS u(id, attempt)
    WHERE image.id = u.id AND image.attempt = u.attempt AND image.status = 'encoding'
    """
)


def renew(db: Session, claimed: Iterable[Claimed], lease_s: float) -> None:
    ours = list(claimed)
    ids = [c.id for c in ours]
    lock(db, ids)
    db.execute(_RENEW, {"ids": ids, "attempts": [c.attempt for c in ours], "lease": lease_s})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a claimed image."""

    image: Claimed
    status: Status
    gate: str | None = None
    reason: str | None = None
    score: float | None = None
    distance: float | None = None
    calibration_id: int | None = None  #: that judged score and distance
    retry_after_s: float | None = None  #: only with status `received`: the back-off
    our_fault: bool = False  #: only with status `received`: counts towards giving up


_SETTLE = sa.text(
    """
    UPDATE image SET status = u.status, gate = u.gate, reason = u.reason, score = u.score, lease_until = NULL,
        distance = u.distance, calibration_id = u.calibration,
        not_before = clock_timestamp() + make_interval(secs => u.retry),
        last_error = CASE WHEN u.status = 'received' THEN u.reason END,
        failures = image.failures + CASE WHEN u.fault THEN 1 ELSE 0 END,
        waited = CASE WHEN u.status = 'received' THEN waited + CASE WHEN u.retry IS NULL THEN 0 ELSE 1 END ELSE 0 END,
        settled_at = CASE WHEN u.status <> 'received' THEN clock_timestamp() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[]), CAST(:statuses AS text[]), CAST(:gates AS text[]),
                CAST(:reasons AS text[]), CAST(:scores AS real[]), CAST(:distances AS real[]),
                CAST(:calibrations AS bigint[]), CAST(:retries AS float8[]), CAST(:faults AS bool[]))
         AS u(id, attempt, status, gate, reason, score, distance, calibration, retry, fault)
    WHERE image.id = u.id AND image.attempt = u.attempt AND image.status = 'encoding'
    RETURNING image.id, image.revision
    """
)


def settle(db: Session, verdicts: Sequence[Verdict]) -> dict[int, int]:
    """Apply the verdicts to the images whose claim still holds; the others stay unchanged.

    Returns the revision of each image that was settled. Only for these may anything else be written.
    """
    for verdict in verdicts:
        check_move(Status.ENCODING, verdict.status)
    ids = [v.image.id for v in verdicts]
    lock(db, ids)
    rows = db.execute(
        _SETTLE,
        {
            "ids": ids,
            "attempts": [v.image.attempt for v in verdicts],
            "statuses": [v.status.value for v in verdicts],
            "gates": [v.gate for v in verdicts],
            "reasons": [v.reason for v in verdicts],
            "scores": [v.score for v in verdicts],
            "distances": [v.distance for v in verdicts],
            "calibrations": [v.calibration_id for v in verdicts],
            "retries": [v.retry_after_s for v in verdicts],
            "faults": [v.our_fault for v in verdicts],
        },
    )
    return {row.id: row.revision for row in rows}


def after(db: Session, image_id: int, limit: int) -> list[int]:
    """The next image ids above `image_id`, locked: no image is erased or replaced before the caller commits."""
    rows = sa.text("SELECT id FROM image WHERE id > :after ORDER BY id LIMIT :limit FOR SHARE")
    return list(db.scalars(rows, {"after": image_id, "limit": limit}))


def check_move(old: Status, new: Status) -> None:
    """Raises: `Conflict` for a change of status that `MOVES` does not allow."""
    if new not in MOVES[old]:
        raise Conflict(f"an image cannot go from {old.value} to {new.value}")


#: Condition: the image is failed, and {0}. The images are locked in the order of `lock`.
FAILED = "id IN (SELECT id FROM image WHERE status = 'failed' AND {0} ORDER BY id FOR NO KEY UPDATE)"
_RETRY = sa.text(f"UPDATE image SET {AGAIN} WHERE {FAILED.format('operation_id = :operation')} RETURNING id")


def retry_failed(db: Session, operation_id: uuid.UUID) -> int:
    """The failed images of an operation are due again; returns how many."""
    return len(db.execute(_RETRY, {"operation": operation_id}).all())


_FOUND_AGAIN = sa.text(
    f"""
    UPDATE image SET {AGAIN}, operation_id = :operation
    WHERE id = :id AND status = 'failed' AND reason = ANY(CAST(:lost AS text[]))
    """
)


def move(db: Session, image_id: int, path: bytes) -> None:
    """Make the file at this path the image's own; it has the same bytes."""
    db.execute(sa.text("UPDATE image SET path = :path WHERE id = :id"), {"id": image_id, "path": path})


def found_again(db: Session, image_id: int, path: bytes, operation_id: uuid.UUID | None) -> None:
    """Set the image's path; if the image failed because its bytes were missing, it is due again."""
    move(db, image_id, path)
    db.execute(_FOUND_AGAIN, {"id": image_id, "operation": operation_id, "lost": sorted(LOST)})


#: The images are locked; those that others have locked, too, get their turn at the next attempt.
_FREE = "SELECT id FROM image WHERE id = ANY(CAST(:ids AS bigint[])) FOR NO KEY UPDATE SKIP LOCKED"
_HOLDS = "f.image_id = image.id AND f.digest = image.digest AND f.outcome IN ('taken', 'same')"
_TRY_ANOTHER = sa.text(
    f"""
    UPDATE image SET path = coalesce((
        SELECT f.path FROM file f WHERE {_HOLDS} ORDER BY f.path <= image.path, f.path LIMIT 1
    ), path)
    WHERE id IN ({_FREE})
    """
)


def try_another_file(db: Session, ids: Iterable[int]) -> None:
    """Point these images, whose files could not be read, each to the next file with its bytes, in a circle."""
    if chosen := list(ids):
        db.execute(_TRY_ANOTHER, {"ids": chosen})


_ELSEWHERE = sa.text(
    f"""
    SELECT id, path FROM image WHERE id IN ({_FREE})
        AND EXISTS (SELECT 1 FROM file f WHERE {_HOLDS} AND f.path <> image.path)
    """
)


def elsewhere(db: Session, ids: Sequence[int]) -> dict[int, bytes]:
    """Those of these images that have another file with their bytes, each with its present path; locked."""
    rows = db.execute(_ELSEWHERE, {"ids": list(ids)}) if ids else ()
    return {row.id: row.path for row in rows}


_DUE_AGAIN = sa.text(
    f"UPDATE image SET {AGAIN} WHERE id = ANY(CAST(:ids AS bigint[])) AND status = 'failed' AND reason = ANY(:lost)"
)


def due_again(db: Session, ids: Iterable[int]) -> None:
    """Those of these images that failed because their bytes were not at their path are due again."""
    db.execute(_DUE_AGAIN, {"ids": list(ids), "lost": sorted(LOST)})


#: The oldest may also be one that was put back for later, because its share is away, and waits out its back-off.
_WAITING = sa.text(
    f"""
    SELECT count(*) FILTER (WHERE {_DUE}),
        extract(epoch FROM clock_timestamp() - min(coalesce(lease_until, received_at)))
    FROM image WHERE status IN ('received', 'encoding') AND (status = 'received' OR lease_until < clock_timestamp())
    """
)


def due(db: Session | sa.Connection) -> tuple[int, float | None]:
    """How many images could be claimed now, and for how many seconds the oldest that is not settled has waited."""
    row = db.execute(_WAITING).one()
    return row[0], None if row[1] is None else float(row[1])


#: Not EXISTS, for which the planner would scan the table from its start, expecting an early match.
_ANY = sa.text(f"SELECT (SELECT id FROM image WHERE {_DUE} ORDER BY {WAITS}, id LIMIT 1) IS NOT NULL")


def any_due(db: Session) -> bool:
    """Whether an image could be claimed now; counting them is expensive while a million wait."""
    return bool(db.execute(_ANY).scalar_one())


def statuses(db: Session | sa.Connection) -> dict[str, int]:
    return {row[0]: row[1] for row in db.execute(sa.text("SELECT status, count(*) FROM image GROUP BY status"))}
