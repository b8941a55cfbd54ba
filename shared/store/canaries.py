"""The results of the canary's last rounds, kept with the generation; the queries are not kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

K = 10
ROUNDS = 12  #: rounds that are kept: one hour, at one round in five minutes


@dataclass(frozen=True, slots=True)
class Canary:
    """Recall@k over the last rounds."""

    recall: float
    queries: int
    since: datetime
    at: datetime
    k: int = K


def told(rounds: Sequence[dict[str, Any]]) -> Canary | None:
    """The recall over all rounds of a generation; None before the first one."""
    wanted = sum(one["wanted"] for one in rounds)
    if not wanted:
        return None
    return Canary(
        recall=sum(one["found"] for one in rounds) / wanted,
        queries=sum(one["queries"] for one in rounds),
        since=datetime.fromisoformat(rounds[0]["at"]),
        at=datetime.fromisoformat(rounds[-1]["at"]),
    )


#: A round in the future began before the clock was set back.
_RESTED = "(canary_at BETWEEN clock_timestamp() - make_interval(secs => :every) AND clock_timestamp()) IS NOT TRUE"
_DUE = sa.text(f"SELECT EXISTS (SELECT 1 FROM generation WHERE id = (SELECT generation_id FROM live) AND {_RESTED})")
_CLAIM = sa.text(f"UPDATE generation SET canary_at = clock_timestamp() WHERE id = :id AND {_RESTED} RETURNING id")


def due(db: Session, every_s: float) -> bool:
    """Whether the published generation's last round began over `every_s` ago; never, where `every_s` is 0."""
    return every_s > 0 and bool(db.execute(_DUE, {"every": every_s}).scalar_one())


def claim(db: Session, generation_id: int, every_s: float) -> bool:
    """Claim the round that is due; False if none is due, for instance because another worker has claimed it."""
    if every_s <= 0:
        return False
    return db.execute(_CLAIM, {"id": generation_id, "every": every_s}).one_or_none() is not None


_RECORD = sa.text(
    """
    WITH every AS (
        SELECT canary || jsonb_build_array(CAST(:round AS jsonb) || jsonb_build_object('at', clock_timestamp()))
               AS rounds
        FROM generation WHERE id = :id FOR UPDATE)
    UPDATE generation SET canary = (
        SELECT jsonb_agg(one ORDER BY n) FROM jsonb_array_elements(every.rounds) WITH ORDINALITY AS u(one, n)
        WHERE n > jsonb_array_length(every.rounds) - :kept)
    FROM every WHERE id = :id RETURNING canary
    """
)


def record(db: Session, generation_id: int, queries: int, found: int, wanted: int) -> Canary | None:
    """Add a round to the generation, of which the last `ROUNDS` are kept; returns the recall over these."""
    one = json.dumps({"queries": queries, "found": found, "wanted": wanted})
    rows = db.execute(_RECORD, {"id": generation_id, "round": one, "kept": ROUNDS}).scalar_one_or_none()
    return None if rows is None else told(rows)
