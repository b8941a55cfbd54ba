import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer
from pydicom.uid import ExplicitVRLittleEndian
from typer.testing import CliRunner

from services.cli import sample
from shared.datasets import archive
from shared.datasets.archive import CARRIED, Record, variants, write_archive
from shared.datasets.folder import read_labels
from shared.datasets.mammogram import SCANNERS, dataset, save, save_plain
from shared.datasets.phantom import render
from shared.datasets.women import exams
from shared.errors import Conflict, Invalid

STUDIES = 7  # five women, two of them with an earlier exam; one scanner per study


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sample") / "archive"


@pytest.fixture(scope="module")
def records(folder) -> list[Record]:
    return write_archive(folder, STUDIES, seed=3)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Small pictures: these tests check only the structure."""
    monkeypatch.setitem(archive.SIZES, "small", (128, 100))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def displayed(path: Path) -> np.ndarray:
    """The file's P-values before any VOI transformation: bright means dense."""
    ds = pydicom.dcmread(path)
    return 4095 - ds.pixel_array if ds.PhotometricInterpretation == "MONOCHROME1" else ds.pixel_array


def test_every_study_has_four_views_and_every_image_a_file_and_a_uid(folder, records):
    assert len(records) == 4 * STUDIES
    assert len({record.sop_instance_uid for record in records}) == 4 * STUDIES
    assert len({record.study for record in records}) == STUDIES
    views = [(record.laterality, record.view) for record in records]
    assert views == [("R", "CC"), ("R", "MLO"), ("L", "CC"), ("L", "MLO")] * STUDIES
    assert all((folder / record.file).is_file() for record in records)


def test_the_files_say_what_the_labels_say(folder, records):
    for record in records:
        ds = pydicom.dcmread(folder / record.file, stop_before_pixels=True)
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == record.sop_instance_uid
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
        assert (ds.StudyInstanceUID, ds.PatientID) == (record.study, record.patient)
        assert (ds.ImageLaterality, ds.ViewPosition, ds.Modality) == (record.laterality, record.view, "MG")
        assert ds.PresentationIntentType == "FOR PRESENTATION"
        assert ds.StudyDate == record.study_date.strftime("%Y%m%d")
        assert (ds.BitsAllocated, ds.BitsStored, ds.BurnedInAnnotation) == (16, 12, "NO")
        assert ds.ViewCodeSequence[0].CodeMeaning in ("cranio-caudal", "medio-lateral oblique")
        assert "WindowCenter" in ds or "VOILUTSequence" in ds


def test_all_scanners_take_part_so_syntaxes_polarities_and_windows_vary(folder, records):
    headers = [pydicom.dcmread(folder / record.file, stop_before_pixels=True) for record in records]
    assert {ds.file_meta.TransferSyntaxUID for ds in headers} == {scanner.syntax for scanner in SCANNERS}
    polarity = {(ds.PhotometricInterpretation, ds.PresentationLUTShape) for ds in headers}
    assert polarity == {("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")}
    assert {ds.get("VOILUTFunction", "LUT") for ds in headers} == {"LINEAR", "SIGMOID", "LUT"}


def test_every_scanner_stores_the_phantom_without_loss(folder, records):
    planned = list(islice(exams(3), STUDIES))
    for n, exam in enumerate(planned):
        drawn = render(exam.breasts[1], "MLO", 1024, 800)
        assert np.array_equal(displayed(folder / records[4 * n + 3].file), drawn)


def test_some_women_have_an_earlier_study_under_the_same_patient(records):
    studies = {(record.patient, record.study_date): record.study for record in records}
    patients = [patient for patient, _ in studies]
    assert len(set(patients)) == 5
    again = {patient for patient in patients if patients.count(patient) == 2}
    assert len(again) == 2
    for patient in again:
        days = sorted(day for who, day in studies if who == patient)
        assert 360 <= (days[1] - days[0]).days < 760


def test_the_labels_table_is_read_back_by_the_folder_importer(folder, records):
    table = read_labels(folder / "labels.csv")
    assert len(table) == len(records)
    for record in records:
        for row in (
            table.find(folder, folder / record.file),
            table.find(folder, folder / "elsewhere", sop_instance_uid=record.sop_instance_uid),
        ):
            assert row is not None
            assert (row.patient, row.study, row.laterality) == (record.patient, record.study, record.laterality)
            assert (row.labels.birads, row.labels.density) == (record.birads, record.density)
            assert (row.labels.pathology, row.labels.extra) == (record.pathology, {"lesion": record.lesion})
    assert table.find(folder, folder / "other" / "CT_small.dcm") is None


def test_the_carried_files_are_images_with_uids_of_their_own(folder, records):
    paths = sorted((folder / "other").iterdir())
    assert len(paths) == len(CARRIED)
    headers = [pydicom.dcmread(path) for path in paths]
    assert len({ds.SOPInstanceUID for ds in headers}) == len(paths)
    assert {"CT", "MR", "US", "NM", "SR"} <= {ds.Modality for ds in headers}
    assert all(ds.pixel_array.size for ds in headers if ds.Modality != "SR")


def test_the_broken_files_cannot_be_read_and_claim_no_uid_of_a_good_one(folder, records):
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(folder / "broken" / "notes.dcm")
    cut = pydicom.dcmread(folder / "broken" / "cut-pixels.dcm")
    assert cut.SOPInstanceUID not in {record.sop_instance_uid for record in records}
    with pytest.raises(ValueError, match=r"pixel data|bytes"):
        _ = cut.pixel_array
    assert (folder / "broken" / "cut-header.dcm").stat().st_size < 1200


@pytest.mark.usefixtures("tiny")
def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_archive(tmp_path / name, 3, seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    mammograms = [name for name in first if name.startswith("mammography")]
    assert len(mammograms) == 12
    assert all(first[name] != other.get(name) for name in mammograms)


@pytest.mark.usefixtures("tiny")
def test_a_larger_archive_holds_the_smaller_one(tmp_path):
    few, many = write_archive(tmp_path / "few", 2, 1), write_archive(tmp_path / "many", 4, 1)
    assert many[:8] == few
    assert {k: v for k, v in digests(tmp_path / "many").items() if k in {r.file for r in few}} == {
        k: v for k, v in digests(tmp_path / "few").items() if k in {r.file for r in few}
    }


@pytest.mark.usefixtures("tiny")
def test_a_plain_archive_is_explicit_little_endian_under_other_uids(tmp_path):
    plain = write_archive(tmp_path / "plain", 5, 1, plain=True)
    mixed = write_archive(tmp_path / "mixed", 5, 1)
    syntaxes = {pydicom.dcmread(tmp_path / "plain" / r.file).file_meta.TransferSyntaxUID for r in plain}
    assert syntaxes == {ExplicitVRLittleEndian}
    assert not {r.sop_instance_uid for r in plain} & {r.sop_instance_uid for r in mixed}


@pytest.mark.usefixtures("tiny")
def test_progress_is_told_after_each_study(tmp_path):
    told: list[tuple[int, int]] = []
    write_archive(tmp_path / "a", 3, 0, lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(Conflict):
        write_archive(tmp_path, 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("arguments", [{"studies": 0}, {"seed": -1}, {"size": "huge"}])
def test_arguments_that_make_no_archive_are_refused(tmp_path, arguments):
    with pytest.raises(Invalid):
        write_archive(tmp_path / "a", **({"studies": 1, "seed": 0} | arguments))
    assert not (tmp_path / "a").exists()


def test_all_findings_and_densities_occur_and_malignancy_has_a_high_category():
    seen = list(islice(exams(9), 40))
    findings = [finding for exam in seen for finding in exam.findings]
    assert {f.birads for f in findings} == {1, 2, 3, 4, 5}
    assert {f.lesion for f in findings} == {"none", "mass", "spiculated", "calcifications"}
    assert {exam.breasts[0].density for exam in seen} == set("ABCD")
    assert all(f.birads >= 4 for f in findings if f.pathology == "malignant")
    for exam in seen:
        assert [b.lesion.kind if b.lesion else "none" for b in exam.breasts] == [f.lesion for f in exam.findings]


@pytest.mark.usefixtures("tiny")
def test_variants_are_distinct_plain_files_that_still_show_a_breast(tmp_path):
    made = list(variants(tmp_path, 16, seed=2, size="small"))
    assert len({record.sop_instance_uid for record in made}) == 16
    assert len({record.study for record in made}) == len({record.patient for record in made}) == 4
    pictures = [displayed(tmp_path / record.file) for record in made]
    assert len({picture.tobytes() for picture in pictures}) == 16
    for record, picture in zip(made, pictures, strict=True):
        ds = pydicom.dcmread(tmp_path / record.file)
        assert ds.SOPInstanceUID == record.sop_instance_uid
        assert (ds.ImageLaterality, ds.ViewPosition) == (record.laterality, record.view)
        assert picture.max() <= 4095
        assert picture.std() > 100
    again = list(variants(tmp_path / "again", 16, seed=2, size="small"))
    assert again == made
    assert digests(tmp_path / "again") == {k: v for k, v in digests(tmp_path).items() if not k.startswith("again")}


def test_a_data_set_of_a_left_breast_is_oriented_as_viewers_expect():
    exam = next(exams(0))
    _, who, pixels = next(image for image in archive.images(exam, "0/small/test", "small") if image[1].side == "L")
    ds = dataset(pixels, who, SCANNERS[0])
    assert list(ds.PatientOrientation) == ["A", "R"]
    assert float(ds.PixelSpacing[0]) * ds.Rows == pytest.approx(215, rel=1e-3)


def test_the_quick_way_to_save_writes_the_same_bytes(tmp_path):
    _, who, pixels = next(archive.images(next(exams(0)), "0/small/test", "small"))
    save(dataset(pixels, who, SCANNERS[0]), tmp_path / "a" / "slow.dcm")
    save_plain(pixels, who, SCANNERS[0], tmp_path / "b" / "quick.dcm")
    slow, quick = (tmp_path / "a" / "slow.dcm").read_bytes(), (tmp_path / "b" / "quick.dcm").read_bytes()
    assert slow == quick


@pytest.fixture
def cli() -> typer.Typer:
    app = typer.Typer()
    sample.register(app)
    app.command("other")(lambda: None)  # with a single command, typer drops its name
    return app


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_an_archive_and_its_summary_as_json(cli, tmp_path):
    done = CliRunner().invoke(cli, ["sample", str(tmp_path / "a"), "--studies", "3", "--seed", "1", "--json"])
    assert done.exit_code == 0
    summary = json.loads(done.stdout)
    assert (summary["studies"], summary["images"], summary["patients"], summary["broken"]) == (3, 12, 2, 3)
    assert sum(summary["birads"].values()) == 12
    assert done.stderr == ""
    shutil.rmtree(tmp_path / "a")
    done = CliRunner().invoke(cli, ["sample", str(tmp_path / "a"), "--studies", "3", "--seed", "1"])
    assert "images   12" in done.stdout


def test_the_command_refuses_no_studies_and_a_full_folder(cli, tmp_path):
    assert CliRunner().invoke(cli, ["sample", str(tmp_path / "a"), "--studies", "0"]).exit_code == 2
    (tmp_path / "mine").write_text("mine")
    done = CliRunner().invoke(cli, ["sample", str(tmp_path)])
    assert isinstance(done.exception, Conflict)
