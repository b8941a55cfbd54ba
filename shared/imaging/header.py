"""The header fields that are kept: the allow-list `shared.types.Header`, cleaned and capped."""

import uuid
from datetime import date

from shared.imaging import views
from shared.imaging.answers import MOST
from shared.imaging.read import Opened, attribute, clean, number, text
from shared.imaging.reasons import Reason, failed
from shared.types import Header, valid_uid

_NAMES = uuid.UUID("5f5a3f0e-95a5-5b61-8a05-0e3d0f6b7a11")


def stable_uid(*parts: str) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) that depends only on `parts`."""
    return f"2.25.{uuid.uuid5(_NAMES, '/'.join(parts)).int}"


def header_of(opened: Opened) -> Header:
    """Return the header. Raises: `Rejected` (failed) if the image or its study has no valid UID."""
    ds = opened.dataset
    sop, study = _identity(opened, "SOPInstanceUID"), _identity(opened, "StudyInstanceUID")
    series = text(ds, "SeriesInstanceUID", 65)
    frames = max(_count(opened, "NumberOfFrames"), 1)
    return Header(
        sop_instance_uid=sop,
        study_instance_uid=study,
        # a missing series UID does not exclude the image: such images of one study share a generated UID
        series_instance_uid=series if valid_uid(series) else stable_uid("series", study),
        sop_class_uid=text(ds, "SOPClassUID"),
        transfer_syntax_uid=clean(opened.transfer_syntax),
        modality=text(ds, "Modality", 16).upper(),
        laterality=views.laterality(ds),
        view=views.view(ds),
        view_modifiers=views.view_modifiers(ds),
        study_date=_date(text(ds, "StudyDate", 10)),
        body_part=text(ds, "BodyPartExamined", 32).upper(),
        manufacturer=text(ds, "Manufacturer"),
        presentation_intent=text(ds, "PresentationIntentType", 20).upper(),
        image_type=_image_type(opened, frames),
        photometric=text(ds, "PhotometricInterpretation", 16),
        rows=_count(opened, "Rows"),
        columns=_count(opened, "Columns"),
        frames=frames,
        bits_stored=_count(opened, "BitsStored"),
        implant=views.implant(ds),
        burned_in={"YES": True, "NO": False}.get(text(ds, "BurnedInAnnotation").upper()),
        patient_id=text(ds, "PatientID"),
        issuer_of_patient_id=text(ds, "IssuerOfPatientID"),
    )


def _identity(opened: Opened, keyword: str) -> str:
    value = text(opened.dataset, keyword, 65)
    if not value:
        raise failed(Reason.MISSING_UID)
    if not valid_uid(value):
        raise failed(Reason.INVALID_UID)
    return value


def _count(opened: Opened, keyword: str) -> int:
    """Return the number, clamped to the range of a database column; `geometry_of` checks it before decoding."""
    return min(max(number(opened.dataset, keyword) or 0, 0), MOST)


def _date(value: str) -> date | None:
    digits = value.replace(".", "")
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


def _image_type(opened: Opened, frames: int) -> tuple[str, ...]:
    value = attribute(opened.dataset, "ImageType")
    words = [value] if isinstance(value, str) else list(value or ())
    kept = [clean(str(word), 16).upper() for word in words[:8]]
    return (*kept, *views.synthetic_marks(opened.dataset, frames))


def plain_header(digest: bytes, *, kind: str, rows: int, columns: int, bits: int, photometric: str) -> Header:
    """Return a header for a PNG or JPEG, with UIDs made from the digest: equal bytes are the same image in any folder.

    A label table assigns the picture to a study and a patient; without a table, each picture is its own study.
    """
    name = digest.hex()
    return Header(
        sop_instance_uid=stable_uid("instance", name),
        study_instance_uid=stable_uid("study", name),
        series_instance_uid=stable_uid("series", name),
        transfer_syntax_uid="",
        modality="OT",
        image_type=(kind.upper(),),
        photometric=photometric,
        rows=rows,
        columns=columns,
        bits_stored=bits,
    )
