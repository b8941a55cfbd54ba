import zipfile
from collections import Counter
from pathlib import Path

import pytest

from shared.datasets import reports, tables
from shared.datasets.reports import Opinion, parse_opinions, read_document, read_opinions
from shared.errors import Invalid
from tests.datasets import made

LINES = [
    "PATIENT NO.1",
    "DIGITALIZED LOW DOSE SOFT TISSUE MAMMOGRAPHY REVEALED:",
    "ACR c: Heterogeneously dense breasts.",
    "Right Breast:",
    "A mass, BIRADS 6 in an older study.",
    "OPINION:",
    "Right Breast:",
    "Benign mass (BIRADS 2).",
    "Another (BI-RADS 4a).",
    "Left Breast: normal (BIRADS 1).",
    "CONTRAST ENHANCED SPECTRAL MAMMOGRAPHY REVEALED:",
    "No side is said here (BIRADS 5).",
    "Right breast",
    "Enhancing mass (birads: 5)",
]


def test_opinions_are_the_worst_category_by_breast_and_kind_and_nothing_before_them_counts(tmp_path):
    made.docx(tmp_path / "P1.docx", LINES)
    assert parse_opinions(read_document(tmp_path / "P1.docx")) == (
        Opinion("L", "DM_low_energy", 1),
        Opinion("R", "CESM_subtracted", 5),
        Opinion("R", "DM_low_energy", 4),
    )


def test_reports_are_found_by_patient_and_bad_ones_counted(tmp_path):
    made.docx(tmp_path / "a" / "P007.docx", LINES)
    (tmp_path / "P8.docx").write_bytes(b"no document")
    made.docx(tmp_path / "~$P54.docx", LINES)
    warnings: Counter[str] = Counter()
    files = tables.listing(tmp_path)
    assert set(read_opinions(tmp_path, files, warnings)) == {"7"}
    assert warnings == {"unreadable-report": 1, "lock-file": 1}


def test_a_document_with_entities_is_refused_before_it_is_parsed(tmp_path):
    bomb = '<!DOCTYPE b [<!ENTITY a "ha">' + "".join(f'<!ENTITY a{n} "&a{n - 1 or ""};">' for n in range(1, 9)) + "]>"
    made.docx(tmp_path / "P1.docx", ["x"], bomb)
    with pytest.raises(Invalid):
        list(read_document(tmp_path / "P1.docx"))


def test_a_document_in_utf_16_is_refused_for_it_could_hide_a_document_type(tmp_path):
    path = tmp_path / "P1.docx"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("word/document.xml", '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><a/>'.encode("utf-16"))
    with pytest.raises(Invalid):
        list(read_document(path))


@pytest.mark.parametrize("encoding", ["none-such", "shift_jis"])
def test_a_document_in_an_encoding_that_there_is_not_is_refused(tmp_path, encoding):
    with zipfile.ZipFile(tmp_path / "P1.docx", "w") as packed:
        packed.writestr("word/document.xml", f'<?xml version="1.0" encoding="{encoding}"?><a/>')
    with pytest.raises(Invalid):
        list(read_document(tmp_path / "P1.docx"))


def test_a_document_that_was_damaged_is_counted_like_any_other_bad_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "P1.docx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", "<a>" + " ".join(map(str, range(99))) + "</a>")
    made.spoil(tmp_path / "P1.docx", "word/document.xml")
    warnings: Counter[str] = Counter()
    assert read_opinions(tmp_path, tables.listing(tmp_path), warnings) == {}
    assert warnings == {"unreadable-report": 1}


def test_a_document_that_is_too_large_is_refused(tmp_path, monkeypatch):
    made.docx(tmp_path / "P1.docx", LINES)
    monkeypatch.setattr(reports, "MAX_XML", 100)
    with pytest.raises(Invalid):
        list(read_document(tmp_path / "P1.docx"))


def test_a_folder_without_reports_has_no_opinions(tmp_path):
    assert read_opinions(tmp_path, [Path("x.txt")], Counter()) == {}
