import csv
import io
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from shared.datasets import cells, folder
from shared.datasets.folder import LabelTable, Row, read_labels
from shared.errors import Invalid
from shared.imaging import views
from shared.types import Labels

ROOT = Path("/archive")


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return read_labels(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(Invalid) as caught:
        table(tmp_path, text)
    return str(caught.value)


def found(labels: LabelTable, name: str, **uids: str) -> Row | None:
    return labels.find(ROOT, ROOT / name, **uids)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_with_any_delimiter_mark_and_line_end(tmp_path, delimiter, encoding, end):
    lines = ["Image Name,Patient_ID,Side,BI-RADS,Age", "a.png,P1,left,4a,61", "", "b.png,P2,R,,"]
    labels = table(tmp_path, end.join(lines).replace(",", delimiter) + end, encoding)
    assert len(labels) == 2
    expected = Labels(birads=4, extra={"Age": "61", "birads_raw": "4a"})
    assert found(labels, "a.png") == Row(labels=expected, patient="P1", laterality="L")
    assert found(labels, "b.png") == Row(patient="P2", laterality="R")


@pytest.mark.parametrize("lead", ["\n", "\n \n\n", ";;\n"])
def test_lines_without_a_word_before_the_header_do_not_hide_the_delimiter(tmp_path, lead):
    labels = table(tmp_path, f"{lead}file;BI-RADS\na.png;4\n")
    assert found(labels, "a.png").labels.birads == 4


def test_every_column_has_the_names_that_public_sets_use(tmp_path):
    text = (
        "StudyInstanceUID,SOP Instance UID,PATH,patient-id,View_Position,breast_density,assessment,Pathology,"
        "study date,Modality\n1.2.3,1.2.3.4,x/y.dcm,W,cranio-caudal,DENSITY C,BI-RADS 5,Malignant,20240131,mg\n"
    )
    row = found(table(tmp_path, text), "x/y.dcm")
    labels = Labels(birads=5, density="C", pathology="malignant", extra={"birads_raw": "BI-RADS 5"})
    assert row == Row(labels=labels, study="1.2.3", patient="W", view="CC", study_date=date(2024, 1, 31), modality="MG")


@pytest.mark.parametrize(
    ("cell", "category"),
    [("0", 0), ("6", 6), (" 3 ", 3), ("3.0", 3), ("4a", 4), ("4C", 4), ("3$2", 3), ("2$5$4b", 5), ("BIRADS 2", 2)]
    + [(cell, None) for cell in ("", "_", "nan", "N/A")],
)
def test_a_birads_cell_means_its_most_severe_category(cell, category):
    assert cells.birads(cell) == category


@pytest.mark.parametrize("cell", ["7", "-1", "3.5", "3a", "5b", "3$", "$", "4d", "three", "1,2", "3 2", "K", "٣"])
def test_any_other_birads_cell_is_refused(tmp_path, cell):
    message = refusal(tmp_path, f'file,birads\na.png,1\nb.png,"{cell}"\n')
    assert message.startswith("line 3, column birads: ")


@pytest.mark.parametrize(
    ("words", "name"),
    [("cranio-caudal", "CC"), ("Medio-Lateral", "ML"), ("exaggerated cranio-caudal", "XCC"), ("axillary tail", "AT")],
)
def test_a_view_in_words_has_the_name_that_it_has_in_a_header(words, name):
    header, code = Dataset(), Dataset()
    code.CodeMeaning = words
    header.ViewCodeSequence = [code]
    assert cells.view(words) == views.view(header) == name


@pytest.mark.parametrize(("position", "name"), [("L-CC", "CC"), ("RMLO", "MLO"), ("MLO-ID", "MLO"), ("lateral", "LL")])
def test_a_view_position_has_the_name_that_it_has_in_a_header(position, name):
    header = Dataset()
    header.add(DataElement("ViewPosition", "CS", position, validation_mode=config.IGNORE))
    assert cells.view(position) == views.view(header) == name


def test_compound_categories_are_counted(tmp_path):
    assert table(tmp_path, "file,birads\na,3$2\nb,4\nc,1$1\n").compound == 2


@pytest.mark.parametrize(
    ("column", "cell"),
    [("density", "E"), ("density", "5"), ("side", "X"), ("view", "12"), ("view", "?"), ("modality", "M/G")]
    + [("study_date", cell) for cell in ("01/02/2020", "2020-0102", "20201301", "2020")],
)
def test_a_value_that_is_not_understood_is_refused_with_its_place_and_never_quoted(tmp_path, column, cell):
    message = refusal(tmp_path, f"file,patient,{column}\na.png,Doe^Jane,{cell}\n")
    assert message.startswith("line 2, column ")
    assert "Doe" not in message
    assert f" {cell}" not in message


def test_no_refusal_quotes_a_value_that_stands_in_the_wrong_column(tmp_path):
    assert "Doe" not in refusal(tmp_path, "file,birads,patient\na.png,Doe^Jane,3\n")


def test_columns_that_name_a_person_are_left_out_and_said(tmp_path):
    labels = table(tmp_path, "file,Patient Name,Date of Birth,machine\na.png,Doe^Jane,1960-01-01,M1\n")
    row = found(labels, "a.png")
    assert row is not None
    assert row.labels.extra == {"machine": "M1"}
    assert labels.dropped == ("patientname", "dateofbirth")


def test_a_file_is_found_by_path_then_ending_then_name_then_stem_then_uid_then_study(tmp_path):
    text = (
        "file,sop_instance_uid,study,birads\nsub/a.png,,,1\na.png,,,2\nc,,,3\n,1.2.3,,4\n,,1.9,5\n"
        "archive/deep/e.png,,,0\n"
    )
    labels = table(tmp_path, text)

    def category(name: str, **uids: str) -> int | None:
        row = found(labels, name, **uids)
        return row.labels.birads if row else None

    assert category("sub/a.png") == 1
    assert category("other/a.png") == 2
    assert category("x/c.JPG") == 3
    assert category("1.2.3.dcm") == 4
    assert category("anything", sop_instance_uid="1.2.3", study_uid="1.9") == 4
    assert category("anything", sop_instance_uid="1.2.4", study_uid="1.9") == 5
    assert category("deep/e.png") == 0
    assert category("e.png") is None
    assert category("anything") is None


def test_a_file_elsewhere_does_not_take_the_row_of_its_namesake(tmp_path):
    labels = table(tmp_path, "file,birads\nP1/L_CC.dcm,5\n")
    assert found(labels, "P2/L_CC.dcm") is None
    assert found(labels, "P1/L_CC.dcm") is not None


def test_a_row_is_not_about_files_of_several_folders(tmp_path):
    labels = table(tmp_path, "file,birads\na.png,1\nP1/b.png,2\nc,3\nd,4\n")
    files = ["a.png", "P1/a.png", "P1/b.png", "P2/b.png", "P1/c.dcm", "P2/c.png", "P1/d.dcm", "P1/d.png", "P2/e.png"]
    apart = labels.told_apart(ROOT, [ROOT / name for name in files])
    nobodys = {"P1/a.png", "P1/c.dcm", "P2/c.png"}
    assert {name for name in files if apart.shares(ROOT, ROOT / name)} == nobodys
    assert {name for name in files if found(apart, name) is None} == nobodys | {"P2/b.png", "P2/e.png"}


def test_a_stem_that_two_rows_share_finds_neither(tmp_path):
    labels = table(tmp_path, "file,birads\na.png,1\na.jpg,2\n")
    assert found(labels, "a.dcm") is None
    assert found(labels, "a.jpg") == Row(labels=Labels(birads=2))


def test_the_end_of_a_uid_is_not_taken_for_an_extension(tmp_path):
    labels = table(tmp_path, "file,birads\n1.2.3,1\n1.2.4,2\n")
    assert found(labels, "1.2.4.dcm") == Row(labels=Labels(birads=2))
    assert found(labels, "1.2.5") is None


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("P1_L_CC .jpg", "P1_L_CC.jpg"),
        ("P1.jpg", "P1 .jpg"),
        ("a\\b.png", "a/b.png"),
        ("./a.png", "a.png"),
        (" a.png ", "a.png"),
        ("u\u0308.png", "\u00fc.png"),
    ],
)
def test_stray_spaces_slashes_and_unicode_forms_do_not_hide_a_file(tmp_path, cell, name):
    assert found(table(tmp_path, f'file,birads\n"{cell}",2\n'), name) == Row(labels=Labels(birads=2))


def test_an_image_id_beside_a_file_is_an_extra_and_alone_it_is_the_file(tmp_path):
    both = found(table(tmp_path, "image_id,file\nm1,pictures/x.png\n"), "pictures/x.png")
    assert both == Row(labels=Labels(extra={"image_id": "m1"}))
    assert found(table(tmp_path, "image_id,birads\nm1,2\n"), "any/m1.png") == Row(labels=Labels(birads=2))


@pytest.mark.parametrize("name", ["mammography_mias", "mammography_nyu_exam", "ultrasound_busi"])
def test_tables_of_public_sets_lead_to_their_images(data_dir, name):
    labels = read_labels(data_dir / name / "labels.csv")
    assert len(labels) == len(labels.files)
    present = [file for file in labels.files if (data_dir / name / file).is_file()]
    assert present
    for file in present:
        assert labels.find(data_dir / name, data_dir / name / file) is labels.files[file]
        assert labels.find(data_dir, data_dir / name / file) is labels.files[file]


def test_a_row_of_one_image_says_nothing_of_its_study(tmp_path):
    labels = table(tmp_path, "file,study,birads\na.png,1.2,5\nb.png,1.2,1\n")
    assert found(labels, "c.png", study_uid="1.2") is None


@pytest.mark.parametrize("key", ["file", "sop_instance_uid", "study"])
def test_one_key_with_two_meanings_is_refused_and_one_repeated_is_not(tmp_path, key):
    assert refusal(tmp_path, f"{key},birads\n1.2,1\n1.3,2\n1.2,3\n").startswith("lines 2 and 4 have the same ")
    assert len(table(tmp_path, f"{key},birads\n1.2,1\n1.2,1\n")) == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("birads,side\n1,L\n", "line 1: no column"),
        ("file,path\na,b\n", "line 1: columns 1 and 2"),
        ("file,birads\na\n", "line 2: 1 cells under 2"),
        ("file,birads\na,1,2\n", "line 2: 3 cells under 2"),
        ("file,birads\n,1\n", "line 2: no file"),
        ("file,birads\n../a,1\n", "line 2, column file"),
        ('file,birads\n"a"b,1\n', "line 2: not a CSV line"),
        ('file,birads\n"a,1\n', "not a CSV line"),
        ("file,birads\na\0,1\n", "binary"),
        (f"file,note\na,{'x' * 4097}\n", "line 2: a cell"),
        (f"file,note\na,{'ü' * 2049}\n", "line 2: a cell"),
        (f"file,note\na,{'x' * 200_000}\n", "line 2"),
        (f"file,note\na,{'x' * 2_000_000}\n", "too long"),
    ],
)
def test_what_is_not_such_a_table_is_refused(tmp_path, text, part):
    assert part in refusal(tmp_path, text)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(Invalid, match="UTF-8"):
        table(tmp_path, "file,pathology\nmüll.png,gutartig\n", "latin-1")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(Invalid, match="no such"):
            read_labels(path)


def test_a_table_that_cannot_be_read_is_refused():
    """As one of another user, or on a failing disk; nothing can be read at the beginning of this file."""
    with pytest.raises(Invalid, match="cannot be read"):
        read_labels(Path("/proc/self/mem"))


def test_the_limits_on_rows_and_bytes_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_ROWS", 2)
    assert "more than 2 rows" in refusal(tmp_path, "file\na\nb\nc\n")
    with (tmp_path / "sparse.csv").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(Invalid, match="1 GiB"):
        read_labels(tmp_path / "sparse.csv")


_words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20).filter(
    lambda word: not cells.missing(word) and not set(word) & set("/\\.")
)
_rows = st.builds(
    Row,
    labels=st.builds(
        Labels,
        birads=st.none() | st.integers(0, 6),
        density=st.none() | st.sampled_from("ABCD"),
        pathology=st.none() | _words.map(str.lower).filter(lambda word: word == word.lower().strip()),
        extra=st.dictionaries(st.just("remark"), _words),
    ),
    study=st.none() | _words,
    patient=st.none() | _words,
    laterality=st.none() | st.sampled_from("LRB"),
    view=st.none() | st.sampled_from(["CC", "MLO", "ML", "AP"]),
    study_date=st.none() | st.dates(),
    modality=st.none() | st.sampled_from(["MG", "CR", "US"]),
)


@given(st.lists(_rows, min_size=1, max_size=8), st.sampled_from(",;\t"))
def test_what_is_written_as_a_table_comes_back(tmp_path_factory, rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    own = ("study", "patient", "laterality", "view", "study_date", "modality")
    writer.writerow(["file", "birads", "density", "pathology", "remark", *own])
    for number, row in enumerate(rows):
        of = row.labels
        values = [of.birads, of.density, of.pathology, of.extra.get("remark"), *(getattr(row, name) for name in own)]
        writer.writerow([f"{number}.png", *("" if value is None else value for value in values)])
    labels = table(tmp_path_factory.mktemp("round"), text.getvalue())
    assert [found(labels, f"{number}.png") for number in range(len(rows))] == rows
