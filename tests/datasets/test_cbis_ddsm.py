from collections import Counter

import pytest

from shared.datasets import cbis_ddsm
from shared.errors import Invalid
from tests.datasets import made

MASS = ["patient_id", "breast_density", "left or right breast", "image view", "abnormality id", "abnormality type",
        "mass shape", "mass margins", "assessment", "pathology", "subtlety", "image file path",
        "cropped image file path", "ROI mask file path"]  # fmt: skip
CALC = [{"breast_density": "breast density", "mass shape": "calc type", "mass margins": "calc distribution"}.get(c, c)
        for c in MASS]  # fmt: skip
UIDS = "1.3.6.1.4.1.9590.100.1/1.3.6.1.4.1.9590.100.2"


def line(patient="P_00001", side="LEFT", *, view="CC", number=1, assessment="4", pathology="MALIGNANT", kind="Mass",
         part="Training", density="3", shape="OVAL"):  # fmt: skip
    name = f"{kind}-{part}_{patient}_{side}_{view}"
    crop, mask = (f"{name}_{number}/{UIDS}/00000{n}.dcm" for n in (0, 1))
    film = f"{name}/{UIDS}/000000.dcm"
    return [patient, density, side, view, number, kind.lower(), shape, "SPICULATED", assessment, pathology, 4, film,
            crop, mask]  # fmt: skip


def write(root, *, mass=(), mass_test=(), calc=(), calc_test=(), name="1-1.dcm"):
    """Write the tables, and a film for each row, named 1-1.dcm as in today's downloads, whatever the table says."""
    for head, stem, lines in ((MASS, "mass", mass), (MASS, "mass_test", mass_test), (CALC, "calc", calc),
                              (CALC, "calc_test", calc_test)):  # fmt: skip
        kind, _, part = stem.partition("_")
        if lines:
            made.table(root / f"{kind}_case_description_{part or 'train'}_set.csv", head, lines)
        for said in lines:
            folder = root / "CBIS-DDSM" / said[11].partition("/")[0].strip('"\n ')
            (folder / UIDS).mkdir(parents=True, exist_ok=True)
            (folder / UIDS / name).write_bytes(b"not read")
    return root


def test_the_worst_lesion_is_the_image_and_both_spellings_of_density_are_read(tmp_path):
    write(
        tmp_path,
        mass=[
            line(assessment="3", pathology="BENIGN"),
            line(number=2, assessment="5"),
            line(view="MLO", assessment="2"),
        ],
        calc=[
            line("P_00007", "RIGHT", kind="Calc", density="1", shape="PLEOMORPHIC", pathology="BENIGN_WITHOUT_CALLBACK")
        ],
    )
    found = cbis_ddsm.read(tmp_path)
    assert not found.warnings
    by_name = {r.image_id: r for r in found.records}
    film = by_name["Mass-Training_P_00001_LEFT_CC"]
    assert (film.birads, film.birads_raw, film.pathology, film.level) == (5, "3$5", "malignant", "lesion-max")
    assert (film.patient_id, film.exam_id, film.laterality, film.view) == ("P_00001", "P_00001", "L", "CC")
    assert (film.density, film.split, film.modality) == ("C", "train", "SFM")
    calc = by_name["Calc-Training_P_00007_RIGHT_CC"]
    assert (calc.density, calc.pathology, calc.findings) == ("A", "benign", ("calc pleomorphic spiculated",))
    assert by_name["Mass-Training_P_00001_LEFT_MLO"].birads == 2


@pytest.mark.parametrize(
    ("assessments", "birads", "odd"), [(["0"], 0, 0), (["0", "2"], 2, 1), (["0", "0"], 0, 0), (["4", "0"], 4, 1)]
)
def test_an_incomplete_assessment_counts_less_than_any_category(tmp_path, assessments, birads, odd):
    write(tmp_path, mass=[line(number=n, assessment=said) for n, said in enumerate(assessments, start=1)])
    found = cbis_ddsm.read(tmp_path)
    assert found.records[0].birads == birads
    assert found.warnings["incomplete-beside-others"] == odd


def test_line_ends_and_quotes_in_paths_mean_nothing(tmp_path):
    said = line()
    said[11] = f'"{said[11]}\n"'
    write(tmp_path, mass=[said])
    assert cbis_ddsm.read(tmp_path).records[0].image_id == "Mass-Training_P_00001_LEFT_CC"


def test_crops_and_masks_are_no_images_and_the_film_is_found_by_its_folder(tmp_path):
    write(tmp_path, mass=[line()])
    for number in (1, 2):
        made.dicom(tmp_path / f"CBIS-DDSM/Mass-Training_P_00001_LEFT_CC_1/{UIDS}/1-{number}.dcm", made.noise(number))
    found = cbis_ddsm.read(tmp_path)
    assert [r.path.as_posix() for r in found.records] == [f"CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/{UIDS}/1-1.dcm"]
    assert len(found.others) == 3
    assert not found.warnings


def test_of_several_files_in_a_film_s_folder_the_named_one_is_taken_or_none(tmp_path):
    write(tmp_path, mass=[line()], name="000000.dcm")
    write(tmp_path, mass=[line()], name="extra.dicom")
    assert cbis_ddsm.read(tmp_path).records[0].path.name == "000000.dcm"
    (tmp_path / f"CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/{UIDS}/000000.dcm").unlink()
    write(tmp_path, mass=[line(), line(view="MLO")], name="other.dicom")
    found = cbis_ddsm.read(tmp_path)
    assert [r.view for r in found.records] == ["MLO"]
    assert found.warnings == {"several-images": 1, "image-without-row": 1}


def test_patients_that_the_official_splits_share_are_counted(tmp_path):
    write(
        tmp_path,
        mass=[line(), line("P_00002")],
        calc_test=[line(kind="Calc", part="Test"), line("P_00003", kind="Calc", part="Test")],
    )
    found = cbis_ddsm.read(tmp_path)
    assert found.warnings == {"patient-in-train-and-test": 1}
    assert Counter(r.split for r in found.records) == {"train": 2, "test": 2}


def test_films_without_row_and_rows_without_film_are_counted(tmp_path):
    write(tmp_path, mass=[line(), line("P_00009")])
    made.table(tmp_path / "mass_case_description_train_set.csv", MASS, [line(), line("P_00005")])
    assert cbis_ddsm.read(tmp_path).warnings == {"row-without-image": 1, "image-without-row": 1}


@pytest.mark.parametrize(
    ("place", "column"),
    [(8, "assessment"), (9, "pathology"), (2, "leftorrightbreast")],
)
def test_what_is_not_understood_is_refused(tmp_path, place, column):
    wrong = line("P_00002")
    wrong[place] = "odd"
    write(tmp_path, mass=[line(), wrong])
    with pytest.raises(Invalid, match=f"^line 3, column {column}: "):
        cbis_ddsm.read(tmp_path)


def test_a_density_of_zero_is_no_class_and_counted(tmp_path):
    write(tmp_path, calc=[line(kind="Calc", density="0")])
    found = cbis_ddsm.read(tmp_path)
    assert (found.records[0].density, found.warnings) == (None, {"density-unknown": 1})


def test_without_tables_or_images_it_is_no_download(tmp_path):
    with pytest.raises(Invalid, match="none of its tables"):
        cbis_ddsm.read(tmp_path)
    made.table(tmp_path / "mass_case_description_test_set.csv", MASS, [line()])
    with pytest.raises(Invalid, match="no image of CBIS-DDSM"):
        cbis_ddsm.read(tmp_path)
