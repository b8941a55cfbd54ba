"""The patient as a keyed pseudonym: one patient has one key, which cannot be reversed without the secret.

An unkeyed hash of a seven-digit record number can be reversed in seconds, so this module offers none.
"""

import hmac

from shared.errors import Invalid

KEY_BYTES = 32


def patient_key(secret: bytes, issuer: str, patient_id: str, *, study_instance_uid: str = "") -> bytes:
    """Return the 16-byte pseudonym of the patient.

    Without a patient ID the study stands for the patient, so that different patients never merge.

    Raises:
        Invalid: the secret is shorter than 32 bytes, or there is neither a patient ID nor a study UID.

    Source: RFC 2104, HMAC-SHA-256, truncated to 128 bits.
    """
    if len(secret) < KEY_BYTES:
        raise Invalid(f"the pseudonym key must have at least {KEY_BYTES} bytes")
    patient_id = patient_id.strip()
    if patient_id:
        parts = ("patient", issuer.strip(), patient_id)
    elif study_instance_uid:
        parts = ("study", "", study_instance_uid)
    else:
        raise Invalid("a pseudonym needs a patient ID or a study UID")
    # length prefixes: two different pairs of issuer and ID cannot give the same message
    message = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)
    return hmac.digest(secret, message, "sha256")[:16]


def patient_number(key: bytes) -> int:
    """Return a 63-bit number for vector payloads; it fits a signed 64-bit integer."""
    return int.from_bytes(key[:8], "big") >> 1
