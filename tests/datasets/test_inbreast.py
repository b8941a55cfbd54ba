import pytest

from shared.datasets import inbreast
from shared.errors import Invalid
from tests.datasets import made

HEAD = ["Patient ID", "Patient age", "Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads"]
HERS, OTHERS = "6c613a14b80a8591", "036aff49b8ac84f0"


def line(number, birads="2", acr="3", side="R", view="MLO", month="201001"):
    return ["removed", "removed", side, view, month, number, acr, birads]


def read(root, *lines, delimiter=";"):
    made.table(root / "INbreast.csv", HEAD, lines, delimiter)
    return inbreast.read(root)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "AllDICOMs"
    folder.mkdir()
    for name in (f"20586908_{HERS}_MG_R_CC_ANON", f"20586934_{HERS}_MG_R_ML_ANON", f"22678622_{OTHERS}_MG_L_CC_ANON"):
        (folder / f"{name}.dcm").write_bytes(b"not read")
    return tmp_path


LINES = [line("20586908", "4a", "3", view="CC"), line("20586934", "4a", "3"),
         line("22678622", "1", "", "L", "CC", "200801")]  # fmt: skip


def test_the_patient_comes_from_the_file_name_for_the_table_says_removed(root):
    found = read(root, *LINES)
    assert not found.warnings
    assert [(r.patient_id, r.exam_id) for r in found.records] == [
        (HERS, f"{HERS}/201001"),
        (HERS, f"{HERS}/201001"),
        (OTHERS, f"{OTHERS}/200801"),
    ]
    assert {r.age for r in found.records} == {None}
    assert [path.name for path in found.others] == ["INbreast.csv"]


def test_exams_of_another_month_are_another_exam_of_the_same_woman(root):
    later = [line("20586908", view="CC"), line("20586934", month="201107"), LINES[2]]
    found = read(root, *later)
    assert len({r.exam_id for r in found.records}) == 3
    assert len({r.patient_id for r in found.records}) == 2


@pytest.mark.parametrize(
    ("cell", "birads"), [("1", 1), ("4a", 4), ("4b", 4), ("4c", 4), ("5", 5), ("6", 6), ("", None)]
)
def test_categories_with_a_letter_are_kept_as_written(root, cell, birads):
    record = read(root, line("20586934", cell)).records[1]
    assert (record.birads, record.birads_raw) == (birads, cell)


@pytest.mark.parametrize(("cell", "density"), [("1", "A"), ("4", "D"), ("", None), (" ", None)])
def test_density_is_one_to_four_or_blank(root, cell, density):
    assert read(root, line("20586934", acr=cell)).records[1].density == density


def test_ml_in_a_file_name_is_the_oblique_view_of_the_table(root):
    found = read(root, *LINES)
    assert [r.view for r in found.records] == ["CC", "MLO", "CC"]
    assert "view-differs" not in found.warnings


def test_side_and_view_that_differ_from_the_file_name_are_counted(root):
    found = read(root, line("20586908", side="L", view="MLO"), *LINES[1:])
    assert found.warnings == {"side-differs": 1, "view-differs": 1}
    assert found.records[0].laterality == "R"


def test_missing_and_extra_images_and_rows_are_counted(root):
    for name in ("strange.dcm", "stranger.dicom"):
        (root / "AllDICOMs" / name).write_bytes(b"")
    found = read(root, LINES[0], LINES[0], line("99999999"))
    assert found.warnings == {
        "duplicate-row": 1,
        "row-without-image": 1,
        "image-without-row": 2,
        "name-not-understood": 2,
    }
    assert [r.birads for r in found.records] == [4, None, None]
    assert found.records[2].patient_id == OTHERS


@pytest.mark.parametrize(
    ("lines", "match"), [([line("20586934", "7")], "column birads"), ([line("20586934", acr="9")], "column acr")]
)
def test_what_is_not_understood_is_refused(root, lines, match):
    with pytest.raises(Invalid, match=match):
        read(root, *lines)


def test_a_table_with_commas_is_not_the_one_that_was_published(root):
    with pytest.raises(Invalid, match="no column"):
        read(root, *LINES, delimiter=",")


def test_without_table_or_images_it_is_no_download(root, tmp_path):
    with pytest.raises(Invalid, match=r"no INbreast\.csv"):
        inbreast.read(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="no image of INbreast"):
        inbreast.read(tmp_path / "empty")
