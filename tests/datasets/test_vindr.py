import pytest

from shared.datasets import vindr
from shared.errors import Invalid
from tests.datasets import made

HEAD = ["study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads",
        "breast_density", "split"]  # fmt: skip


def line(image, birads="BI-RADS 1", density="DENSITY C", split="training", study="s1", **more):
    said = {"study_id": study, "image_id": image, "laterality": "L", "view_position": "CC", "breast_birads": birads}
    return [(said | {"breast_density": density, "split": split} | more).get(column, "") for column in HEAD]


def findings(root, *rows):
    made.table(root / vindr.FINDINGS, ["study_id", "image_id", "finding_categories", "finding_birads"], rows)


@pytest.fixture
def root(tmp_path):
    for study, image in (("s1", "i1"), ("s1", "i2"), ("s2", "i3")):
        path = tmp_path / "images" / study / f"{image}.dicom"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read")
    made.table(
        tmp_path / vindr.BREASTS,
        HEAD,
        [line("i1"), line("i2", "BI-RADS 2", view_position="MLO"), line("i3", "BI-RADS 5", "DENSITY D", "test", "s2")],
    )
    return tmp_path


def test_a_whole_download_becomes_records_with_the_official_split(root):
    found = vindr.read(root)
    assert not found.warnings
    assert [(r.image_id, r.birads, r.birads_raw, r.density, r.split) for r in found.records] == [
        ("i1", 1, "BI-RADS 1", "C", "train"),
        ("i2", 2, "BI-RADS 2", "C", "train"),
        ("i3", 5, "BI-RADS 5", "D", "test"),
    ]
    record = found.records[1]
    assert (record.patient_id, record.exam_id, record.laterality, record.view) == ("s1", "s1", "L", "MLO")
    assert (record.level, record.modality, record.path.as_posix()) == ("breast", "FFDM", "images/s1/i2.dicom")
    assert [path.name for path in found.others] == [vindr.BREASTS]


@pytest.mark.parametrize(("cell", "token"), [("DENSITY A", "A"), ("BI-RADS 3", "3"), ("4", "4"), ("", ""), (" ", "")])
def test_the_last_word_of_a_cell_is_the_value(cell, token):
    assert vindr.last_token(cell) == token


@pytest.mark.parametrize(("column", "cell"), [("breast_birads", "BI-RADS 9"), ("breast_density", "DENSITY E"),
                                             ("split", "validate"), ("laterality", "X")])  # fmt: skip
def test_a_value_that_is_not_understood_is_refused_by_line_and_column(root, column, cell):
    made.table(root / vindr.BREASTS, HEAD, [line("i1"), line("i2", **{column: cell})])
    with pytest.raises(Invalid, match=f"^line 3, column {column.replace('_', '')}: "):
        vindr.read(root)


def test_findings_are_lists_written_in_python_and_their_worst_category_is_compared(root):
    findings(
        root,
        ["s1", "i1", "['No Finding']", ""],
        ["s1", "i2", "['Mass']", "BI-RADS 3"],
        ["s1", "i2", "['Architectural Distortion', 'Mass']", "BI-RADS 4"],
        ["s2", "i3", "['Suspicious Calcification']", "BI-RADS 5"],
    )
    found = vindr.read(root)
    assert [r.findings for r in found.records] == [
        (),
        ("Mass", "Architectural Distortion"),
        ("Suspicious Calcification",),
    ]
    assert [r.birads for r in found.records] == [1, 2, 5]
    assert found.warnings == {"finding-above-breast": 1}


@pytest.mark.parametrize(
    "cell", ["Mass", "{'Mass'}", "[1, 2]", "['Mass'", "__import__('os')", "[" * 3000, "['a'] * 9", ""]
)
def test_what_is_no_list_of_words_is_never_run_and_is_counted(root, cell):
    with pytest.raises(ValueError, match="list of findings"):
        vindr.parse_list(cell)
    findings(root, ["s1", "i1", cell, "BI-RADS 3"])
    found = vindr.read(root)
    assert found.warnings == {"findings-not-understood": 1}
    assert found.records[0].findings == ()


def test_missing_and_extra_images_and_rows_are_counted(root):
    (root / "images" / "s2" / "i4.dicom").write_bytes(b"")
    made.table(root / vindr.BREASTS, HEAD, [line("i1"), line("i1"), line("i9"), line("i3", study="s1")])
    found = vindr.read(root)
    assert found.warnings == {
        "duplicate-row": 1,
        "row-without-image": 1,
        "image-without-row": 2,
        "study-differs": 1,
    }
    bare = next(r for r in found.records if r.image_id == "i4")
    assert (bare.patient_id, bare.birads, bare.laterality, bare.split) == ("s2", None, None, None)


def test_rows_that_name_no_study_are_of_the_study_of_their_folder(root):
    made.table(root / vindr.BREASTS, HEAD, [line("i1", study=""), line("i2"), line("i3", study="")])
    assert [r.patient_id for r in vindr.read(root).records] == ["s1", "s1", "s2"]


def test_age_and_manufacturer_come_from_the_metadata_where_they_are_there(root):
    head = ["SOP Instance UID", "Patient's Age", "Manufacturer"]
    made.table(root / vindr.METADATA, head, [["i1", "049Y", "SIEMENS"], ["i2", "", ""], ["i3", "old", "IMS s.r.l."]])
    assert [(r.age, r.manufacturer) for r in vindr.read(root).records] == [
        (49, "SIEMENS"),
        (None, None),
        (None, "IMS s.r.l."),
    ]


def test_without_the_table_of_breasts_or_without_images_it_is_no_download(root, tmp_path):
    (root / vindr.BREASTS).unlink()
    with pytest.raises(Invalid, match="no breast-level_annotations"):
        vindr.read(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="no image of VinDr-Mammo"):
        vindr.read(tmp_path / "empty")
