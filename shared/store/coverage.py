"""Gaps of a generation: images that searches find today and would no longer find once it is published.

A generation must hold each image that is encoded or that the live generation shows. Such an image is a gap if the
model has yet to encode it (a row is then of earlier bytes), this generation has no row for it, its index refused it, or
it has not applied what the live one has. What neither has applied is no gap. An image for which the live generation has
no row must be held all the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store.tables import INDEXABLE

#: The placeholders `rows` and `images` narrow the ledger rows and the images that are examined.
_NEEDED: Final = f"""
    WITH shown AS (
        SELECT image_id, bool_or(applied_at IS NOT NULL) AS held, bool_and(state = 'applied') AS settled
        FROM ledger WHERE generation_id = (SELECT generation_id FROM live) AND op = 'upsert' {{rows}} GROUP BY image_id
    ), own AS (
        SELECT image_id, count(*) AS frames, bool_and(applied_at IS NOT NULL) AS held,
               bool_and(state = 'applied') AS settled, max(last_error) FILTER (WHERE state = 'failed') AS refused
        FROM ledger WHERE generation_id = :generation AND op = 'upsert' {{rows}} GROUP BY image_id
    ), stored AS (
        SELECT image_id, count(*) AS frames FROM encoding WHERE model_id = :model {{rows}} GROUP BY image_id
    ), needed AS (
        SELECT i.id, i.sop_uid, CASE
            WHEN b.state = 'due' THEN 'to-encode'
            WHEN own.refused IS NOT NULL THEN own.refused
            WHEN own.image_id IS NULL AND b.state = 'failed' THEN b.reason
            WHEN own.image_id IS NULL OR own.frames IS DISTINCT FROM stored.frames THEN 'missing'
            WHEN (coalesce(shown.held, true) AND NOT own.held)
              OR (coalesce(shown.settled, true) AND NOT own.settled) THEN 'to-index'
        END AS gap
        FROM image i
        LEFT JOIN shown ON shown.image_id = i.id
        LEFT JOIN own ON own.image_id = i.id
        LEFT JOIN stored ON stored.image_id = i.id
        LEFT JOIN catch_up b ON b.image_id = i.id AND b.model_id = :model
        WHERE {INDEXABLE} AND (i.status = 'encoded' OR shown.held) {{images}}
    )
"""
_SELECT: Final = "SELECT id, sop_uid, gap FROM needed WHERE gap IS NOT NULL ORDER BY id LIMIT :limit"
_ALL: Final = _NEEDED.format(rows="", images="")
_THESE: Final = _NEEDED.format(
    rows="AND image_id = ANY(CAST(:these AS bigint[]))", images="AND i.id = ANY(CAST(:these AS bigint[]))"
)
_COUNT = sa.text(_ALL + "SELECT coalesce(gap, 'covered'), count(*) FROM needed GROUP BY 1")
_GAPS = sa.text(_ALL + _SELECT)
_GAPS_OF_THESE = sa.text(_THESE + _SELECT)

#: Gaps that close by themselves; any other gap is an exception, with its reason.
PASSING = frozenset({"to-encode", "to-index", "missing"})


@dataclass(frozen=True, slots=True)
class Gap:
    """An image that this generation does not hold, and why."""

    image_id: int
    sop_uid: str
    reason: str

    @property
    def named(self) -> tuple[str, str]:
        """The image id and the SOP Instance UID, by either of which a caller may name the image."""
        return str(self.image_id), self.sop_uid


@dataclass(frozen=True, slots=True)
class Coverage:
    """Images by what the generation has of them: `covered`, or the reason why not."""

    by_reason: dict[str, int]

    @property
    def images(self) -> int:
        return sum(self.by_reason.values())

    @property
    def covered(self) -> int:
        return self.by_reason.get("covered", 0)

    @property
    def coming(self) -> int:
        return sum(n for reason, n in self.by_reason.items() if reason in PASSING)

    @property
    def exceptions(self) -> int:
        return self.images - self.covered - self.coming


def count(db: Session | sa.Connection, generation_id: int, model_id: int) -> Coverage:
    rows = db.execute(_COUNT, {"generation": generation_id, "model": model_id})
    return Coverage({row[0]: row[1] for row in rows})


def gaps(db: Session | sa.Connection, generation_id: int, model_id: int, limit: int) -> list[Gap]:
    """The first `limit` gaps, by image id."""
    rows = db.execute(_GAPS, {"generation": generation_id, "model": model_id, "limit": limit})
    return [Gap(*row) for row in rows]


#: NULL where another role's transaction does not show when it began.
_MOMENT = sa.text(
    """
    SELECT CASE WHEN bool_and(state IS NOT NULL AND state <> 'disabled')
                THEN least(min(xact_start), clock_timestamp()) END
    FROM pg_stat_activity
    WHERE datname = current_database() AND coalesce(backend_type, 'client backend') = 'client backend'
    """
)


def moment(db: Session) -> datetime | None:
    """A moment before all writes of transactions that commit from now on; None where it cannot be known."""
    found: datetime | None = db.execute(_MOMENT).scalar_one()
    return found


_TOUCHED = sa.text(
    "SELECT DISTINCT image_id FROM ledger WHERE generation_id IN (:generation, (SELECT generation_id FROM live)) "
    "AND (state <> 'applied' OR queued_at >= :since OR applied_at >= :since)"
)


def gaps_now(
    db: Session, generation_id: int, model_id: int, limit: int, known: Sequence[Gap], since: datetime | None
) -> list[Gap]:
    """As `gaps`, but only what changed since `known` was found; `since` is a `moment` before that.

    Only images with rows that were written since then or are not applied are examined again. The caller holds the lock
    for which every writer waits.
    """
    if since is None:
        return gaps(db, generation_id, model_id, limit)
    touched = set(db.execute(_TOUCHED, {"generation": generation_id, "since": since}).scalars())
    fresh = _gaps_of(db, generation_id, model_id, limit, touched) if touched else []
    return sorted([gap for gap in known if gap.image_id not in touched] + fresh, key=lambda gap: gap.image_id)


def _gaps_of(db: Session, generation_id: int, model_id: int, limit: int, images: Collection[int]) -> list[Gap]:
    values = {"generation": generation_id, "model": model_id, "limit": limit, "these": list(images)}
    return [Gap(*row) for row in db.execute(_GAPS_OF_THESE, values)]
