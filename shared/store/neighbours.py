"""The reads of the search path: a study's vectors, the rows behind a list of points, and what is hidden.

Statements compare with a single value where they can: for an array Postgres plans anew each time, which takes 0.2 to
0.3 ms, longer than the statement.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from shared.store.session import rows
from shared.store.tables import INDEXABLE

_VECTORS: Final = f"""
    SELECT i.id, i.sop_uid, i.laterality, i.view, e.frame, e.embedding, e.code, s.id AS study_id,
           s.uid AS study_uid, s.patient_key
    FROM study s
    JOIN image i ON i.study_id = s.id AND {INDEXABLE}
    JOIN encoding e ON e.image_id = i.id AND e.model_id = %(model)s
    WHERE s.uid = %(uid)s
    ORDER BY i.view, i.laterality, i.sop_uid, e.frame
    """


@dataclass(frozen=True, slots=True)
class QueryRow:
    image_id: int
    sop_uid: str
    laterality: str | None
    view: str | None
    frame: int
    embedding: bytes
    code: bytes | None
    study_id: int
    study_uid: str
    patient_key: bytes


def vectors(connection: sa.Connection, study_uids: Sequence[str], model_id: int) -> list[QueryRow]:
    """The stored vectors of these studies, in the given order, each study once."""
    return [
        QueryRow(*row)
        for uid in dict.fromkeys(study_uids)
        for row in rows(connection, _VECTORS, {"uid": uid, "model": model_id})
    ]


def exists(connection: sa.Connection, study_uid: str) -> bool:
    """Whether the study exists and has an image that is not erased."""
    return bool(
        connection.execute(
            sa.text(
                "SELECT EXISTS (SELECT 1 FROM study s JOIN image i ON i.study_id = s.id "
                "WHERE s.uid = :uid AND i.status <> 'deleted')"
            ),
            {"uid": study_uid},
        ).scalar_one()
    )


_BEHIND: Final = f"""
    SELECT l.point_id, l.frame, i.id, i.sop_uid, i.modality, i.laterality, i.view, i.birads, i.density, i.pathology,
           s.id AS study_id, s.uid AS study_uid, s.study_date
    FROM ledger l
    JOIN image i ON i.id = l.image_id AND {INDEXABLE}
    JOIN study s ON s.id = i.study_id
    WHERE l.generation_id = %(generation)s AND l.point_id = ANY(%(points)s) AND l.op = 'upsert'
      AND l.applied_at IS NOT NULL
      AND (%(as_of)s::timestamptz IS NULL OR coalesce(i.settled_at, i.received_at) <= %(as_of)s)
    """


class HitRow(NamedTuple):
    """The row behind a point; a named tuple, because a query makes dozens of them."""

    point_id: uuid.UUID
    frame: int
    image_id: int
    sop_uid: str
    modality: str
    laterality: str | None
    view: str | None
    birads: int | None
    density: str | None
    pathology: str | None
    study_id: int
    study_uid: str
    study_date: date | None


def behind(
    connection: sa.Connection, generation_id: int, points: Sequence[uuid.UUID], as_of: datetime | None = None
) -> dict[uuid.UUID, HitRow]:
    """The rows of the points that may be shown. A point without a row is an orphan, erased, or newer than `as_of`.

    Nor is a point shown that a projector has written but not yet marked as applied: the generation that is published
    next may lack such a point for a moment, and must not lack one that a search has shown.
    """
    values: dict[str, Any] = {"generation": generation_id, "points": list(points), "as_of": as_of}
    return {row[0]: HitRow._make(row) for row in rows(connection, _BEHIND, values)}


_EMBEDDINGS: Final = """
    SELECT l.point_id, e.embedding
    FROM ledger l JOIN encoding e ON e.image_id = l.image_id AND e.frame = l.frame AND e.model_id = %(model)s
    WHERE l.generation_id = %(generation)s AND l.point_id = ANY(%(points)s) AND l.op = 'upsert'
      AND l.applied_at IS NOT NULL
    """


def embeddings(
    connection: sa.Connection, generation_id: int, model_id: int, points: Sequence[uuid.UUID]
) -> dict[uuid.UUID, bytes]:
    """The stored embeddings of these points, without those that may not be shown (see `behind`)."""
    values = {"generation": generation_id, "model": model_id, "points": list(points)}
    return dict(rows(connection, _EMBEDDINGS, values))


_WHOSE = sa.text(
    """
    SELECT s.id, s.patient_key, i.id FROM image i JOIN study s ON s.id = i.study_id WHERE i.sop_uid = :sop
    UNION ALL SELECT id, patient_key, NULL FROM study WHERE uid = :study
    ORDER BY 3 NULLS LAST LIMIT 1
    """
)


def whose(connection: sa.Connection, sop_uid: str, study_uid: str) -> tuple[int, bytes, int | None] | None:
    """(study id, patient key, image id or None) of an external image, if the archive has it or its study."""
    row = connection.execute(_WHOSE, {"sop": sop_uid, "study": study_uid}).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


#: Encoded images, and images that wait to be encoded again: searches find those by their previous encoding.
_HIDDEN: Final = f"""
    SELECT count(DISTINCT s.id), count(*)
    FROM study s JOIN image i ON i.study_id = s.id AND {INDEXABLE}
        AND (i.status = 'encoded' OR (SELECT l.image_id FROM ledger l WHERE l.image_id = i.id AND l.op = 'upsert'
                                      AND l.applied_at IS NOT NULL LIMIT 1) IS NOT NULL)
    WHERE """
_OF_PATIENT: Final = _HIDDEN + "s.patient_key = %(value)s"
_OF_STUDY: Final = _HIDDEN + "s.id = %(value)s"
_OF_IMAGES: Final = _HIDDEN + "i.id = ANY(%(value)s)"


def hidden(
    connection: sa.Connection,
    *,
    patients: Sequence[bytes] = (),
    study_id: int | None = None,
    image_ids: Sequence[int] = (),
) -> tuple[int, int]:
    """How many studies and images the widest of these exclusions hides.

    A patient's images include the study's, and a study's images include `image_ids`; so one indexed look-up is enough,
    or one for each patient.
    """
    value: int | list[int]
    if patients:
        counts = [rows(connection, _OF_PATIENT, {"value": key})[0] for key in patients]
        return sum(row[0] for row in counts), sum(row[1] for row in counts)
    if study_id is not None:
        statement, value = _OF_STUDY, study_id
    elif image_ids:
        statement, value = _OF_IMAGES, list(image_ids)
    else:
        return 0, 0
    ((studies, images),) = rows(connection, statement, {"value": value})
    return studies, images
