import ast
import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.imaging
from shared.errors import Invalid
from shared.imaging.pseudonym import patient_key, patient_number

SECRET = b"0123456789abcdef0123456789abcdef"


def test_the_key_is_a_truncated_hmac_of_issuer_and_id():
    message = b"".join(len(part).to_bytes(4, "big") + part for part in (b"patient", b"HOSPITAL", b"4711"))
    assert patient_key(SECRET, "HOSPITAL", "4711") == hmac.new(SECRET, message, hashlib.sha256).digest()[:16]


def test_the_same_patient_is_the_same_key_and_padding_does_not_matter():
    assert patient_key(SECRET, "H", "4711") == patient_key(SECRET, " H ", "4711 ", study_instance_uid="1.2")


def test_another_secret_is_another_key():
    assert patient_key(SECRET, "H", "4711") != patient_key(SECRET[::-1], "H", "4711")


@pytest.mark.parametrize("secret", [b"", b"short", SECRET[:31]])
def test_a_short_secret_is_refused(secret):
    with pytest.raises(Invalid):
        patient_key(secret, "H", "4711")


def test_patients_without_an_id_never_merge():
    first = patient_key(SECRET, "H", "", study_instance_uid="1.2.3")
    second = patient_key(SECRET, "H", "  ", study_instance_uid="1.2.4")
    assert first != second
    assert first == patient_key(SECRET, "", "", study_instance_uid="1.2.3")
    assert first != patient_key(SECRET, "", "1.2.3")
    with pytest.raises(Invalid):
        patient_key(SECRET, "H", "")


@given(st.text(), st.text(), st.text(), st.text())
def test_different_pairs_of_issuer_and_id_are_different_keys(issuer, patient, other_issuer, other_patient):
    pair, other = (issuer.strip(), patient.strip()), (other_issuer.strip(), other_patient.strip())
    if pair == other or not pair[1] or not other[1]:
        return
    keys = {patient_key(SECRET, *p) for p in (pair, other)}
    assert len(keys) == 2


@given(st.binary(min_size=16, max_size=16))
def test_the_number_fits_a_signed_integer(key):
    assert 0 <= patient_number(key) < 2**63


def test_no_plain_hash_is_ever_made_of_a_patient():
    """Only file digests may be unkeyed: no call of hashlib outside decode.py, and none on a patient attribute."""
    folder = Path(shared.imaging.__file__).parent
    for path in folder.parent.rglob("*.py"):
        for call in (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ):
            name = ast.unparse(call.func)
            hashing = name.startswith("hashlib.") or name in (
                "sha256",
                "sha1",
                "md5",
                "uuid.uuid5",
                "uuid5",
                "stable_uid",
            )
            assert not (hashing and "patient" in ast.unparse(call)), f"{path.name}:{call.lineno}"
            assert not (name.startswith("hashlib.") and path.parent == folder and path.name != "decode.py"), path.name
