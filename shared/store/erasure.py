"""What Postgres holds of a study or a patient, and its erasure, which leaves only numbers without a meaning."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store import ledger
from shared.store.tables import ROOT, SCANNED, SENT


class Named(NamedTuple):
    """An image or a study by its row and its UID."""

    id: int
    uid: str


_STUDIES = sa.text("SELECT id, uid FROM study WHERE uid = :uid OR patient_key = :patient ORDER BY id FOR UPDATE")
_IMAGES = sa.text(
    "SELECT id, sop_uid FROM image WHERE study_id = ANY(CAST(:studies AS bigint[])) AND status <> 'deleted' "
    "ORDER BY id FOR UPDATE"
)


_STOPPED = sa.text(
    "SELECT id FROM file WHERE study_uid = ANY(CAST(:uids AS text[])) OR patient_key = :patient ORDER BY id FOR UPDATE"
)


class Standing(NamedTuple):
    """The rows that an erasure covers."""

    studies: list[Named]
    images: list[Named]
    stopped: list[int]  #: files that were stopped before they became one of the images


def standing(db: Session, *, study_uid: str | None = None, patient_key: bytes | None = None) -> Standing:
    """The study, or the studies of a patient, with their images and stopped files, all locked.

    A file that was stopped under the UID of such a study belongs to it, whichever patient its header names: the study's
    tombstone refuses it anyway. A worker that encodes or fills in a locked image waits, or is too late.
    """
    studies = [Named._make(row) for row in db.execute(_STUDIES, {"uid": study_uid, "patient": patient_key})]
    images = db.execute(_IMAGES, {"studies": [study.id for study in studies]})
    uids = [study.uid for study in studies] + ([study_uid] if study_uid else [])
    stopped = db.execute(_STOPPED, {"uids": uids, "patient": patient_key}).scalars()
    return Standing(studies, [Named._make(row) for row in images], list(stopped))


_EMPTY_IMAGES = sa.text(
    """
    UPDATE image SET status = 'deleted', sop_uid = 'erased-' || id, series_uid = '', sop_class = '',
        transfer_syntax = '', modality = '', laterality = NULL, view = NULL, view_modifiers = '{}', body_part = '',
        manufacturer = '', presentation_intent = '', rows = 0, columns = 0, frames = 0, digest = '', path = '',
        birads = NULL, density = NULL, pathology = NULL, labels = '{}', gate = NULL, reason = NULL, score = NULL,
        distance = NULL, calibration_id = NULL, last_error = NULL, lease_until = NULL, not_before = NULL,
        settled_at = clock_timestamp(), revision = revision + 1, operation_id = :operation
    WHERE id = ANY(CAST(:images AS bigint[]))
    """
)
_EMPTY_STUDIES = sa.text(
    """
    UPDATE study SET uid = 'erased-' || id, patient_key = '', study_date = NULL
    WHERE id = ANY(CAST(:studies AS bigint[]))
    """
)


#: an instance that a pull did not get has a row without an image, whose path is a URL that names the study
_NOT_PULLED = sa.text(
    "DELETE FROM file f USING unnest(CAST(:places AS bytea[])) AS place "
    "WHERE f.image_id IS NULL AND substring(f.path FOR 4) = 'http'::bytea "
    "AND position(place IN f.path || '/'::bytea) > 0"
)


#: Sent files are ours to remove, also from an earlier place of the store; their digests are kept until the files are
#: unlinked. Scanned files are not ours. Only the row in `file` tells them apart: the path of an image may be that of a
#: scanned copy.
_LEFT = sa.text(
    f"""
    INSERT INTO removal (digest, root)
    SELECT digest, CASE WHEN {SCANNED} THEN ''::bytea ELSE {ROOT} END FROM file
    WHERE (image_id = ANY(CAST(:images AS bigint[])) OR id = ANY(CAST(:files AS bigint[]))) AND {SENT}
    UNION SELECT digest, '' FROM image WHERE id = ANY(CAST(:images AS bigint[])) AND {SENT}
    ON CONFLICT DO NOTHING
    """
)


#: A pull goes on with the other studies that it names. If it names no other, it must ask for none, rather than for all.
_NOT_ASKED = sa.text(
    """
    UPDATE operation SET params = jsonb_set(params, '{query,StudyInstanceUID}', to_jsonb(array_to_string(
        array_replace(string_to_array(params #>> '{query,StudyInstanceUID}', ','), :uid, :nobody), ',')))
    WHERE :uid = ANY(string_to_array(params #>> '{query,StudyInstanceUID}', ','))
    """
)
NOBODY = "2.25.0"  #: a UID that no study has

#: The pull begins its window again; it does not ask for images that exist here.
_NO_PLACE = sa.text(
    "UPDATE operation SET cursor = jsonb_set(cursor, '{after}', '\"\"') WHERE cursor ->> 'after' = :uid"
)


_JOURNAL = sa.text(
    "DELETE FROM arrival a USING file f WHERE f.id = ANY(CAST(:files AS bigint[])) AND f.sop_uid IS NOT NULL "
    "AND a.study_uid = f.study_uid AND a.sop_uid = f.sop_uid"
)


def forget(db: Session, files: Sequence[int], images: Sequence[int] = ()) -> None:
    """Delete the rows of these files and their journal lines.

    The sent ones among these files, and among those of `images`, are to be unlinked.
    """
    db.execute(_LEFT, {"images": list(images), "files": list(files)})
    db.execute(_JOURNAL, {"files": list(files)})
    db.execute(sa.text("DELETE FROM file WHERE id = ANY(CAST(:files AS bigint[]))"), {"files": list(files)})


def empty(db: Session, of: Standing, operation_id: uuid.UUID) -> None:
    """Blank these studies and images; delete all that belongs to them: encodings, thumbnails, files, journal, work."""
    studies, ids = of.studies, [image.id for image in of.images]
    forget(db, of.stopped, ids)
    for table in ("catch_up", "encoding", "thumbnail", "file", "review"):
        db.execute(
            sa.text(f"DELETE FROM {table} WHERE image_id = ANY(CAST(:images AS bigint[]))"),
            {"images": ids},
        )
    db.execute(
        sa.text(
            "DELETE FROM arrival WHERE study_uid = ANY(CAST(:studies AS text[])) "
            "OR image_id = ANY(CAST(:images AS bigint[]))"
        ),
        {"studies": [study.uid for study in studies], "images": ids},
    )
    db.execute(_NOT_PULLED, {"places": [f"/studies/{study.uid}/".encode() for study in studies]})
    for study in studies:
        db.execute(_NOT_ASKED, {"uid": study.uid, "nobody": NOBODY})
        db.execute(_NO_PLACE, {"uid": study.uid})
    db.execute(_EMPTY_IMAGES, {"images": ids, "operation": operation_id})
    db.execute(_EMPTY_STUDIES, {"studies": [study.id for study in studies]})


class Copy(NamedTuple):
    """A point that a generation may still hold."""

    generation_id: int
    collection: str
    open: bool
    point_id: uuid.UUID
    applied: bool


_COPIES = sa.text(
    """
    SELECT g.id, g.collection, g.state = 'open', l.point_id, l.op = 'delete' AND l.state = 'applied'
    FROM image i JOIN ledger l ON l.image_id = i.id JOIN generation g ON g.id = l.generation_id
    WHERE i.operation_id = :operation AND i.status = 'deleted' AND g.purged_at IS NULL ORDER BY g.id
    """
)


def copies(db: Session, operation_id: uuid.UUID) -> list[Copy]:
    """The points of the images that this operation erased, in every generation that is not purged."""
    return [Copy._make(row) for row in db.execute(_COPIES, {"operation": operation_id})]


def delete_again(db: Session, generation_id: int, points: Sequence[uuid.UUID]) -> None:
    """The deletion of these points is due again: the index still holds them, although the ledger says otherwise."""
    db.execute(
        sa.text(
            f"UPDATE ledger SET op = 'delete', {ledger.AGAIN} "
            "WHERE generation_id = :generation AND point_id = ANY(CAST(:points AS uuid[]))"
        ),
        {"generation": generation_id, "points": list(points)},
    )


class Known(NamedTuple):
    """An image or a stopped file by its row, with everything that a tombstone may name."""

    id: int
    sop_uid: str
    study_uid: str
    patient_key: bytes


_KNOWN = sa.text(
    "SELECT i.id, i.sop_uid, s.uid, s.patient_key FROM image i JOIN study s ON s.id = i.study_id "
    "WHERE i.status <> 'deleted' AND i.id > :after ORDER BY i.id LIMIT :limit"
)


def known(db: Session, after: int, limit: int) -> list[Known]:
    """The next images by id that are not erased."""
    return [Known._make(row) for row in db.execute(_KNOWN, {"after": after, "limit": limit})]


def stopped(db: Session) -> list[Known]:
    """Every stopped file whose patient is known."""
    statement = "SELECT id, coalesce(sop_uid, ''), study_uid, patient_key FROM file WHERE patient_key IS NOT NULL"
    return [Known._make(row) for row in db.execute(sa.text(statement))]
