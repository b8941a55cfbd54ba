"""Thresholds of the feature gate, and the scores and embeddings they are made from and replayed on.

A threshold is put in force under the exclusive `Lock.GENERATIONS`: verdicts by the old one are committed by then.
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
    """Add a calibration, which judges the images of this modality from the commit on."""
    alone(db, Lock.GENERATIONS)
    row = Calibration(model_id=model_id, modality=modality, source=source, made_by=made_by, **numbers)
    db.add(row)
    db.flush()  # assigns the id, which tells the newest one
    db.refresh(row)
    return row


def get(db: Session, calibration_id: int) -> Calibration:
    """Raises: `NotFound`."""
    found = db.get(Calibration, calibration_id)
    if found is None:
        raise NotFound("no such calibration")
    return found


def history(db: Session, model_id: int, modality: str | None = None) -> Sequence[Calibration]:
    """All calibrations of a model, or of one modality, the newest first."""
    query = sa.select(Calibration).where(Calibration.model_id == model_id).order_by(Calibration.id.desc())
    return db.scalars(query if modality is None else query.where(Calibration.modality == modality)).all()


class Threshold(NamedTuple):
    """The thresholds in force for a modality, of reconstruction errors and of distances; at least one is set."""

    calibration_id: int
    threshold: float | None
    distance: float | None
    created_at: datetime


_IN_FORCE = sa.text(
    "SELECT DISTINCT ON (modality) modality, id, threshold, CAST(distances ->> 'threshold' AS float8) AS distance, "
    "created_at FROM calibration WHERE model_id = :model ORDER BY modality, id DESC"
)


def in_force(db: Session | sa.Connection, model_id: int) -> dict[str, Threshold]:
    """The thresholds by modality; a modality that is absent has none."""
    rows = db.execute(_IN_FORCE, {"model": model_id})
    return {row.modality: Threshold(row.id, row.threshold, row.distance, row.created_at) for row in rows}


_GAUSSIANS = sa.text(
    "SELECT id, gaussian FROM calibration WHERE id = ANY(CAST(:ids AS bigint[])) AND gaussian IS NOT NULL"
)


def gaussians(db: Session | sa.Connection, calibration_ids: Sequence[int]) -> dict[int, bytes]:
    """The packed Gaussians from which distances are measured, of those calibrations that have one."""
    return {row.id: row.gaussian for row in db.execute(_GAUSSIANS, {"ids": list(calibration_ids)})}


def modalities(db: Session, images: Sequence[int]) -> dict[int, str]:
    """The modality of each image, as its header or a label table gives it."""
    rows = db.execute(
        sa.text("SELECT id, modality FROM image WHERE id = ANY(CAST(:images AS bigint[]))"), {"images": list(images)}
    )
    return {row.id: row.modality for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which stored images a calibration is made from; None does not filter."""

    modality: str
    operation_id: uuid.UUID | None = None  #: that registered them
    folder: bytes | None = None  #: with which their paths begin
    embedded: bool = False  #: read their embeddings, too


class Scored(NamedTuple):
    """An image that the feature gate may judge."""

    image_id: int
    sop_uid: str
    status: str
    frames: list[float | None]  #: the score of each frame
    embeddings: list[bytes]  #: packed, of each frame, if asked for
    decided: bool  #: released by a person: no threshold changes that


#: The model's encodings of an image `i`, except one on which it has to catch up: they are of earlier bytes.
_STORED = """
    FROM encoding e WHERE e.image_id = i.id AND e.model_id = :model
        AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = e.image_id AND b.model_id = e.model_id)
    ORDER BY e.frame
"""
#: What a `Chosen` selects, with the values of `_choice`.
_CHOSEN = """
    i.modality = :modality
      AND (CAST(:operation AS uuid) IS NULL OR i.operation_id = :operation)
      AND (CAST(:folder AS bytea) IS NULL OR substring(i.path FROM 1 FOR octet_length(:folder)) = :folder)
"""
#: Stopped images are included: the caller decides which of them belong.
_FIELDS = f"""
    SELECT i.id, i.sop_uid, i.status,
           ARRAY(SELECT CAST(e.ood AS float8) {_STORED}) AS frames,
           CASE WHEN :embedded THEN ARRAY(SELECT e.embedding {_STORED}) ELSE '{{}}' END AS embeddings,
           {RELEASED.format("i")} AS decided
    FROM image i
"""
_SCORED = sa.text(
    _FIELDS
    + f"""
    WHERE i.id > :after AND {_CHOSEN}
      AND (i.status = 'encoded' OR (i.status = 'quarantined' AND i.gate = 'features'))
    ORDER BY i.id LIMIT :limit
    """
)


def scored(db: Session, model_id: int, chosen: Chosen, after: int, limit: int) -> list[Scored]:
    """The next images by id. `frames` is empty for an image of whose present bytes this model has no encoding."""
    values = {"model": model_id, "embedded": chosen.embedded, "after": after, "limit": limit}
    return [Scored._make(row) for row in db.execute(_SCORED, _choice(chosen) | values)]


_THESE = sa.text(_FIELDS + "WHERE i.id = ANY(CAST(:images AS bigint[])) ORDER BY i.id")


def these(db: Session, model_id: int, images: Sequence[int]) -> list[Scored]:
    """As `scored`, for these images, with their embeddings."""
    values = {"model": model_id, "images": list(images), "embedded": True}
    return [Scored._make(row) for row in db.execute(_THESE, values)]


def every_scored(db: Session, model_id: int, chosen: Chosen, step: int = 5000) -> Iterator[Scored]:
    after = 0
    while rows := scored(db, model_id, chosen, after, step):
        yield from rows
        after = rows[-1].image_id


class Known(NamedTuple):
    """An image that belongs, with the model's embeddings."""

    digest: bytes
    patient: bytes
    embeddings: list[bytes]  #: of each frame, packed


_FROM_CHOSEN = f" FROM image i JOIN study s ON s.id = i.study_id WHERE {_CHOSEN}"
_FROM_KNOWN = (
    _FROM_CHOSEN
    + f"""
      AND i.status = 'encoded' AND EXISTS (SELECT 1 {_STORED})
    ORDER BY i.digest, i.id LIMIT :most
    """
)
_KNOWN = sa.text(
    f"SELECT i.digest, s.patient_key AS patient, ARRAY(SELECT e.embedding {_STORED}) AS embeddings" + _FROM_KNOWN
)


def known(db: Session, model_id: int, chosen: Chosen, most: int) -> list[Known]:
    """Up to `most` encoded images in the order of their digests: a random choice that is the same each time."""
    return [Known._make(row) for row in db.execute(_KNOWN, _choice(chosen) | {"model": model_id, "most": most})]


_KNOWN_SCORES = sa.text(f"SELECT i.digest, ARRAY(SELECT CAST(e.ood AS float8) {_STORED}) AS frames" + _FROM_KNOWN)


def known_scores(db: Session, model_id: int, chosen: Chosen, most: int) -> list[tuple[bytes, list[float | None]]]:
    """(digest, score of each frame) of up to `most` encoded images, chosen as by `known`."""
    rows = db.execute(_KNOWN_SCORES, _choice(chosen) | {"model": model_id, "most": most})
    return [(row.digest, row.frames) for row in rows]


_STOPPED = sa.text("SELECT count(*)" + _FROM_CHOSEN + "AND i.status = 'quarantined' AND i.gate = 'features'")


def stopped(db: Session, chosen: Chosen) -> int:
    """How many of the chosen images the feature gate has stopped."""
    found: int = db.execute(_STOPPED, _choice(chosen)).scalar_one()
    return found


def _choice(chosen: Chosen) -> dict[str, Any]:
    return {"modality": chosen.modality, "operation": chosen.operation_id, "folder": chosen.folder}


_COUNT = sa.text(
    "SELECT count(*) FROM image WHERE modality = :modality "
    "AND (status = 'encoded' OR (status = 'quarantined' AND gate = 'features'))"
)


def judged_again(db: Session, modality: str) -> int:
    """How many images of this modality a replay looks at."""
    found: int = db.execute(_COUNT, {"modality": modality}).scalar_one()
    return found


def lock_scored(db: Session, model_id: int, chosen: Chosen, after: int, limit: int) -> tuple[list[Scored], int | None]:
    """As `scored`, but locked, with the id of the last image that was read; None where no image is left.

    The images are read again after the lock: one may have changed in the meantime and not be among them any more.
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
    """The modalities of which this model has encoded images."""
    return list(db.execute(_MODALITIES, {"model": model_id}).scalars())


class Ruling(NamedTuple):
    """The status of an image under a calibration, and why."""

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
    """Store the rulings of this calibration on images that the caller has locked."""
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
    """Store by which score, distance and calibration these images were judged; their status stays as it is."""
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
    """Searchable images by modality that no threshold has judged, or, by `vote`, no threshold of distances."""
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
    """Modalities with at least `least` searchable images, and how many, for which this archive has no own thresholds.

    Thresholds from a model's card do not count: they were made without the images of this archive.
    """
    rows = db.execute(_WANTING, {"model": model_id, "least": least})
    return {row[0]: row[1] for row in rows}
