"""PNG and JPEG pictures: only a label table names their study and patient, and it may come after them, or change.

Until then a picture is a study of its own, with a placeholder patient. DICOM files pass through here unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from shared.pipeline.identity import Candidate, Found
from shared.store import studies
from shared.store.studies import Incoming, Known, Study


def seen_before(incoming: Incoming, standing: Mapping[str, Known]) -> bool:
    """Whether this is a known picture, scanned without its table: the table's earlier values still hold."""
    known = standing.get(incoming.header.sop_instance_uid)
    return not incoming.described and known is not None and known.digest == incoming.digest


def placed(
    db: Session, candidates: Sequence[Candidate], standing: dict[str, Known]
) -> tuple[list[Candidate], dict[str, Study], Sequence[str]]:
    """Create the studies that are missing, and bring each picture, also a known one, to its study and patient.

    Returns the candidates so placed, the studies by UID, and the UIDs of the new ones, for `studies.drop_empty`.
    `standing`, the known images by UID, follows.
    """
    candidates = [(file, _in_known_study(file, incoming, standing)) for file, incoming in candidates]
    owners, created = studies.ensure(db, [incoming for _, incoming in candidates])
    _assign_patients(db, [incoming for _, incoming in candidates], standing, owners)
    candidates = [(file, _of_its_study(incoming, owners)) for file, incoming in candidates]
    _move(db, [incoming for _, incoming in candidates], standing, owners)
    return candidates, owners, created


def _in_known_study(file: Found, incoming: Incoming, standing: Mapping[str, Known]) -> Incoming:
    """Return a known picture whose table names no study as one of the study that it has; any other file as it is."""
    known = standing.get(incoming.header.sop_instance_uid)
    if known is None or file.row is None or file.row.study or not incoming.placeholder_patient_keys:
        return incoming
    return replace(incoming, header=replace(incoming.header, study_instance_uid=known.study_uid))


def _assign_patients(
    db: Session, incoming: Sequence[Incoming], standing: dict[str, Known], owners: dict[str, Study]
) -> None:
    """Assign a patient to studies of pictures that had none until a label table named one."""
    for one in incoming:
        uid, known = one.header.study_instance_uid, standing.get(one.header.sop_instance_uid)
        study = owners[uid]
        free = known is None or known.patient_key in one.placeholder_patient_keys
        if free and study.patient_key != one.patient_key and study.patient_key in one.placeholder_patient_keys:
            patient = studies.assign_patient(db, study.id, study.patient_key, one)
            owners[uid] = Study(study.id, patient)
            of_study = [image for image in standing.values() if image.study_uid == uid]
            standing |= {image.sop_uid: replace(image, patient_key=patient) for image in of_study}


def _of_its_study(incoming: Incoming, owners: Mapping[str, Study]) -> Incoming:
    """Return a picture whose table names no patient as one of its study's patient; any other as it is."""
    if incoming.patient_key not in incoming.placeholder_patient_keys:
        return incoming
    return replace(incoming, patient_key=owners[incoming.header.study_instance_uid].patient_key)


def _move(db: Session, incoming: Sequence[Incoming], standing: dict[str, Known], owners: Mapping[str, Study]) -> None:
    """Move pictures that were studies of their own into the ones that a label table names."""
    for one in incoming:
        uid, known = one.header.study_instance_uid, standing.get(one.header.sop_instance_uid)
        study = owners[uid]
        own = known is not None and known.patient_key in one.placeholder_patient_keys
        if known is not None and own and known.study_uid != uid and study.patient_key == one.patient_key:
            studies.move(db, known, study.id)
            standing[known.sop_uid] = replace(known, study_uid=uid, patient_key=study.patient_key)
