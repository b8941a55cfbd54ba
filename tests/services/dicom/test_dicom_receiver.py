"""What a correct sender gets, and the statuses of faulty requests."""

import socket
import struct
import subprocess
import sys
from io import BytesIO

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
)

from benchmarks.dicom_peer import store_command, value_pdu
from services.dicom import echo
from services.dicom.statuses import Status
from shared.imaging.read import IMPLICIT_LE
from shared.process import until
from tests.services.dicom.conftest import MAMMOGRAM, PATIENT, UID, closing, instance


def test_what_is_answered_with_success_is_durable_and_known(receiver):
    assert receiver.send(instance(), instance(2)) == [0, 0]
    assert receiver.rows("SELECT count(*) FROM image WHERE status = 'received'") == [(2,)]
    assert receiver.rows("SELECT DISTINCT source, sender, called, outcome FROM arrival") == [
        ("dicom", "SCANNER", "SIMILIS", "taken")
    ]
    paths = {bytes(path).decode() for (path,) in receiver.rows("SELECT path FROM image")}
    assert paths == {str(path) for path in receiver.blobs()}
    assert not any(UID in path or PATIENT in path for path in paths)


def test_the_data_set_is_kept_to_the_byte_behind_a_header_of_our_own(receiver):
    sent = instance()
    assert receiver.send(sent) == [0]
    (path,) = receiver.blobs()
    raw, kept = path.read_bytes(), pydicom.dcmread(path)
    assert raw[:132] == bytes(128) + b"DICM"
    assert kept.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID
    assert kept.file_meta.ImplementationVersionName == "SIMILIS"
    assert "SourceApplicationEntityTitle" not in kept.file_meta
    with pydicom.filebase.DicomBytesIO() as stream:
        stream.is_little_endian, stream.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(stream, sent)
        assert raw.endswith(stream.getvalue())


def test_the_same_from_two_senders_is_one_file(receiver):
    assert receiver.send(instance(), calling="ONE") == [0]
    assert receiver.send(instance(), calling="TWO") == [0]
    assert len(receiver.blobs()) == 1
    assert receiver.rows("SELECT sender FROM arrival ORDER BY sender") == [("ONE",), ("TWO",)]


def test_a_large_data_set_comes_in_many_pdus(receiver):
    assert receiver.send(instance(side=3000)) == [0]
    (path,) = receiver.blobs()
    assert path.stat().st_size > 3000**2


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, "1.2.840.10008.1.2.2"])
def test_other_encodings_are_taken_as_they_are(receiver, syntax):
    image = instance()
    image.file_meta.TransferSyntaxUID = syntax
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(MAMMOGRAM, [syntax])
    with closing(ae.associate("127.0.0.1", receiver.port, ae_title="SIMILIS")) as association:
        image = pydicom.dcmread(pydicom.filebase.DicomBytesIO(_file_of(image, syntax)))
        assert association.send_c_store(image).Status == 0
    assert pydicom.dcmread(receiver.blobs()[0]).file_meta.TransferSyntaxUID == syntax


def _file_of(image, syntax) -> bytes:
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    with pydicom.filebase.DicomBytesIO() as out:
        little, implicit = syntax != "1.2.840.10008.1.2.2", syntax == IMPLICIT_LE
        image.preamble = bytes(128)
        pydicom.dcmwrite(out, image, little_endian=little, implicit_vr=implicit, enforce_file_format=True)
        return bytes(out.getvalue())


def test_a_c_echo_is_answered_and_by_our_own_check_too(receiver):
    assert receiver.echo()
    assert echo.answers(receiver.home, "SIMILIS")
    assert not echo.answers(receiver.folder, "SIMILIS", timeout_s=1)


def test_a_second_one_on_the_same_port_leaves_the_first_its_health_check(receiver):
    env = receiver.env | {"SIMILIS_DICOM__PORT": str(receiver.port)}
    argv = [sys.executable, "-P", "-m", "services.dicom"]
    second = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert "cannot listen on a port" in second.stderr
    assert echo.answers(receiver.home, "SIMILIS")


def test_another_called_title_is_rejected(receiver):
    association = receiver.associated(called="ARCHIVE")
    assert association.is_rejected
    assert association.acceptor.primitive.diagnostic == 7
    assert until(lambda: "unknown-called-ae" in receiver.said, 5)
    assert '"address": "127.0.0.1"' in receiver.said


def test_only_images_in_encodings_that_we_decode_are_negotiated(receiver):
    ae = AE(ae_title="SCANNER")
    for context in (BasicTextSRStorage, StudyRootQueryRetrieveInformationModelFind, ComputedRadiographyImageStorage):
        ae.add_requested_context(context, [ImplicitVRLittleEndian])
    ae.add_requested_context(MAMMOGRAM, ["1.2.840.10008.1.2.4.100"])  # MPEG2
    with closing(ae.associate("127.0.0.1", receiver.port, ae_title="SIMILIS")) as association:
        assert [cx.abstract_syntax for cx in association.accepted_contexts] == [ComputedRadiographyImageStorage]


@pytest.mark.parametrize(
    ("change", "status", "comment"),
    [
        ({"StudyInstanceUID": ""}, Status.NOT_UNDERSTOOD, "missing-uid"),
        ({"StudyInstanceUID": "no uid"}, Status.NOT_UNDERSTOOD, "invalid-uid"),
        ({"Modality": "SR"}, Status.NOT_UNDERSTOOD, "not-an-image"),
    ],
)
def test_what_cannot_be_understood_is_told_and_leaves_nothing_but_a_line(lenient, receiver, change, status, comment):
    with closing(receiver.associated()) as association:
        answer = association.send_c_store(instance(**change))
    assert (answer.Status, answer.ErrorComment) == (status, comment)
    assert receiver.blobs() == []
    assert receiver.rows("SELECT count(*) FROM image") == [(0,)]
    assert receiver.rows("SELECT sender, reason FROM arrival") == [("SCANNER", comment)]


def test_a_uid_that_is_not_valid_is_told_as_such_and_not_as_another_one(lenient, receiver):
    """Some devices write components with leading zeros."""
    with closing(receiver.associated()) as association:
        answer = association.send_c_store(instance(SOPInstanceUID=f"{UID}.01"))
    assert (answer.Status, answer.ErrorComment) == (Status.NOT_UNDERSTOOD, "invalid-uid")
    assert until(lambda: "invalid-uid" in receiver.said, 5)


def test_a_data_set_that_is_not_what_its_command_says_is_told_so(receiver):
    """The data set holds another instance, or another SOP class, than the command names."""
    with closing(receiver.associated()) as association:
        for other in (instance(2), instance(SOPClassUID=ComputedRadiographyImageStorage)):
            assert _send_as(association, other, f"{UID}.1.1") == Status.MISMATCH
        assert association.send_c_store(instance()).Status == Status.SUCCESS
    assert len(receiver.blobs()) == 1


def _send_as(association, image, uid: str) -> int:
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MAMMOGRAM, uid
    request.DataSet = BytesIO(encode(image, is_implicit_vr=False, is_little_endian=True))
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    return int(answer.Status)


def test_what_was_erased_is_refused(receiver):
    assert receiver.send(instance()) == [0]
    receiver.execute("UPDATE image SET status = 'rejected'")
    assert receiver.send(instance()) == [Status.NOT_AUTHORIZED]


def test_an_aborted_transfer_leaves_no_file(receiver):
    assert receiver.send(instance()) == [0]
    half = _half_sent(receiver)
    assert until(lambda: len(receiver.blobs()) == 2, 5), "the part stands while it comes in"
    half.close()
    assert until(lambda: len(receiver.blobs()) == 1, 10)


def _half_sent(receiver):
    """A connection with an incomplete C-STORE."""
    connection = socket.create_connection(("127.0.0.1", receiver.port), 5)
    connection.sendall(echo.request("SIMILIS", "SCANNER", MAMMOGRAM.encode()))
    assert connection.recv(1)[0] == 2
    connection.sendall(
        value_pdu(store_command(f"{UID}.9.9"), 3) + value_pdu(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", 0)
    )
    return connection


def test_no_log_line_names_a_patient_or_an_image(receiver):
    assert receiver.send(instance()) == [0]
    assert receiver.send(instance(StudyInstanceUID="")) == [Status.NOT_UNDERSTOOD]
    assert until(lambda: "missing-uid" in receiver.said, 5)
    for word in (PATIENT, UID, "SCANNER"):
        assert word not in receiver.said


def test_no_log_line_quotes_a_command_set(receiver):
    """pydicom's warnings quote unknown character sets and elements."""
    said = PATIENT.encode()
    more = struct.pack("<HHI", 8, 5, len(said)) + said + struct.pack("<HHI", 8, 0x7777, 0)
    with socket.create_connection(("127.0.0.1", receiver.port), 5) as connection:
        connection.settimeout(5)
        connection.sendall(echo.request("SIMILIS", "SCANNER", MAMMOGRAM.encode()))
        assert connection.recv(4096)[0] == 2
        connection.sendall(value_pdu(store_command(f"{UID}.9.9") + more, 3) + value_pdu(bytes(8), 2))
        assert connection.recv(4096)
    assert PATIENT not in receiver.said
    assert "VR lookup" not in receiver.said
