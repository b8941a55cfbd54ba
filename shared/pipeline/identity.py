"""Identity: which image an inspected file is, of which study and patient, by its header and a label table's row."""

import hmac
from dataclasses import dataclass, replace

from shared.datasets.folder import Row
from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.pseudonym import patient_key
from shared.imaging.reasons import Reason, failed
from shared.store.arrivals import Origin
from shared.store.files import Seen
from shared.store.studies import Incoming
from shared.types import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One inspected file."""

    seen: Seen
    inspected: Inspected | Rejected
    row: Row | None = None
    stamp: bytes | None = None
    expects: tuple[str, ...] = ()  #: SOP Instance, Study Instance and SOP Class UID that a sender announced


Candidate = tuple[Found, Incoming]  #: a file, and the image that it would be


def incoming_of(file: Found, secret: bytes, origin: Origin) -> Incoming:
    """Return the image to register.

    Raises: `Rejected` for a file that cannot be read, or with other UIDs than its sender announced.
    """
    if isinstance(file.inspected, Rejected):
        raise file.inspected
    header = identify(file.inspected, file.row, secret)
    uids = (header.sop_instance_uid, header.study_instance_uid, header.sop_class_uid)
    announced = zip(file.expects, uids, strict=False)  # senders may announce the first ones only
    if any(said and said != is_ for said, is_ in announced):
        raise failed(Reason.UIDS_DIFFER)
    return Incoming(
        header=header,
        patient_key=key_of(header, secret),
        digest=file.inspected.digest,
        path=file.seen.path,
        labels=file.row.labels if file.row is not None else None,
        by_table=file.row is not None,
        described=file.row is not None or file.inspected.kind == "dicom",
        placeholder_patient_keys=()
        if file.row is None or file.inspected.kind == "dicom"
        else _placeholder_patient_keys(file.inspected, header, secret),
        sender=f"{origin.source}:{origin.sender}" if origin.sender else "",
    )


def _placeholder_patient_keys(picture: Inspected, named: Header, secret: bytes) -> tuple[bytes, ...]:
    """Return the keys that stand for a picture's patient: without any table, and with one that names only its study."""
    return tuple(key_of(replace(header, patient_id=""), secret) for header in (picture.header, named))


def key_of(header: Header, secret: bytes) -> bytes:
    """The pseudonym of the header's patient."""
    return patient_key(
        secret, header.issuer_of_patient_id, header.patient_id, study_instance_uid=header.study_instance_uid
    )


def identify(inspected: Inspected, row: Row | None, secret: bytes) -> Header:
    """Return the header, with the values of its row in a label table.

    A plain image has its study and patient from the table alone. A DICOM file keeps its header, to which the row adds a
    missing side, view or date; a row of a published set takes precedence over it.
    """
    header = inspected.header
    if row is None:
        return header
    changes: dict[str, object] = {
        name: value for name in ("laterality", "view", "study_date") if (value := getattr(row, name))
    }
    if inspected.kind == "dicom" and not row.identity:
        missing = {name: value for name, value in changes.items() if getattr(header, name) is None}
        return replace(header, **missing)  # type: ignore[arg-type]  # the names above are fields of Header
    changes |= {name: value for name, value in (("modality", row.modality), ("patient_id", row.patient)) if value}
    if row.patient:
        changes["issuer_of_patient_id"] = ""
    if row.study:
        changes["study_instance_uid"] = study_uid(row.study, secret)
    return replace(header, **changes)  # type: ignore[arg-type]  # the names above are fields of Header


def study_uid(name: str, secret: bytes) -> str:
    """Return the UID of a study that a table names: the name if it is a UID, else a keyed hash of it."""
    parts = name.split(".")
    numbers = name.isascii() and all(p.isdigit() and (p == "0" or p[0] != "0") for p in parts)
    if len(name) <= 64 and len(parts) > 2 and numbers:
        return name
    return f"2.25.{int.from_bytes(hmac.digest(secret, name.encode(), 'sha256')[:15])}"
