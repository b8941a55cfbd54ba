"""Ledger rows that nobody else is changing: the doctor compares them with an index and makes them due again."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store import ledger
from shared.store.ledger import Pending
from shared.store.session import enqueue
from shared.types import Job


class Row(NamedTuple):
    """A locked ledger row: its state, and what the index must hold for its point."""

    state: str
    wanted: Pending


_STATES = sa.text(
    "SELECT point_id, state FROM ledger WHERE generation_id = :generation AND point_id = ANY(CAST(:points AS uuid[]))"
)
_LOCK = sa.text(
    "SELECT point_id FROM ledger WHERE generation_id = :generation AND point_id = ANY(CAST(:points AS uuid[])) "
    "ORDER BY point_id FOR UPDATE SKIP LOCKED"
)


def hold(
    db: Session, generation_id: int, model_id: int, points: Sequence[uuid.UUID]
) -> tuple[dict[uuid.UUID, Row], set[uuid.UUID]]:
    """Lock and return the rows of these points; also returns the points that have none.

    A row that another transaction has locked is being written or applied and is left out: it is no finding.
    """
    values = {"generation": generation_id, "points": list(points)}
    mine = list(db.execute(_LOCK, values).scalars())
    states = {row.point_id: row.state for row in db.execute(_STATES, values)}
    rows = {row.point_id: Row(states[row.point_id], row) for row in ledger.read(db, generation_id, model_id, mine)}
    return rows, set(points) - states.keys()


_DUE_AGAIN = sa.text(
    f"UPDATE ledger SET {ledger.AGAIN} WHERE generation_id = :generation AND point_id = ANY(CAST(:points AS uuid[]))"
)
_DELETE_UNKNOWN = sa.text(
    "INSERT INTO ledger (generation_id, point_id, image_id, frame, op, revision) "
    "SELECT :generation, u.id, 0, 0, 'delete', 0 FROM unnest(CAST(:points AS uuid[])) AS u(id) ON CONFLICT DO NOTHING"
)


def apply_again(db: Session, generation_id: int, known: Sequence[uuid.UUID], unknown: Sequence[uuid.UUID]) -> None:
    """The known points are to be written or deleted again, the unknown ones, which have no row, to be deleted.

    An unknown point gets a row instead of an immediate delete: if its image is registered meanwhile, that row wins.
    """
    db.execute(_DUE_AGAIN, {"generation": generation_id, "points": list(known)})
    db.execute(_DELETE_UNKNOWN, {"generation": generation_id, "points": list(unknown)})
    enqueue(db, Job.PROJECT)


def other_encodings(db: Session, model_id: int, image_id: int) -> list[bytes]:
    """The embeddings of the image by other models."""
    statement = sa.text("SELECT embedding FROM encoding WHERE image_id = :image AND model_id <> :model")
    return list(db.execute(statement, {"image": image_id, "model": model_id}).scalars())


def all_due(db: Session, generation_id: int) -> None:
    """All points of this generation are to be written again, because its index is empty."""
    db.execute(
        sa.text(
            "UPDATE ledger SET state = CASE WHEN op = 'upsert' THEN 'pending' ELSE 'applied' END, attempt = 0, "
            "not_before = NULL, applied_at = NULL, queued_at = clock_timestamp() WHERE generation_id = :generation"
        ),
        {"generation": generation_id},
    )
    enqueue(db, Job.PROJECT)
