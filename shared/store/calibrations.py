"""Thresholds of the feature gate, and the scores they are made from and replayed on.

Whoever puts a threshold in force holds `Lock.GENERATIONS` alone: what was judged by the old one is written by then.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.store.locks import Lock, alone
from shared.store.tables import Calibration


def add(db: Session, model_id: int, modality: str, source: str, made_by: str | None, **numbers: Any) -> Calibration:  # noqa: ANN401 - the other columns
    """From the commit on images of this modality are judged by it."""
    alone(db, Lock.GENERATIONS)
    row = Calibration(model_id=model_id, modality=modality, source=source, made_by=made_by, **numbers)
    db.add(row)
    db.flush()  # its id orders it
    db.refresh(row)
    return row


def get(db: Session, calibration_id: int) -> Calibration:
    """Raises: `NotFound`."""
    found = db.get(Calibration, calibration_id)
    if found is None:
        raise NotFound("no such calibration")
    return found


def history(db: Session, model_id: int, modality: str | None = None) -> Sequence[Calibration]:
    """All of a model, the newest first."""
    query = sa.select(Calibration).where(Calibration.model_id == model_id).order_by(Calibration.id.desc())
    return db.scalars(query if modality is None else query.where(Calibration.modality == modality)).all()


class Threshold(NamedTuple):
    """The one in force for a modality."""

    calibration_id: int
    threshold: float


_IN_FORCE = sa.text(
    "SELECT DISTINCT ON (modality) modality, id, threshold FROM calibration WHERE model_id = :model "
    "ORDER BY modality, id DESC"
)


def in_force(db: Session | sa.Connection, model_id: int) -> dict[str, Threshold]:
    """By modality; one that is missing has none."""
    return {row.modality: Threshold(row.id, row.threshold) for row in db.execute(_IN_FORCE, {"model": model_id})}


def modalities(db: Session, images: Sequence[int]) -> dict[int, str]:
    """What these images are said to be, by the header or by a table."""
    rows = db.execute(
        sa.text("SELECT id, modality FROM image WHERE id = ANY(CAST(:images AS bigint[]))"), {"images": list(images)}
    )
    return {row.id: row.modality for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which stored images a calibration is made from; None does not narrow."""

    modality: str
    operation_id: uuid.UUID | None = None  #: registered by it
    folder: bytes | None = None  #: lying under it


class Scored(NamedTuple):
    """An image that the feature gate may judge."""

    image_id: int
    sop_uid: str
    status: str
    digest: bytes
    frames: list[float | None]  #: the score of each
    decided: bool  #: a person has: no threshold changes that


#: Stopped ones, too: which of them belong is what the caller wants to know.
_SCORED = sa.text(
    """
    SELECT i.id, i.sop_uid, i.status, i.digest,
           ARRAY(SELECT CAST(e.ood AS float8) FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model
                 ORDER BY e.frame) AS frames,
           EXISTS (SELECT 1 FROM review r WHERE r.image_id = i.id AND r.digest = i.digest) AS decided
    FROM image i
    WHERE i.id > :after AND i.modality = :modality
      AND (i.status = 'encoded' OR (i.status = 'quarantined' AND i.gate = 'features'))
      AND (CAST(:operation AS uuid) IS NULL OR i.operation_id = :operation)
      AND (CAST(:folder AS bytea) IS NULL OR substring(i.path FROM 1 FOR octet_length(:folder)) = :folder)
    ORDER BY i.id LIMIT :limit
    """
)


def scored(db: Session, model_id: int, chosen: Chosen, after: int, limit: int) -> list[Scored]:
    """The next images by id. `frames` is empty where this model has not encoded it."""
    values = {
        "model": model_id,
        "modality": chosen.modality,
        "operation": chosen.operation_id,
        "folder": chosen.folder,
        "after": after,
        "limit": limit,
    }
    return [Scored._make(row) for row in db.execute(_SCORED, values)]


def every_scored(db: Session, model_id: int, chosen: Chosen, step: int = 5000) -> Iterator[Scored]:
    after = 0
    while rows := scored(db, model_id, chosen, after, step):
        yield from rows
        after = rows[-1].image_id


_COUNT = sa.text(
    "SELECT count(*) FROM image WHERE modality = :modality "
    "AND (status = 'encoded' OR (status = 'quarantined' AND gate = 'features'))"
)


def judged_again(db: Session, modality: str) -> int:
    """How many images a replay looks at."""
    found: int = db.execute(_COUNT, {"modality": modality}).scalar_one()
    return found


def lock_scored(db: Session, model_id: int, chosen: Chosen, after: int, limit: int) -> tuple[list[Scored], int | None]:
    """As `scored`, locked, and the last image that was looked at; None where there is no further one.

    Locked by one statement and read by the next: what was waited for is read as it is then, and may be out of reach.
    """
    seen = scored(db, model_id, chosen, after, limit)
    db.execute(
        sa.text("SELECT id FROM image WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE"),
        {"ids": [row.image_id for row in seen]},
    )
    locked = {row.image_id for row in seen}
    still = [row for row in scored(db, model_id, chosen, after, limit) if row.image_id in locked]
    return still, seen[-1].image_id if seen else None


_WITH_SCORES = sa.text(
    """
    SELECT DISTINCT i.modality FROM image i JOIN encoding e ON e.image_id = i.id AND e.model_id = :model
    WHERE i.status = 'encoded' AND e.ood IS NOT NULL ORDER BY 1
    """
)


def scored_modalities(db: Session, model_id: int) -> list[str]:
    """Those of which this model has scores."""
    return list(db.execute(_WITH_SCORES, {"model": model_id}).scalars())


_JUDGE = sa.text(
    """
    UPDATE image SET status = u.status, score = u.score, calibration_id = :calibration,
        gate = CASE WHEN u.status = 'quarantined' THEN 'features' END,
        reason = CASE WHEN u.status = 'quarantined' THEN CAST(:reason AS text) END,
        settled_at = CASE WHEN image.status = u.status THEN settled_at ELSE clock_timestamp() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:statuses AS text[]), CAST(:scores AS real[])) AS u(id, status, score)
    WHERE image.id = u.id
    """
)


def judge(db: Session, calibration_id: int, reason: str, verdicts: Mapping[int, tuple[str, float | None]]) -> None:
    """These images, locked by the caller, stand as (status, score) by this threshold."""
    db.execute(
        _JUDGE,
        {
            "calibration": calibration_id,
            "reason": reason,
            "ids": list(verdicts),
            "statuses": [status for status, _ in verdicts.values()],
            "scores": [score for _, score in verdicts.values()],
        },
    )


def unjudged(db: Session | sa.Connection) -> dict[str, int]:
    """Searchable images by modality that no threshold has judged."""
    rows = db.execute(
        sa.text("SELECT modality, count(*) FROM image WHERE status = 'encoded' AND calibration_id IS NULL GROUP BY 1")
    )
    return {row[0]: row[1] for row in rows}
