"""The conformance statement matches the code, and only readable transfer syntaxes are negotiated."""

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE

from services.dicom import conformance, contexts
from services.dicom.statuses import Status, of_arrived
from shared.errors import Rejected
from shared.imaging import codecs
from shared.imaging.read import NATIVE, _refuse_what_is_no_image
from shared.pipeline.arrive import Arrived
from tests.conftest import ROOT
from tests.services.dicom.conftest import MAMMOGRAM, closing

STATEMENT = (ROOT / "docs/dicom-conformance.md").read_text(encoding="utf-8")


def test_the_tables_of_the_statement_are_those_of_the_code():
    assert conformance.renewed(STATEMENT) == STATEMENT
    for name in conformance.TABLES:
        assert f"<!-- {name} -->" in STATEMENT
    assert MAMMOGRAM in STATEMENT
    altered = STATEMENT.replace(MAMMOGRAM, "1.2.3", 1)
    assert conformance.renewed(altered) == STATEMENT


def test_the_transfer_syntaxes_are_exactly_those_that_are_decoded():
    ours = {str(uid) for uid in contexts.TRANSFER_SYNTAXES}
    sets = (codecs.JPEG, codecs.JPEG_LOSSLESS, codecs.JPEG_LS, codecs.JPEG_2000, codecs.HTJ2K, codecs.RLE, NATIVE)
    assert ours == set().union(*sets)


def test_no_sop_class_is_negotiated_that_is_refused_as_no_image():
    assert len(contexts.sop_classes()) == len(set(contexts.sop_classes())) > 50
    for uid in contexts.sop_classes():
        image = Dataset()
        image.SOPClassUID = uid
        _refuse_what_is_no_image(image, "")
        assert UID(uid).name != uid, "it is in the dictionary"


def test_something_else_is_refused_as_no_image():
    report = Dataset()
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    with pytest.raises(Rejected):
        _refuse_what_is_no_image(report, "")
    assert report.SOPClassUID not in contexts.sop_classes()


def test_of_several_encodings_the_first_of_our_own_table_is_taken(receiver):
    cases = {"1.2.840.10008.1.2.4.90 1.2.840.10008.1.2.1": 1, "1.2.840.10008.1.2.4.91 1.2.840.10008.1.2.4.90": 1}
    for words, taken in cases.items():
        proposed = words.split()
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context(MAMMOGRAM, proposed)
        ae.add_requested_context("1.2.840.10008.5.1.4.1.1.3", proposed)  # retired, but still in use
        with closing(ae.associate("127.0.0.1", receiver.port, ae_title="SIMILIS")) as association:
            assert [cx.transfer_syntax for cx in association.accepted_contexts] == [[proposed[taken]]] * 2


@pytest.mark.parametrize(
    ("outcome", "reason", "kept", "status"),
    [
        ("taken", None, True, Status.SUCCESS),
        ("same", None, True, Status.SUCCESS),
        ("kept", "other-bytes", True, Status.SUCCESS),
        ("quarantined", "patient-conflict", True, Status.SUCCESS),
        ("quarantined", "too-many-elements", False, Status.NOT_UNDERSTOOD),
        ("discarded", "site-rule", False, Status.SUCCESS),
        ("refused", "site-rule", False, Status.NOT_AUTHORIZED),
        ("kept", "erased", False, Status.NOT_AUTHORIZED),
        ("kept", "erased-or-rejected", False, Status.NOT_AUTHORIZED),
        ("empty", "not-an-image", False, Status.NOT_UNDERSTOOD),
        ("failed", "truncated-dataset", False, Status.NOT_UNDERSTOOD),
        ("failed", "uids-differ", False, Status.MISMATCH),
        ("failed", "sandbox-failure", False, Status.PROCESSING_FAILURE),
        ("failed", "unreadable-file", False, Status.PROCESSING_FAILURE),
    ],
)
def test_what_became_of_it_decides_the_status(outcome, reason, kept, status):
    assert of_arrived(Arrived(outcome=outcome, reason=reason, kept=kept)) == status
