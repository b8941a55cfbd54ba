"""What a generation lacks of what searches find today: nothing may vanish when the pointer moves.

An image must be held if it is encoded, or if the live generation shows it. It is a gap where this generation has no
row for it, refused it, or is behind the live one; what is as far in both is merely on its way. An image that the live
one has no row for must be here all the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store.tables import INDEXABLE

#: The two places say which rows and which images are looked at.
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
            WHEN own.refused IS NOT NULL THEN own.refused
            WHEN own.image_id IS NULL AND b.state = 'failed' THEN b.reason
            WHEN own.image_id IS NULL AND b.state = 'due' THEN 'to-encode'
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

#: Gaps that go by themselves; any other one is an exception, with its reason.
PASSING = frozenset({"to-encode", "to-index", "missing"})


@dataclass(frozen=True, slots=True)
class Gap:
    """An image that this generation does not hold, and why."""

    image_id: int
    sop_uid: str
    reason: str

    @property
    def named(self) -> tuple[str, str]:
        """What a caller may call it by."""
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
    """The images that are lacking, by id."""
    rows = db.execute(_GAPS, {"generation": generation_id, "model": model_id, "limit": limit})
    return [Gap(*row) for row in rows]


#: A transaction of another role hides when it began; then nothing is known.
_MOMENT = sa.text(
    """
    SELECT CASE WHEN bool_and(state IS NOT NULL AND state <> 'disabled')
                THEN least(min(xact_start), clock_timestamp()) END
    FROM pg_stat_activity
    WHERE datname = current_database() AND coalesce(backend_type, 'client backend') = 'client backend'
    """
)


def moment(db: Session) -> datetime | None:
    """What commits from now on was written after this moment; None where that cannot be known."""
    found: datetime | None = db.execute(_MOMENT).scalar_one()
    return found


_TOUCHED = sa.text(
    "SELECT DISTINCT image_id FROM ledger WHERE generation_id IN (:generation, (SELECT generation_id FROM live)) "
    "AND (state <> 'applied' OR queued_at >= :since OR applied_at >= :since)"
)


def gaps_now(
    db: Session, generation_id: int, model_id: int, limit: int, known: Sequence[Gap], since: datetime | None
) -> list[Gap]:
    """`gaps`, brought up to date: `known` was found after `since`, a `moment`.

    Only images whose rows were written since, or are not settled, are looked at again: every writer waits for the lock
    under which this is asked.
    """
    if since is None:
        return gaps(db, generation_id, model_id, limit)
    touched = set(db.execute(_TOUCHED, {"generation": generation_id, "since": since}).scalars())
    fresh = _gaps_of(db, generation_id, model_id, limit, touched) if touched else []
    return sorted([gap for gap in known if gap.image_id not in touched] + fresh, key=lambda gap: gap.image_id)


def _gaps_of(db: Session, generation_id: int, model_id: int, limit: int, images: Collection[int]) -> list[Gap]:
    values = {"generation": generation_id, "model": model_id, "limit": limit, "these": list(images)}
    return [Gap(*row) for row in db.execute(_GAPS_OF_THESE, values)]
