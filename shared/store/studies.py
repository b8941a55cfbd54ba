"""Studies and the registration of images under them."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import LOST
from shared.store import ledger
from shared.store.images import AGAIN
from shared.store.session import enqueue
from shared.store.tables import ENCODED_REVISION
from shared.types import Header, Job, Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One image to register: its header, the patient's pseudonym, and which bytes."""

    header: Header
    patient_key: bytes
    digest: bytes
    path: bytes
    labels: Labels | None  #: None: no labels are known, and the stored ones stay
    by_table: bool = False  #: a row of a label table is about this image
    described: bool = True  #: a header or a table says what it shows; False: a picture that no table names
    #: of a picture that a table names: the placeholder patients that it may have had before
    placeholder_patient_keys: tuple[bytes, ...] = ()
    sender: str = ""  #: source and name of the sender of a sent file
    held_by: str = ""  #: the admission rule that holds it for a person to decide


def told_of(new: Incoming, before: tuple[object, ...]) -> tuple[object, ...]:
    """What a label table may change of an image whose bytes stay; without new labels those in `before` are kept."""
    h, x = new.header, new.labels
    labels = before[:4] if x is None else (x.birads, x.density, x.pathology, dict(x.extra))
    return (*labels, h.view, h.laterality, h.modality)


@dataclass(frozen=True, slots=True)
class Known:
    """An image that exists already."""

    id: int
    sop_uid: str
    digest: bytes
    path: bytes
    status: str
    patient_key: bytes
    study_uid: str
    told: tuple[object, ...]  #: what a label table may change, see `told_of`
    sender: str = ""  #: who sent these bytes
    lost: bool = False  #: as `WITHOUT_FILE`


class Study(NamedTuple):
    id: int
    patient_key: bytes


def ensure(db: Session, incoming: Sequence[Incoming]) -> tuple[dict[str, Study], Sequence[str]]:
    """Create the studies that are missing; the first writer sets the patient.

    Returns the studies by UID, and the UIDs of the new ones, for `drop_empty`.

    The studies are locked, so that none is assigned a patient while another patient's image is registered in it.

    A study without a date gets that of the first file of its patient that has one.
    """
    first = {i.header.study_instance_uid: i for i in reversed(incoming)}
    ordered = sorted(first)  # one order for everybody: no deadlock
    created = db.execute(
        sa.text(
            "INSERT INTO study (uid, patient_key, study_date) SELECT * FROM unnest(CAST(:uids AS text[]), "
            "CAST(:keys AS bytea[]), CAST(:dates AS date[])) "
            "ON CONFLICT (uid) DO UPDATE SET study_date = study.study_date WHERE false RETURNING uid"  # locks the row
        ),
        {
            "uids": ordered,
            "keys": [first[u].patient_key for u in ordered],
            "dates": [first[u].header.study_date for u in ordered],
        },
    )
    new = created.scalars().all()
    rows = db.execute(
        sa.text(
            "SELECT uid, id, patient_key, study_date FROM study WHERE uid = ANY(CAST(:uids AS text[])) ORDER BY uid"
        ),
        {"uids": ordered},
    ).all()
    dates = {
        (i.header.study_instance_uid, i.patient_key): i.header.study_date
        for i in reversed(incoming)
        if i.header.study_date
    }
    for row in rows:
        if row.study_date is None and (found := dates.get((row.uid, row.patient_key))):
            redate(db, row.uid, found)
    return {row.uid: Study(row.id, row.patient_key) for row in rows}, new


_EMPTY = sa.text(
    "DELETE FROM study s WHERE uid = ANY(CAST(:uids AS text[])) "
    "AND NOT EXISTS (SELECT FROM image WHERE study_id = s.id)"
)


def drop_empty(db: Session, new: Sequence[str]) -> None:
    """Delete those of these studies, created or locked by this transaction, that have no image.

    Such a study would have the patient of a stopped file, and stop the files of its real one.
    """
    if new:
        db.execute(_EMPTY, {"uids": list(new)})


_LOCK = sa.text(
    "SELECT id FROM image WHERE id = ANY(CAST(:ids AS bigint[])) OR sop_uid = ANY(CAST(:sops AS text[])) "
    "ORDER BY id FOR UPDATE"
)
_RETOLD = sa.text(
    """
    SELECT i.id FROM image i JOIN study s ON s.id = i.study_id
    JOIN unnest(CAST(:uids AS text[]), CAST(:dates AS date[]), CAST(:keys AS bytea[])) AS u(uid, date, key)
        ON u.uid = s.uid
    WHERE (u.date IS NOT NULL AND u.date IS DISTINCT FROM s.study_date) OR u.key <> s.patient_key
    """
)


def lock(db: Session, incoming: Sequence[Incoming]) -> None:
    """Lock, in one order, the existing images that the files name, and those that change with their study.

    These are the images of a study that has another date or patient than a file. `known` then waits for none: a
    statement that waits for an image would join its new row with the study as it was before.
    """
    headers = [i.header for i in incoming]
    told = {
        "uids": [h.study_instance_uid for h in headers],
        "dates": [h.study_date for h in headers],
        "keys": [i.patient_key for i in incoming],
    }
    others = list(db.execute(_RETOLD, told).scalars())
    db.execute(_LOCK, {"ids": others, "sops": [h.sop_instance_uid for h in headers]})


_TOLD = f"UPDATE ledger SET revision = changed.revision, {ledger.AGAIN}"
_OF_CHANGED = "FROM changed WHERE ledger.image_id = changed.id AND ledger.op = 'upsert'"
#: every generation is to write the new description of the images that a preceding CTE names `changed`
_TELL = f"{_TOLD} {_OF_CHANGED}"
#: likewise; until that is applied, no search shows the images
_HIDE = f"{_TOLD}, applied_at = NULL {_OF_CHANGED}"

_REDATE = sa.text(
    f"""
    WITH dated AS (UPDATE study s SET study_date = :date WHERE uid = :uid
        AND study_date IS DISTINCT FROM CAST(:date AS date)
        AND NOT (:of_pictures AND EXISTS (SELECT FROM image WHERE study_id = s.id AND sop_class <> '')) RETURNING id),
    changed AS (UPDATE image SET revision = revision + 1 WHERE study_id = (SELECT id FROM dated) AND status <> 'deleted'
        RETURNING id, {ENCODED_REVISION} AS revision)
    {_TELL}
    """
)


def redate(db: Session, study_uid: str, study_date: date, *, of_pictures: bool = False) -> None:
    """Set the study's date; if that changes it, every generation is to update each image of the study.

    With `of_pictures`, a study that holds DICOM images keeps the date of their headers.
    """
    values = {"uid": study_uid, "date": study_date, "of_pictures": of_pictures}
    if db.execute(_REDATE, values).rowcount:  # type: ignore[attr-defined]
        enqueue(db, Job.PROJECT)


_ASSIGN = sa.text(
    f"""
    WITH named AS (UPDATE study SET patient_key = :patient WHERE id = :study AND patient_key = :placeholder
        AND NOT EXISTS (SELECT FROM image WHERE study_id = :study AND sop_class <> '') RETURNING id),
    changed AS (UPDATE image SET revision = revision + 1 WHERE study_id = (SELECT id FROM named)
        AND status <> 'deleted' RETURNING id, {ENCODED_REVISION} AS revision)
    {_HIDE}
    """
)
_OWNER = sa.text("SELECT patient_key FROM study WHERE id = :study")


def assign_patient(db: Session, study_id: int, placeholder: bytes, new: Incoming) -> bytes:
    """Assign a study with a placeholder patient to this file's patient, if no other was first; returns its patient.

    A study that holds DICOM images keeps the patient of their headers. Every generation is to update the images. Until
    then no search shows them: the index would take them for images of another patient than the query's.
    """
    db.execute(_ASSIGN, {"study": study_id, "placeholder": placeholder, "patient": new.patient_key})
    owner: bytes = db.execute(_OWNER, {"study": study_id}).scalar_one()
    if owner == new.patient_key and new.header.study_date is not None:
        redate(db, new.header.study_instance_uid, new.header.study_date)
    enqueue(db, Job.PROJECT)
    return owner


_MOVE = sa.text(
    f"""
    WITH changed AS (UPDATE image SET study_id = :study, revision = revision + 1 WHERE id = :id
        RETURNING id, {ENCODED_REVISION} AS revision)
    {_HIDE}
    """
)


#: A statement of its own: the next one sees what has come into the study meanwhile.
_LEAVE = sa.text("SELECT FROM study WHERE uid = :uid FOR UPDATE")


def move(db: Session, known: Known, study_id: int) -> None:
    """Move an image from its placeholder study into this one; it is updated and hidden as by `assign_patient`."""
    db.execute(_MOVE, {"id": known.id, "study": study_id})
    db.execute(_LEAVE, {"uid": known.study_uid})
    drop_empty(db, [known.study_uid])
    enqueue(db, Job.PROJECT)


_INSERT = sa.text(
    """
    INSERT INTO image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, laterality, view,
        view_modifiers, body_part, manufacturer, presentation_intent, rows, columns, frames, digest, path, birads,
        density, pathology, labels, operation_id)
    SELECT u.sop_uid, u.study_id, u.series_uid, u.sop_class, u.transfer_syntax, u.modality, u.laterality, u.view,
        ARRAY(SELECT jsonb_array_elements_text(CAST(u.modifiers AS jsonb))), u.body_part, u.manufacturer, u.intent,
        u.rows, u.columns, u.frames, u.digest, u.path, u.birads, u.density, u.pathology, CAST(u.labels AS jsonb),
        CAST(:operation AS uuid)
    FROM unnest(CAST(:sop_uid AS text[]), CAST(:study_id AS bigint[]), CAST(:series_uid AS text[]),
        CAST(:sop_class AS text[]), CAST(:transfer_syntax AS text[]), CAST(:modality AS text[]),
        CAST(:laterality AS text[]), CAST(:view AS text[]), CAST(:modifiers AS text[]), CAST(:body_part AS text[]),
        CAST(:manufacturer AS text[]), CAST(:intent AS text[]), CAST(:rows AS int[]), CAST(:columns AS int[]),
        CAST(:frames AS int[]), CAST(:digest AS bytea[]), CAST(:path AS bytea[]), CAST(:birads AS int[]),
        CAST(:density AS text[]), CAST(:pathology AS text[]), CAST(:labels AS text[]))
        AS u(sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, laterality, view, modifiers,
             body_part, manufacturer, intent, rows, columns, frames, digest, path, birads, density, pathology, labels)
    ON CONFLICT (sop_uid) DO NOTHING
    RETURNING id, sop_uid
    """
)


def _columns(incoming: Sequence[Incoming], studies: Mapping[str, Study]) -> dict[str, list[object]]:
    headers, labels = [i.header for i in incoming], [i.labels or Labels() for i in incoming]
    return {
        "sop_uid": [h.sop_instance_uid for h in headers],
        "study_id": [studies[h.study_instance_uid].id for h in headers],
        "series_uid": [h.series_instance_uid for h in headers],
        "sop_class": [h.sop_class_uid for h in headers],
        "transfer_syntax": [h.transfer_syntax_uid for h in headers],
        "modality": [h.modality for h in headers],
        "laterality": [h.laterality for h in headers],
        "view": [h.view for h in headers],
        "modifiers": [json.dumps(h.view_modifiers) for h in headers],
        "body_part": [h.body_part for h in headers],
        "manufacturer": [h.manufacturer for h in headers],
        "intent": [h.presentation_intent for h in headers],
        "rows": [h.rows for h in headers],
        "columns": [h.columns for h in headers],
        "frames": [h.frames for h in headers],
        "digest": [i.digest for i in incoming],
        "path": [i.path for i in incoming],
        "birads": [x.birads for x in labels],
        "density": [x.density for x in labels],
        "pathology": [x.pathology for x in labels],
        "labels": [json.dumps(dict(x.extra)) for x in labels],
    }


def insert(
    db: Session, incoming: Sequence[Incoming], studies: Mapping[str, Study], operation_id: uuid.UUID | None
) -> dict[str, int]:
    """New images are `received`; returns the ids of those that were new, by SOP Instance UID."""
    if not incoming:
        return {}
    ordered = sorted(incoming, key=lambda i: i.header.sop_instance_uid)
    rows = db.execute(_INSERT, _columns(ordered, studies) | {"operation": operation_id})
    return {row.sop_uid: row.id for row in rows}


#: Condition on an image `i`: it failed, for at least one model, because its bytes were gone or changed (:lost, `LOST`),
#: or its file could not be read when it was last looked at.
WITHOUT_FILE = """((i.status = 'failed' AND i.reason = ANY(CAST(:lost AS text[]))) OR EXISTS (SELECT 1 FROM catch_up b
    WHERE b.image_id = i.id AND b.state = 'failed' AND b.reason = ANY(CAST(:lost AS text[])))
    OR EXISTS (SELECT 1 FROM file f WHERE f.path_digest = sha256(i.path) AND f.outcome = 'failed'))"""


def known(db: Session, sop_uids: Sequence[str]) -> dict[str, Known]:
    """The images that exist already, by SOP Instance UID, locked in one order."""
    rows = db.execute(
        sa.text(
            "SELECT i.id, i.sop_uid, i.digest, i.path, i.status, s.patient_key, s.uid, i.birads, i.density, "
            "i.pathology, i.labels, i.view, i.laterality, i.modality, "
            "(SELECT a.source || ':' || a.sender FROM arrival a "
            "WHERE a.image_id = i.id AND a.outcome = 'taken' AND a.sender <> '' ORDER BY a.id DESC LIMIT 1) AS sender, "
            f"{WITHOUT_FILE} AS lost "
            "FROM image i JOIN study s ON s.id = i.study_id "
            "WHERE i.sop_uid = ANY(CAST(:uids AS text[])) ORDER BY i.id FOR UPDATE OF i"
        ),
        {"uids": list(sop_uids), "lost": sorted(LOST)},
    )
    return {
        r.sop_uid: Known(
            r.id, r.sop_uid, r.digest, r.path, r.status, r.patient_key, r.uid, tuple(r[7:-2]), r.sender or "", r.lost
        )
        for r in rows
    }


_DESCRIBE = """
    series_uid = :series_uid, sop_class = :sop_class, transfer_syntax = :transfer_syntax, modality = :modality,
    laterality = :laterality, view = :view,
    view_modifiers = ARRAY(SELECT jsonb_array_elements_text(CAST(:modifiers AS jsonb))), body_part = :body_part,
    manufacturer = :manufacturer, presentation_intent = :intent, rows = :rows, columns = :columns,
    frames = :frames, birads = CASE WHEN :labelled THEN CAST(:birads AS int) ELSE birads END,
    density = CASE WHEN :labelled THEN :density ELSE density END,
    pathology = CASE WHEN :labelled THEN :pathology ELSE pathology END,
    labels = CASE WHEN :labelled THEN CAST(:labels AS jsonb) ELSE labels END,
    revision = revision + 1, operation_id = :operation
"""

#: The encodings of a quarantined image are deleted, so that no build includes it before it is judged again.
_REPLACE = sa.text(
    "WITH stopped AS (DELETE FROM encoding WHERE image_id = :id "
    "AND (SELECT status FROM image WHERE id = :id) = 'quarantined') "
    f"UPDATE image SET {_DESCRIBE}, digest = :digest, path = :path, {AGAIN} WHERE id = :id"
)


def replace(db: Session, image_id: int, new: Incoming, operation_id: uuid.UUID | None) -> None:
    """Give the image other bytes: a new revision, due for encoding; the old one stays searchable until then."""
    db.execute(_REPLACE, _one(image_id, new, operation_id))


def hold(db: Session, image_id: int, gate: str, reason: str) -> None:
    """Quarantine an image whose bytes were just registered, until a person decides on it."""
    db.execute(
        sa.text(
            "UPDATE image SET status = 'quarantined', gate = :gate, reason = :reason, settled_at = clock_timestamp() "
            "WHERE id = :id AND status = 'received'"
        ),
        {"id": image_id, "gate": gate, "reason": reason},
    )


_REDESCRIBE = sa.text(
    f"""
    WITH changed AS (UPDATE image SET {_DESCRIBE} WHERE id = :id RETURNING id, {ENCODED_REVISION} AS revision)
    {_TELL}
    """
)


def redescribe(db: Session, image_id: int, new: Incoming, operation_id: uuid.UUID | None) -> None:
    """Give the same bytes another description: every generation is to update the image, no pixel is read.

    While other bytes wait to be encoded, the update has the revision before theirs (see `ledger.stored`).
    """
    db.execute(_REDESCRIBE, _one(image_id, new, operation_id))


def _one(image_id: int, new: Incoming, operation_id: uuid.UUID | None) -> dict[str, object]:
    columns = _columns([new], {new.header.study_instance_uid: Study(0, b"")})
    one = {name: values[0] for name, values in columns.items()}
    return one | {"id": image_id, "operation": operation_id, "labelled": new.labels is not None}
