"""What a generation lacks of what searches find today: nothing may vanish when the pointer moves.

An image must be held if it is encoded, or if the live generation shows it. It is a gap where this generation has no
row for it, refused it, or is behind the live one; what is as far in both is merely on its way.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

_NEEDED = """
    WITH shown AS (
        SELECT image_id, bool_or(applied_at IS NOT NULL) AS held, bool_and(state = 'applied') AS settled
        FROM ledger WHERE generation_id = (SELECT generation_id FROM live) AND op = 'upsert' GROUP BY image_id
    ), own AS (
        SELECT image_id, count(*) AS frames, bool_and(applied_at IS NOT NULL) AS held,
               bool_and(state = 'applied') AS settled, max(last_error) FILTER (WHERE state = 'failed') AS refused
        FROM ledger WHERE generation_id = :generation AND op = 'upsert' GROUP BY image_id
    ), stored AS (
        SELECT image_id, count(*) AS frames FROM encoding WHERE model_id = :model GROUP BY image_id
    ), needed AS (
        SELECT i.id, i.sop_uid, CASE
            WHEN own.refused IS NOT NULL THEN own.refused
            WHEN own.image_id IS NULL AND b.state = 'failed' THEN b.reason
            WHEN own.image_id IS NULL AND b.state = 'due' THEN 'to-encode'
            WHEN own.image_id IS NULL OR own.frames IS DISTINCT FROM stored.frames THEN 'missing'
            WHEN (shown.held AND NOT own.held) OR (shown.settled AND NOT own.settled) THEN 'to-index'
        END AS gap
        FROM image i
        LEFT JOIN shown ON shown.image_id = i.id
        LEFT JOIN own ON own.image_id = i.id
        LEFT JOIN stored ON stored.image_id = i.id
        LEFT JOIN backfill b ON b.image_id = i.id AND b.model_id = :model
        WHERE i.status NOT IN ('deleted', 'rejected', 'quarantined') AND (i.status = 'encoded' OR shown.held)
    )
"""
_COUNT = sa.text(_NEEDED + "SELECT coalesce(gap, 'covered'), count(*) FROM needed GROUP BY 1")  # noqa: S608 - a constant
_GAPS = sa.text(_NEEDED + "SELECT id, sop_uid, gap FROM needed WHERE gap IS NOT NULL ORDER BY id LIMIT :limit")  # noqa: S608

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
