"""Thresholds of the feature gate, and the scores and embeddings they are made from and replayed on.

Whoever puts a threshold in force holds `Lock.GENERATIONS` alone: what was judged by the old one is written by then.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.store.images import RELEASED
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
    """Those in force for a modality, of reconstruction errors and of distances; at least one is there."""

    calibration_id: int
    threshold: float | None
    distance: float | None
    created_at: datetime


_IN_FORCE = sa.text(
    "SELECT DISTINCT ON (modality) modality, id, threshold, CAST(distances ->> 'threshold' AS float8) AS distance, "
    "created_at FROM calibration WHERE model_id = :model ORDER BY modality, id DESC"
)


def in_force(db: Session | sa.Connection, model_id: int) -> dict[str, Threshold]:
    """By modality; one that is missing has none."""
    rows = db.execute(_IN_FORCE, {"model": model_id})
    return {row.modality: Threshold(row.id, row.threshold, row.distance, row.created_at) for row in rows}


_GAUSSIANS = sa.text(
    "SELECT id, gaussian FROM calibration WHERE id = ANY(CAST(:ids AS bigint[])) AND gaussian IS NOT NULL"
)


def gaussians(db: Session | sa.Connection, calibration_ids: Sequence[int]) -> dict[int, bytes]:
    """What distances are measured from, packed, of those calibrations that have it."""
    return {row.id: row.gaussian for row in db.execute(_GAUSSIANS, {"ids": list(calibration_ids)})}


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
    embedded: bool = False  #: with their embeddings


class Scored(NamedTuple):
    """An image that the feature gate may judge."""

    image_id: int
    sop_uid: str
    status: str
    digest: bytes
    frames: list[float | None]  #: the score of each
    embeddings: list[bytes]  #: packed, of each, where they were asked for
    decided: bool  #: a person has: no threshold changes that


#: Stopped ones, too: which of them belong is what the caller wants to know.
_FIELDS = f"""
    SELECT i.id, i.sop_uid, i.status, i.digest,
           ARRAY(SELECT CAST(e.ood AS float8) FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model
                 ORDER BY e.frame) AS frames,
           CASE WHEN :embedded THEN ARRAY(SELECT e.embedding FROM encoding e WHERE e.image_id = i.id
                AND e.model_id = :model ORDER BY e.frame) ELSE '{{}}' END AS embeddings,
           {RELEASED.format("i")} AS decided
    FROM image i
"""
_SCORED = sa.text(
    _FIELDS
    + """
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
        "embedded": chosen.embedded,
        "after": after,
        "limit": limit,
    }
    return [Scored._make(row) for row in db.execute(_SCORED, values)]


_THESE = sa.text(_FIELDS + "WHERE i.id = ANY(CAST(:images AS bigint[])) ORDER BY i.id")


def these(db: Session, model_id: int, images: Sequence[int]) -> list[Scored]:
    """As `scored`, of the named images, with their embeddings."""
    values = {"model": model_id, "images": list(images), "embedded": True}
    return [Scored._make(row) for row in db.execute(_THESE, values)]


def every_scored(db: Session, model_id: int, chosen: Chosen, step: int = 5000) -> Iterator[Scored]:
    after = 0
    while rows := scored(db, model_id, chosen, after, step):
        yield from rows
        after = rows[-1].image_id


class Known(NamedTuple):
    """An image that belongs, and what the model made of it."""

    digest: bytes
    patient: bytes
    embeddings: list[bytes]  #: of each frame, packed


_FROM_CHOSEN = """
    FROM image i JOIN study s ON s.id = i.study_id
    WHERE i.modality = :modality
      AND (CAST(:operation AS uuid) IS NULL OR i.operation_id = :operation)
      AND (CAST(:folder AS bytea) IS NULL OR substring(i.path FROM 1 FOR octet_length(:folder)) = :folder)
"""
_FROM_KNOWN = (
    _FROM_CHOSEN
    + """
      AND i.status = 'encoded' AND EXISTS (SELECT 1 FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model)
    ORDER BY i.digest, i.id LIMIT :most
    """
)
_KNOWN = sa.text(
    """
    SELECT i.digest, s.patient_key AS patient,
           ARRAY(SELECT e.embedding FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model
                 ORDER BY e.frame) AS embeddings
    """
    + _FROM_KNOWN
)


def known(db: Session, model_id: int, chosen: Chosen, most: int) -> list[Known]:
    """Up to so many encoded images, in the order of their digests: by chance, and the same ones each time."""
    return [Known._make(row) for row in db.execute(_KNOWN, _choice(chosen) | {"model": model_id, "most": most})]


_KNOWN_SCORES = sa.text(
    """
    SELECT i.digest, ARRAY(SELECT CAST(e.ood AS float8) FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model
                           ORDER BY e.frame) AS frames
    """
    + _FROM_KNOWN
)


def known_scores(db: Session, model_id: int, chosen: Chosen, most: int) -> list[tuple[bytes, list[float | None]]]:
    """(digest, score of each frame) of up to so many encoded images, chosen as by `known`."""
    rows = db.execute(_KNOWN_SCORES, _choice(chosen) | {"model": model_id, "most": most})
    return [(row.digest, row.frames) for row in rows]


_STOPPED = sa.text("SELECT count(*)" + _FROM_CHOSEN + "AND i.status = 'quarantined' AND i.gate = 'features'")


def stopped(db: Session, chosen: Chosen) -> int:
    """How many of them the feature gate has stopped."""
    found: int = db.execute(_STOPPED, _choice(chosen)).scalar_one()
    return found


def _choice(chosen: Chosen) -> dict[str, Any]:
    return {"modality": chosen.modality, "operation": chosen.operation_id, "folder": chosen.folder}


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


_MODALITIES = sa.text(
    """
    SELECT DISTINCT i.modality FROM image i JOIN encoding e ON e.image_id = i.id AND e.model_id = :model
    WHERE i.status = 'encoded' ORDER BY 1
    """
)


def encoded_modalities(db: Session, model_id: int) -> list[str]:
    """Those of which this model has encoded images."""
    return list(db.execute(_MODALITIES, {"model": model_id}).scalars())


class Ruling(NamedTuple):
    """Where an image stands by a calibration, and why."""

    image_id: int
    status: str
    score: float | None
    distance: float | None
    reason: str | None


_JUDGE = sa.text(
    """
    UPDATE image SET status = u.status, score = u.score, distance = u.distance, calibration_id = :calibration,
        gate = CASE WHEN u.status = 'quarantined' THEN 'features' END,
        reason = CASE WHEN u.status = 'quarantined' THEN u.reason END,
        settled_at = CASE WHEN image.status = u.status THEN settled_at ELSE clock_timestamp() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:statuses AS text[]), CAST(:scores AS real[]),
                CAST(:distances AS real[]), CAST(:reasons AS text[])) AS u(id, status, score, distance, reason)
    WHERE image.id = u.id
    """
)


def judge(db: Session, calibration_id: int, rulings: Sequence[Ruling]) -> None:
    """These images, locked by the caller, stand so by this calibration."""
    db.execute(
        _JUDGE,
        {
            "calibration": calibration_id,
            "ids": [one.image_id for one in rulings],
            "statuses": [one.status for one in rulings],
            "scores": [one.score for one in rulings],
            "distances": [one.distance for one in rulings],
            "reasons": [one.reason for one in rulings],
        },
    )


_NAME_AGAIN = sa.text(
    """
    UPDATE image SET score = u.score, distance = u.distance, calibration_id = u.calibration
    FROM unnest(CAST(:ids AS bigint[]), CAST(:scores AS real[]), CAST(:distances AS real[]),
                CAST(:calibrations AS bigint[])) AS u(id, score, distance, calibration)
    WHERE image.id = u.id
    """
)
Measured = tuple[int, float | None, float | None, int | None]  #: image, score, distance, calibration


def remember(db: Session, measured: Sequence[Measured]) -> None:
    """This stands of these images as what they were judged by; where they stand stays as it is."""
    ids, scores, distances, numbers = zip(*measured, strict=True) if measured else ((), (), (), ())
    values = {"ids": ids, "scores": scores, "distances": distances, "calibrations": numbers}
    db.execute(_NAME_AGAIN, {name: list(column) for name, column in values.items()})


_UNJUDGED = {
    "any": sa.text(
        "SELECT modality, count(*) FROM image WHERE status = 'encoded' AND calibration_id IS NULL GROUP BY 1"
    ),
    "distance": sa.text(
        "SELECT modality, count(*) FROM image WHERE status = 'encoded' AND distance IS NULL GROUP BY 1"
    ),
}


def unjudged(db: Session | sa.Connection, vote: Literal["any", "distance"] = "any") -> dict[str, int]:
    """Searchable images by modality that no threshold has judged, or none of distances."""
    return {row[0]: row[1] for row in db.execute(_UNJUDGED[vote])}


_WANTING = sa.text(
    """
    SELECT i.modality, count(*) FROM image i
    WHERE i.status = 'encoded' AND i.modality <> '' AND NOT EXISTS (
        SELECT 1 FROM calibration c WHERE c.model_id = :model AND c.modality = i.modality AND c.source <> 'card')
    GROUP BY 1 HAVING count(*) >= :least ORDER BY 1
    """
)


def wanting(db: Session | sa.Connection, model_id: int, least: int) -> dict[str, int]:
    """Modalities of which so many images are searchable, and that this archive has given no thresholds of its own.

    Those that a model brings count for none: they have seen no image of here.
    """
    rows = db.execute(_WANTING, {"model": model_id, "least": least})
    return {row[0]: row[1] for row in rows}
