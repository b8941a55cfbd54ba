"""What each generation must hold, and which of it its index has applied.

A projector locks pending rows and keeps the transaction open while it writes to the index: if it dies, its connection
closes, the locks are released and the rows are still pending. So a row needs neither lease nor fence.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store.tables import ENCODED_REVISION, INDEXABLE, RESTED
from shared.types import point_id

#: SET clause that makes a row pending, as if it had never been tried.
AGAIN = "state = 'pending', attempt = 0, not_before = NULL, queued_at = clock_timestamp()"

_POST = sa.text(
    f"""
    INSERT INTO ledger (generation_id, point_id, image_id, frame, op, revision)
    SELECT g.id, u.point_id, u.image_id, u.frame, u.op, u.revision
    FROM unnest(CAST(:points AS uuid[]), CAST(:images AS bigint[]), CAST(:frames AS int[]), CAST(:ops AS text[]),
                CAST(:revisions AS bigint[])) AS u(point_id, image_id, frame, op, revision)
    CROSS JOIN generation g
    WHERE g.state = 'open' AND g.model_id = :model
    ON CONFLICT (generation_id, point_id) DO UPDATE SET
        op = excluded.op, revision = excluded.revision, image_id = excluded.image_id, last_error = NULL, {AGAIN},
        applied_at = CASE WHEN ledger.op = 'upsert' THEN ledger.applied_at END
    WHERE ledger.revision <= excluded.revision OR ledger.image_id < excluded.image_id  -- erased, lifted, come again
    """
)


@dataclass(frozen=True, slots=True)
class Entry:
    point_id: uuid.UUID
    image_id: int
    frame: int
    revision: int
    op: str = "upsert"


def post(db: Session, model_id: int, entries: Sequence[Entry]) -> None:
    """Each entry is pending in every open generation of this model; other models may have chosen other frames."""
    if entries:
        db.execute(_POST, _columns(entries) | {"ops": [e.op for e in entries], "model": model_id})


def _columns(entries: Sequence[Entry]) -> dict[str, object]:
    return {
        "points": [e.point_id for e in entries],
        "images": [e.image_id for e in entries],
        "frames": [e.frame for e in entries],
        "revisions": [e.revision for e in entries],
    }


_FILL = sa.text(
    """
    INSERT INTO ledger (generation_id, point_id, image_id, frame, op, revision)
    SELECT :generation, u.point_id, u.image_id, u.frame, 'upsert', u.revision
    FROM unnest(CAST(:points AS uuid[]), CAST(:images AS bigint[]), CAST(:frames AS int[]),
                CAST(:revisions AS bigint[])) AS u(point_id, image_id, frame, revision)
    ON CONFLICT DO NOTHING
    """
)


def fill(db: Session, generation_id: int, entries: Sequence[Entry]) -> None:
    """Each entry is pending in this generation, unless its row was written in the meantime: that one is newer."""
    if entries:
        db.execute(_FILL, _columns(entries) | {"generation": generation_id})


_STORED = sa.text(
    f"""
    SELECT i.id, i.sop_uid, e.frame, {ENCODED_REVISION} AS revision
    FROM image i
    JOIN encoding e ON e.image_id = i.id AND e.model_id = :model
    WHERE i.id = ANY(CAST(:images AS bigint[])) AND {INDEXABLE}
      AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = i.id AND b.model_id = :model)
    """
)


def stored(db: Session, model_id: int, images: Sequence[int]) -> list[Entry]:
    """The entries that a generation of this model must hold for these images, as far as they are encoded.

    An image that waits to be encoded again has its previous revision here; otherwise a late vector of its old bytes
    would pass for one of the new bytes (found by `tests.protocol.model`). One on which this model has to catch up has
    no entry: if there is an encoding, it is of earlier bytes.
    """
    rows = db.execute(_STORED, {"model": model_id, "images": list(images)})
    return [Entry(point_id(row.sop_uid, row.frame), row.id, row.frame, row.revision) for row in rows]


@dataclass(frozen=True, slots=True)
class Pending:
    """One row to apply, with all that its point holds; `embedding` is None for a delete or a vanished image."""

    point_id: uuid.UUID
    op: str
    revision: int
    image_id: int
    study_id: int | None
    patient_key: bytes | None
    modality: str | None
    view: str | None
    laterality: str | None
    density: str | None
    birads: int | None
    study_date: date | None
    embedding: bytes | None
    code: bytes | None


_DUE = f"state = 'pending' AND {RESTED}"

_LOCK = sa.text(
    f"""
    SELECT point_id FROM ledger WHERE generation_id = :generation AND {_DUE}
    ORDER BY queued_at LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)
_READ = sa.text(
    f"""
    SELECT d.point_id, d.op, d.revision, d.image_id, i.study_id, s.patient_key, i.modality, i.view, i.laterality,
           i.density, i.birads, s.study_date, e.embedding, e.code
    FROM ledger d
    LEFT JOIN image i ON i.id = d.image_id AND {INDEXABLE}
    LEFT JOIN study s ON s.id = i.study_id
    LEFT JOIN encoding e ON e.image_id = i.id AND e.frame = d.frame AND e.model_id = :model
    WHERE d.generation_id = :generation AND d.point_id = ANY(CAST(:points AS uuid[]))
    """
)


def take(db: Session, generation_id: int, model_id: int, limit: int) -> list[Pending]:
    """Due rows, the longest queued first, locked until the transaction ends.

    One statement locks and the next one reads: a single statement would join a freshly locked row with the encoding
    of its own older snapshot, and so pair a new revision with an old vector.
    """
    points = db.execute(_LOCK, {"generation": generation_id, "limit": limit}).scalars().all()
    if not points:
        return []
    return read(db, generation_id, model_id, points)


def read(db: Session, generation_id: int, model_id: int, points: Sequence[uuid.UUID]) -> list[Pending]:
    """The rows of these points with what the index must hold for each, whatever their state."""
    rows = db.execute(_READ, {"generation": generation_id, "model": model_id, "points": list(points)})
    return [Pending(*row) for row in rows]


_APPLIED = sa.text(
    "UPDATE ledger SET state = 'applied', applied_at = clock_timestamp(), last_error = NULL "
    "WHERE generation_id = :generation AND point_id = ANY(CAST(:points AS uuid[]))"
)


def applied(db: Session, generation_id: int, points: Iterable[uuid.UUID]) -> None:
    """Mark points as applied: the index holds them durably or, where the row says `delete`, no longer holds them."""
    db.execute(_APPLIED, {"generation": generation_id, "points": list(points)})


MOST_ATTEMPTS = 3
_FAILED = sa.text(
    f"UPDATE ledger SET state = CASE WHEN attempt + 1 >= {MOST_ATTEMPTS} THEN 'failed' ELSE 'pending' END, "
    "attempt = attempt + 1, last_error = :error, "
    "not_before = clock_timestamp() + interval '2 seconds' * power(2, attempt) "
    "WHERE generation_id = :generation AND point_id = :point"
)


def failed(db: Session, generation_id: int, point: uuid.UUID, error: str) -> None:
    db.execute(_FAILED, {"generation": generation_id, "point": point, "error": error})


@dataclass(frozen=True, slots=True)
class PointCounts:
    """The points of a generation by the state of their rows."""

    applied: int
    pending: int
    failed: int

    @property
    def ratio(self) -> float:
        total = self.applied + self.pending + self.failed
        return 1.0 if total == 0 else self.applied / total


def point_counts(db: Session | sa.Connection, generation_id: int) -> PointCounts:
    row = db.execute(
        sa.text(
            "SELECT count(*) FILTER (WHERE state = 'applied' AND op = 'upsert'), "
            "count(*) FILTER (WHERE state = 'pending'), "
            "count(*) FILTER (WHERE state = 'failed') FROM ledger WHERE generation_id = :generation"
        ),
        {"generation": generation_id},
    ).one()
    return PointCounts(*row)


_HELD = sa.text(
    "SELECT point_id, revision FROM ledger WHERE generation_id = :generation AND point_id > :after "
    "AND state = 'applied' AND op = 'upsert' ORDER BY point_id LIMIT :limit"
)


def held(db: Session | sa.Connection, generation_id: int, after: uuid.UUID, limit: int) -> list[tuple[uuid.UUID, int]]:
    """(point id, revision) of the next applied points by id, which a reconciliation compares with the index."""
    rows = db.execute(_HELD, {"generation": generation_id, "after": after, "limit": limit})
    return [(row[0], row[1]) for row in rows]


#: Asks for each generation's first row by the index; for any row the planner might scan the table from its start.
_ANY = sa.text(
    f"""
    SELECT EXISTS (
        SELECT FROM generation g CROSS JOIN LATERAL (
            SELECT FROM ledger WHERE generation_id = g.id AND {_DUE} ORDER BY queued_at LIMIT 1
        ) AS first WHERE g.state = 'open'
    )
    """
)


def any_due(db: Session) -> bool:
    """Whether a projector would find a row now, in any open generation."""
    return bool(db.execute(_ANY).scalar_one())


def oldest_pending_s(db: Session | sa.Connection) -> float | None:
    """Age of the oldest pending row, by the database's clock; None if there is none. Reads all pending rows."""
    return db.execute(
        sa.text("SELECT extract(epoch FROM clock_timestamp() - min(queued_at)) FROM ledger WHERE state = 'pending'")
    ).scalar()


_WITHDRAW = sa.text(
    f"""
    UPDATE ledger SET op = 'delete', {AGAIN} WHERE image_id = ANY(CAST(:images AS bigint[])) AND op = 'upsert'
      AND (CAST(:model AS bigint) IS NULL OR generation_id IN (SELECT id FROM generation WHERE model_id = :model))
    """
)


def withdraw(db: Session, images: Sequence[int], model_id: int | None = None) -> None:
    """Every point of these images, in all generations or in those of one model, is due for deletion."""
    if images:
        db.execute(_WITHDRAW, {"images": list(images), "model": model_id})


class Sampled(NamedTuple):
    embedding: bytes
    patient_key: bytes


_SAMPLE = sa.text(
    """
    WITH chosen AS (
        SELECT image_id, frame FROM ledger WHERE generation_id = :generation AND state = 'applied' AND op = 'upsert'
        ORDER BY hashtextextended(CAST(point_id AS text), :seed) LIMIT :limit
    )
    SELECT e.embedding, s.patient_key FROM chosen c
    JOIN encoding e ON e.image_id = c.image_id AND e.frame = c.frame AND e.model_id = :model
    JOIN image i ON i.id = c.image_id
    JOIN study s ON s.id = i.study_id
    """
)


def sample(db: Session, generation_id: int, model_id: int, limit: int, seed: int) -> list[Sampled]:
    """Random points of this generation to query with; the same ones for the same seed while nothing changes."""
    values = {"generation": generation_id, "model": model_id, "limit": limit, "seed": seed}
    return [Sampled._make(row) for row in db.execute(_SAMPLE, values)]


_CHOSEN = sa.text(
    """
    SELECT e.embedding, s.patient_key
    FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, :limit)) AS start
    CROSS JOIN LATERAL (
        SELECT image_id, frame FROM ledger
        WHERE generation_id = :generation AND point_id >= start.id AND state = 'applied' AND op = 'upsert'
        ORDER BY point_id LIMIT 1
    ) AS c
    JOIN encoding e ON e.image_id = c.image_id AND e.frame = c.frame AND e.model_id = :model
    JOIN image i ON i.id = c.image_id
    JOIN study s ON s.id = i.study_id
    """
)


def chosen(db: Session, generation_id: int, model_id: int, limit: int) -> list[Sampled]:
    """At most `limit` random points, at the cost of as many index look-ups: ids are hashes, so evenly spread."""
    values = {"generation": generation_id, "model": model_id, "limit": limit}
    return [Sampled._make(row) for row in db.execute(_CHOSEN, values)]


_CLEAR = sa.text(
    "DELETE FROM ledger WHERE generation_id = :generation AND point_id IN "
    "(SELECT point_id FROM ledger WHERE generation_id = :generation LIMIT :limit)"
)


def clear(db: Session, generation_id: int, limit: int) -> bool:
    """Delete up to `limit` rows of a purged generation; returns whether there were any."""
    done: sa.CursorResult[Any] = db.execute(_CLEAR, {"generation": generation_id, "limit": limit})  # type: ignore[assignment]
    return done.rowcount > 0
