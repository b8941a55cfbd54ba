import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from openpyxl import Workbook

from shared.datasets import cdd_cesm, tables
from shared.datasets.record import breast_level
from shared.errors import Invalid
from tests.datasets import made

DM, CM = "P12_L_DM_CC", "P12_L_CM_CC"


def read(root: Path, *rows: dict[str, object]) -> cdd_cesm.Imported:
    """Read the folder; its workbook is replaced by these rows if any are given."""
    if rows:
        made.workbook(root / made.WORKBOOK, rows)
    return cdd_cesm.read(root)


def only(found: cdd_cesm.Imported) -> cdd_cesm.Record:
    (record,) = found.records
    return record


def pair(root: Path) -> Path:
    return made.cdd_cesm(root, {DM: 4, CM: 4})


def test_a_whole_download_becomes_records_and_nothing_is_odd_about_it(tmp_path):
    found = cdd_cesm.read(made.cdd_cesm(tmp_path))
    assert (len(found.records), dict(found.warnings)) == (16, {})
    assert [path.name for path in found.others] == [made.WORKBOOK]
    record = next(r for r in found.records if r.image_id == "P2_R_CM_MLO")
    assert (record.patient_id, record.exam_id, record.laterality, record.view) == ("2", "2", "R", "MLO")
    assert (record.modality, record.birads, record.birads_raw, record.level) == ("CESM_subtracted", 5, "5", "image")
    assert (record.pathology, record.age, record.manufacturer, record.findings) == ("normal", 50, "A", ("Mass",))
    assert (record.dataset, record.licence_tag, record.split) == ("cdd-cesm", "CC-BY-4.0", None)
    assert (tmp_path / record.path).is_file()
    assert {r.modality for r in found.records if "DM" in r.image_id} == {"DM_low_energy"}


def test_the_group_is_the_number_in_the_file_name_as_in_the_sheet(tmp_path):
    found = cdd_cesm.read(made.cdd_cesm(tmp_path))
    assert Counter(r.patient_id for r in found.records) == {"1": 8, "2": 8}


def test_spaces_before_the_extension_and_after_the_name_in_a_cell_mean_nothing(tmp_path):
    made.picture(tmp_path / made.LOW / f"{DM} .jpg")
    record = only(read(tmp_path, made.row(f"{DM} ", 3)))
    assert (record.image_id, record.birads) == (DM, 3)
    assert (tmp_path / record.path).is_file()


@pytest.mark.parametrize("name", [CM, "P12_L_CESM_CC", "p12_l_cm_cc", f"{CM}.jpg"])
def test_a_subtracted_image_is_found_under_either_token_and_any_case(tmp_path, name):
    made.picture(tmp_path / made.SUBTRACTED / f"{CM}.JPG")
    said = made.row(CM, 4) | {"Image_name": name}
    record = only(read(tmp_path, said))
    assert (record.image_id, record.modality, record.birads) == (CM, "CESM_subtracted", 4)


def test_a_flat_folder_is_read_too(tmp_path):
    for name in (DM, CM):
        made.picture(tmp_path / "imgs" / f"{name}.jpeg")
    found = read(tmp_path, made.row(DM), made.row(CM))
    assert [r.path.parent.name for r in found.records] == ["imgs", "imgs"]


@pytest.mark.parametrize("name", ["Radiology manual annotations.xlsx", "Radiology_manual_annotations.xlsx"])
def test_older_names_of_the_workbook_are_known(tmp_path, name):
    pair(tmp_path)
    (tmp_path / made.WORKBOOK).rename(tmp_path / name)
    assert len(cdd_cesm.read(tmp_path).records) == 2


def test_the_underscore_at_a_subtracted_image_is_the_density_of_its_breast(tmp_path):
    names = {f"P{p}_{side}_{kind}_CC": 1 for p in (1, 2) for side in "LR" for kind in ("DM", "CM")}
    root = made.cdd_cesm(tmp_path, names)
    rows = [made.row(name) for name in names]
    for said in rows:
        if said["Breast density (ACR)"] == "C":
            said["Breast density (ACR)"] = {"1L": "A", "1R": "B", "2L": "D", "2R": "_"}[
                f"{said['Patient_ID']}{said['Side']}"
            ]
    found = {r.image_id: r.density for r in read(root, *rows).records}
    assert [found[f"P{n}_CM_CC"] for n in ("1_L", "1_R", "2_L", "2_R")] == ["A", "B", "D", None]


def test_densities_of_one_breast_that_differ_are_counted_and_not_handed_on(tmp_path):
    names = {"P1_L_DM_CC": 1, "P1_L_DM_MLO": 1, "P1_L_CM_CC": 1}
    root = made.cdd_cesm(tmp_path, names)
    rows = [made.row(name) for name in names]
    rows[1]["Breast density (ACR)"] = "B"
    found = read(root, *rows)
    assert found.warnings == {"density-differs": 1}
    assert {r.image_id: r.density for r in found.records}["P1_L_CM_CC"] is None


@pytest.mark.parametrize(
    ("cell", "birads", "raw"),
    [
        (4, 4, "4"), (4.0, 4, "4"), ("5", 5, "5"), ("3$2", 3, "3$2"), ("4$2", 4, "4$2"), ("3$2$2", 3, "3$2$2"),
        ("2 $ 5", 5, "2 $ 5"), ("4a", 4, "4a"), ("4B", 4, "4B"), ("4c", 4, "4c"), (None, None, ""), (0, 0, "0"),
    ],
)  # fmt: skip
def test_a_category_may_be_a_number_a_text_or_several_of_which_the_worst_counts(tmp_path, cell, birads, raw):
    made.picture(tmp_path / made.LOW / f"{DM}.jpg")
    found = read(tmp_path, made.row(DM, cell))
    assert (only(found).birads, only(found).birads_raw) == (birads, raw)
    assert found.warnings["compound-birads"] == ("$" in str(cell))


@pytest.mark.parametrize("cell", [7, "4d", "2a", "malignant", "3,2", 3.5, "3$x"])
def test_any_other_category_is_refused_by_line_and_without_quoting_it(tmp_path, cell):
    made.picture(tmp_path / made.LOW / f"{DM}.jpg")
    with pytest.raises(Invalid, match=r"^line 2, column birads: ") as caught:
        read(tmp_path, made.row(DM, cell))
    assert f"'{cell}'" not in str(caught.value)


def test_a_row_without_its_image_and_an_image_without_its_row_are_counted(tmp_path):
    pair(tmp_path)
    made.picture(tmp_path / made.LOW / "P3_R_DM_MLO.jpg")
    found = read(tmp_path, made.row(DM, 4), made.row("P9_L_DM_CC", 2))
    assert found.warnings == {"row-without-image": 1, "image-without-row": 2}
    bare = next(r for r in found.records if r.image_id == "P3_R_DM_MLO")
    assert (bare.patient_id, bare.laterality, bare.birads, bare.pathology) == ("3", "R", None, None)


def test_a_name_twice_counts_once_where_its_rows_agree_and_loses_its_labels_where_they_do_not(tmp_path):
    pair(tmp_path)
    found = read(
        tmp_path, made.row(DM, 4), made.row(f"{DM} ", 4) | {"Image_name": DM}, made.row(CM, 4), made.row(CM, 2)
    )
    assert found.warnings == {"duplicate-row": 1, "rows-differ": 1}
    assert {r.image_id: r.birads for r in found.records} == {DM: 4, CM: None}


def test_the_same_image_in_two_folders_is_taken_once(tmp_path):
    pair(tmp_path)
    made.picture(tmp_path / "imgs" / f"{DM}.jpg")
    found = cdd_cesm.read(tmp_path)
    assert found.warnings == {"duplicate-image": 1}
    assert len(found.records) == 2


@pytest.mark.parametrize(
    ("column", "value", "warning"),
    [("Side", "R", "side-differs"), ("View", "MLO", "view-differs"), ("Type", "CESM", "kind-differs"),
     ("Patient_ID", 13, "patient-differs")],
)  # fmt: skip
def test_where_sheet_and_file_name_differ_the_name_holds_and_it_is_counted(tmp_path, column, value, warning):
    made.picture(tmp_path / made.LOW / f"{DM}.jpg")
    found = read(tmp_path, made.row(DM, 4, **{column: value}))
    assert found.warnings == {warning: 1}
    record = only(found)
    assert (record.patient_id, record.laterality, record.view) == ("12", "L", "CC")
    assert record.modality == "DM_low_energy"


def test_a_workbook_without_the_sheet_all_is_invalid_and_its_place_means_nothing(tmp_path):
    pair(tmp_path)
    made.workbook(tmp_path / made.WORKBOOK, [made.row(DM)], sheet="Sheet1")
    with pytest.raises(Invalid, match="no sheet named all"):
        cdd_cesm.read(tmp_path)


def test_a_missing_column_is_invalid_and_named(tmp_path):
    pair(tmp_path)
    book = Workbook()
    page = book.create_sheet("all")
    page.append([c for c in made.COLUMNS if c != "BIRADS"])
    book.save(tmp_path / made.WORKBOOK)
    with pytest.raises(Invalid, match="no column birads"):
        cdd_cesm.read(tmp_path)


def test_no_workbook_or_no_image_is_invalid(tmp_path):
    with pytest.raises(Invalid, match="no image of CDD-CESM"):
        cdd_cesm.read(tmp_path)
    pair(tmp_path)
    (tmp_path / made.WORKBOOK).unlink()
    with pytest.raises(Invalid, match="no Radiology-manual-annotations"):
        cdd_cesm.read(tmp_path)


def test_what_word_and_excel_leave_behind_is_no_workbook_and_no_report(tmp_path):
    pair(tmp_path)
    (tmp_path / f"~${made.WORKBOOK}").write_bytes(b"lock")
    (tmp_path / "~$P54.docx").write_bytes(b"lock")
    found = cdd_cesm.read(tmp_path)
    assert len(found.records) == 2
    assert found.warnings == {"lock-file": 2}
    assert len(found.others) == 3


def test_a_workbook_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    pair(tmp_path)
    monkeypatch.setattr(tables, "MAX_BYTES", 1000)
    with pytest.raises(Invalid, match="too large"):
        cdd_cesm.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_what_is_no_workbook_is_invalid(tmp_path, content):
    pair(tmp_path)
    if content is None:
        with zipfile.ZipFile(tmp_path / made.WORKBOOK, "w") as packed:
            packed.writestr("readme", "a zip file, but no workbook")
    else:
        (tmp_path / made.WORKBOOK).write_bytes(content)
    with pytest.raises(Invalid):
        cdd_cesm.read(tmp_path)


@pytest.mark.parametrize("member", ["xl/workbook.xml", "xl/styles.xml", "xl/worksheets/sheet2.xml"])
def test_a_workbook_that_was_damaged_is_invalid(tmp_path, member):
    pair(tmp_path)
    made.spoil(tmp_path / made.WORKBOOK, member)
    with pytest.raises(Invalid, match="the workbook cannot be read"):
        cdd_cesm.read(tmp_path)


def test_a_number_that_nobody_could_have_is_none(tmp_path):
    pair(tmp_path)
    found = read(tmp_path, made.row(DM, 4, Age="9" * 5000), made.row(CM) | {"Image_name": f"P{'9' * 5000}_L_CM_CC"})
    assert [record.age for record in found.records] == [None, None]
    assert found.warnings["row-without-name"] == 1


def test_links_are_not_followed_out_of_the_folder(tmp_path):
    elsewhere = pair(tmp_path / "elsewhere")
    root = tmp_path / "root"
    made.picture(root / made.LOW / f"{DM}.jpg")
    (root / made.WORKBOOK).symlink_to(elsewhere / made.WORKBOOK)
    (root / "more").symlink_to(elsewhere / made.SUBTRACTED)
    with pytest.raises(Invalid, match="no Radiology-manual-annotations"):
        cdd_cesm.read(root)
    (root / made.WORKBOOK).unlink()
    shutil.copy(elsewhere / made.WORKBOOK, root)
    assert [r.image_id for r in cdd_cesm.read(root).records] == [DM]


def test_of_several_pathologies_the_worst_counts_and_an_unknown_one_is_counted(tmp_path):
    pair(tmp_path)
    found = read(
        tmp_path,
        made.row(DM, 4, **{made.COLUMNS[-1]: "Benign$Malignant"}),
        made.row(CM, 4, **{made.COLUMNS[-1]: "Unclear"}),
    )
    assert {r.image_id: r.pathology for r in found.records} == {DM: "malignant", CM: None}
    assert found.warnings == {"pathology-unknown": 1}


def test_reports_that_say_another_category_are_counted(tmp_path):
    pair(tmp_path)
    made.docx(tmp_path / "Medical reports for cases" / "P12.docx", [
        "OPINION:", "Left Breast:", "Mass (BIRADS 4).",
        "CONTRAST ENHANCED SPECTRAL MAMMOGRAPHY REVEALED:", "Left Breast:", "Enhancing mass (BIRADS 5).",
    ])  # fmt: skip
    found = cdd_cesm.read(tmp_path)
    assert found.warnings == {"report-differs": 1}


def test_at_breast_level_every_image_has_the_worst_category_of_its_breast(tmp_path):
    names = {"P1_L_DM_CC": 2, "P1_L_CM_CC": 5, "P1_R_DM_CC": 1, "P2_L_DM_CC": 3}
    records = breast_level(cdd_cesm.read(made.cdd_cesm(tmp_path, names)).records)
    assert {r.image_id: r.birads for r in records} == names | {"P1_L_DM_CC": 5}
    assert {r.level for r in records} == {"breast"}
