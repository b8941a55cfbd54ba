import csv
import errno
import json
import os
import shutil

import numpy as np
import pytest
import typer
from PIL import Image
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from shared.datasets import development
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe
from shared.training.evaluate_cli import _of_collection, _protocols, encode_command, evaluate_command
from shared.training.protocols import PROTOCOLS
from shared.training.vectors import of_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "models" / "tiny"
    build(folder, "tiny", "null", "random:0", Recipe(size=64), dim=32)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Thirty women with two pictures each; brightness shows the category, and the table lacks two pictures."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(0)
    rows = []
    for woman in range(30):
        category = woman % 3
        for view in ("CC", "MLO"):
            name = f"{woman:02d}-{view}.png"
            ramp = np.linspace(0, 1, 64) ** (1 + 2 * category)
            picture = np.tile(ramp, (64, 1)) * 200 + rng.integers(0, 40, size=(64, 64))
            Image.fromarray(picture.astype(np.uint8)).save(folder / name)
            birads = {0: "1", 1: "3", 2: "5"}[category] if woman else "0"
            rows.append({"file": name, "patient": f"w{woman}", "view": view, "modality": "MG", "birads": birads})
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(folder / "unknown.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def runner(command):
    app = typer.Typer()
    app.command()(command)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def run():
    return runner(evaluate_command)


def test_a_folder_of_ones_own_with_its_table_becomes_a_report(run, model, archive, tmp_path):
    done = run(
        "--model", model, "--folder", archive, "--labels", archive / "labels.csv", "--out", tmp_path / "report",
        "--protocol", "all", "--seeds", 2, "--resamples", 1000, "--no-pictures",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "report" / "report.md") in done.stdout
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts["data"]["classes"] == {"1": 18, "3": 20, "5": 20}
    assert facts["data"]["patients or groups"] == 29
    assert facts["about"]["trained"] is False
    found = {(row["protocol"], row["part"], row["name"]): row for row in facts["figures"]}
    protocols = {row["protocol"] for row in facts["figures"]}
    assert protocols == {"paper1-compat", "paper1-compat-without-self", "paper2-v1-compat", "patient", "lopo"}
    assert found["lopo", "all", "P@10"]["micro"] > 2 * found["lopo", "all", "P@10"]["random_micro"]
    assert found["lopo", "view=CC", "P@10"]["queries"] == 29
    votes = {(row["protocol"], row["k"]): row for row in facts["votes"]}
    assert votes["lopo", 5]["quadratic_kappa"] > 0.5


def test_what_was_left_out_is_counted(model, archive):
    subjects, vectors = of_folder(load(model), archive, archive / "labels.csv", "birads")
    assert len(subjects) == len(vectors.embeddings) == 58
    assert list(subjects.grades) == [1, 3, 5]
    assert "2 files not decoded" in subjects.note  # the broken file, and the table
    assert "3 files without a label" in subjects.note  # one without a row, and two of BI-RADS 0


def test_images_of_one_study_are_of_one_patient_where_none_is_named(model, archive, tmp_path):
    names = sorted(path.name for path in archive.glob("0*-*.png"))
    lines = [f"{name},exam{name[:2]},{1 + int(name[:2]) % 2}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["file,study,birads", *lines]) + "\n")
    subjects, _ = of_folder(load(model), archive, tmp_path / "labels.csv", "birads")
    assert len(subjects) == len(names) == 20
    assert len(set(subjects.groups)) == 10
    assert "20 files without a patient" in subjects.note


def test_a_split_in_the_table_is_said_not_to_be_used(model, archive, tmp_path):
    first, *rest = (archive / "labels.csv").read_text().splitlines()
    parts = ["test", "train", ""]
    lines = [f"{line},{parts[number % 3]}" for number, line in enumerate(rest)]
    (tmp_path / "labels.csv").write_text("\n".join([f"{first},Split", *lines]) + "\n")
    subjects, _ = of_folder(load(model), archive, tmp_path / "labels.csv", "birads")
    assert "38 files with a split in the table, which is not used" in subjects.note


def test_a_row_that_names_files_of_two_patients_labels_neither(model, archive, tmp_path):
    for place in ("P1", "P2", "P3"):
        (tmp_path / "images" / place).mkdir(parents=True)
        shutil.copy(archive / "29-CC.png", tmp_path / "images" / place / "L.png")
    shutil.copy(archive / "28-CC.png", tmp_path / "images" / "P1" / "R.png")
    shutil.copy(archive / "29-CC.png", tmp_path / "images" / "top.png")
    (tmp_path / "labels.csv").write_text("file,patient,birads\nL.png,w1,2\nP3/L.png,w3,3\nR.png,w1,4\ntop.png,w4,5\n")
    subjects, _ = of_folder(load(model), tmp_path / "images", tmp_path / "labels.csv", "birads")
    assert [subjects.classes[label] for label in subjects.labels] == ["4", "3", "5"]
    assert len(set(subjects.groups)) == 3
    assert "2 files whose name in the table matches files in several folders" in subjects.note


def test_rows_and_vectors_belong_together(model, archive):
    subjects, vectors = of_folder(load(model), archive, archive / "labels.csv", "birads")
    with Image.open(archive / "29-MLO.png") as image:
        pixels = np.asarray(image, np.float32)[None] / 255
    own = load(model).encode(pixels).embeddings[0]
    nearest = np.linalg.norm(vectors.embeddings - own, axis=1).argmin()
    assert subjects.columns["view"][nearest] == "MLO"
    assert subjects.classes[subjects.labels[nearest]] == "5"
    assert nearest == len(subjects) - 1


def test_a_table_without_a_label_of_any_file_is_refused(model, archive):
    with pytest.raises(Invalid, match="2 files not decoded; 61 files without a label"):
        of_folder(load(model), archive, archive / "labels.csv", "density")
    with pytest.raises(NotFound, match="no such folder of images"):
        of_folder(load(model), archive / "absent", archive / "labels.csv", "birads")


def test_densities_are_no_categories_of_birads(run, model, archive, tmp_path):
    names = sorted(path.name for path in archive.glob("*-CC.png"))
    lines = [f"{name},{name[:2]},{'ABCD'[number % 4]}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,patient,density", *lines]) + "\n")
    done = run(
        "--model", model, "--folder", archive, "--labels", tmp_path / "labels.csv", "--label", "density",
        "--out", tmp_path / "report", "--protocol", "lopo", "--resamples", 1000, "--no-pictures",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for vote in json.loads((tmp_path / "report" / "report.json").read_text())["votes"]:
        assert vote["quadratic_kappa"] is not None
        assert vote["balanced_accuracy_456"] is None, "density D against A to C is no look at BI-RADS 4 to 6"


def test_images_of_one_patient_find_nothing_of_another_and_that_is_said(run, model, archive, tmp_path):
    head, *lines = (archive / "labels.csv").read_text().splitlines()
    for name, patients in (("one", (1,)), ("each", (1, 2, 3))):  # one patient; and each class at one patient only
        kept = [line for line in lines if int(line[:2]) in patients]
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *kept]) + "\n")
        with pytest.raises(Invalid, match="lopo: no query has an image of its class"):
            run("--model", model, "--folder", archive, "--labels", tmp_path / f"{name}.csv",
                "--out", tmp_path / name, "--protocol", "lopo")  # fmt: skip


def test_a_made_up_collection_and_a_model_by_name(run, model, tmp_path):
    done = run(
        "--model", "tiny", "--home", model.parent.parent, "--collection", "phantoms:12:1", "--out", tmp_path / "report",
        "--protocol", "split", "--distance", "l2", "--resamples", 1000,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {"report.md", "pca.png", "tsne.png", "figures.csv"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }
    assert "## split, l2" in (tmp_path / "report" / "report.md").read_text()


def test_what_is_asked_beside_all_protocols_is_measured_too_and_nothing_twice():
    named = _protocols(["patient", "all", "patient:CC:MLO", "lopo"], given=False)
    assert named == ("patient", "paper1-compat", "paper1-compat-without-self", "paper2-v1-compat", "lopo",
                     "patient:CC:MLO")  # fmt: skip
    assert _protocols(["all"], given=True) == tuple(PROTOCOLS)
    with pytest.raises(NotFound, match="no such protocol"):
        _protocols(["all", "patients"], given=True)
    for name in ("split", "split:CC:MLO"):
        with pytest.raises(Invalid, match="a folder has no split, and the column of a table is not used"):
            _protocols([name], given=False)


def test_components_that_cannot_be_fitted_are_refused_before_anything_is_encoded(run, model, tmp_path):
    asked = ("--model", model, "--collection", "unknown, which is told later", "--out", tmp_path / "report")
    with pytest.raises(Invalid, match="lopo has no training part to fit components to: use patient or split"):
        run(*asked, "--components", 5, "--protocol", "patient", "--protocol", "lopo:CC:MLO")
    with pytest.raises(Invalid, match="the model's vectors have only 32 numbers"):
        run(*asked, "--components", 33)
    assert _protocols(["all"], given=False, fitted=True) == ("paper2-v1-compat", "patient")
    assert _protocols(["all"], given=True, fitted=True) == ("paper2-v1-compat", "patient", "split")


def test_a_collection_is_shown_to_a_model_as_its_recipe_says(tmp_path):
    seen = []
    for recipe in (Recipe(size=64), Recipe(size=64, pad="square")):
        build(tmp_path / recipe.pad, "tiny", "null", "random:0", recipe, dim=32)
        encoder = load(tmp_path / recipe.pad)
        images = development.load("phantoms:4:1", tmp_path, recipe=recipe).images
        _, found = _of_collection(encoder, "phantoms:4:1", tmp_path)
        assert np.array_equal(found.embeddings, encoder.encode(images / np.float32(255)).embeddings)
        seen.append(images)
    assert not np.array_equal(*seen)


def test_another_model_is_subtracted_with_a_paired_test(run, model, archive, tmp_path):
    other = tmp_path / "other"
    build(other, "other", "null", "random:7", Recipe(size=32), dim=4)
    done = run(
        "--model", model, "--against", other, "--folder", archive, "--labels", archive / "labels.csv",
        "--out", tmp_path / "report", "--protocol", "lopo", "--resamples", 1000, "--no-pictures",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts["against"]["model"].startswith("other")
    rows = {(row["space"], row["name"], row["mean"]): row for row in facts["differences"]}
    assert {key[1:] for key in rows} == {(f, m) for f in ("P@10", "nDCG@10", "mAP") for m in ("micro", "macro")}
    alone = run(
        "--model", other, "--folder", archive, "--labels", archive / "labels.csv", "--out", tmp_path / "alone",
        "--protocol", "lopo", "--resamples", 1000, "--no-pictures",
    )  # fmt: skip
    assert alone.exit_code == 0
    means = []
    for report in ("report", "alone"):
        found = json.loads((tmp_path / report / "report.json").read_text())["figures"]
        means.append(next(r["macro"] for r in found if (r["part"], r["name"]) == ("all", "mAP")))
    one = rows["cosine", "mAP", "macro"]
    assert one["difference"] == pytest.approx(means[0] - means[1], abs=1e-5)
    assert one["difference_low"] <= one["difference"] <= one["difference_high"]
    assert 0 < one["p"] <= 1
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Minus other" in text
    assert (tmp_path / "report" / "differences.csv").exists()


def test_a_damaged_model_to_compare_with_is_told_before_anything_is_encoded(run, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "weights.safetensors").unlink()
    with pytest.raises(Invalid, match=r"weights.safetensors is missing"):
        run("--model", model, "--against", other, "--collection", "absent", "--out", tmp_path / "report")


def test_a_report_is_never_overwritten(run, model, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(Conflict):
        run("--model", model, "--collection", "phantoms:2:1", "--out", tmp_path)


@pytest.mark.parametrize("words", [(), ("--collection", "mias", "--folder", "x"), ("--folder", "x"), ("--labels", "x")])
def test_the_images_are_named_in_one_way(run, model, tmp_path, words):
    assert run("--model", model, "--out", tmp_path / "report", *words).exit_code == 2


def test_what_there_is_not_is_told(run, model, tmp_path):
    with pytest.raises(NotFound, match="no such model"):
        run("--model", "missing", "--home", tmp_path, "--collection", "phantoms:2:1", "--out", tmp_path / "report")
    with pytest.raises(NotFound, match="no such protocol"):
        run("--model", model, "--collection", "phantoms:2:1", "--protocol", "all-of-it", "--out", tmp_path / "report")
    with pytest.raises(Invalid, match="distance"):
        run("--model", model, "--collection", "phantoms:2:1", "--distance", "l1", "--out", tmp_path / "report")


def test_vectors_of_a_folder_are_written_with_the_file_of_each_row(model, archive, tmp_path):
    out = tmp_path / "vectors.npy"
    done = runner(encode_command)(model, archive, out)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(out)]
    assert "61 images; 2 files not decoded" in done.stderr
    with (tmp_path / "vectors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(path.name for path in archive.glob("*.png") if path.stem != "broken")
    assert {row["frame"] for row in rows} == {"1"}
    found, plain = np.load(out), load(model, "onnx", 1)
    picture = np.asarray(Image.open(archive / rows[7]["file"]), np.float32)[None] / 255
    assert found.shape == (61, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[7], plain.encode(picture).embeddings[0], atol=1e-6)
    with pytest.raises(Conflict):
        runner(encode_command)(model, archive, out)
    assert runner(encode_command)(model, archive, tmp_path / "vectors.txt").exit_code == 2


def test_a_file_is_an_image_by_what_it_holds_and_not_by_its_name(model, tmp_path):
    images, table = tmp_path / "images", tmp_path / "labels.csv"
    images.mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), images / "IM000001")
    (images / "DICOMDIR").write_bytes(b"no picture")
    table.write_text("file,birads\nIM000001,2\n")
    done = runner(encode_command)(model, images, tmp_path / "vectors.npy")
    assert done.exit_code == 0, done.output
    assert "1 images; 1 files not decoded" in done.stderr
    subjects, _ = of_folder(load(model), images, table, "birads")
    assert len(subjects) == 1


def test_vectors_that_cannot_be_written_leave_no_table_of_them(model, archive, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        runner(encode_command)(model, archive, tmp_path / "vectors.npy")
    assert not list(tmp_path.iterdir())


def test_a_file_whose_name_is_no_utf_8_has_its_row(model, archive, tmp_path):
    name = os.fsdecode(b"\xff.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes((archive / "29-CC.png").read_bytes())
    done = runner(encode_command)(model, tmp_path / "images", tmp_path / "vectors.npy")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "vectors.csv").read_bytes().split() == [b"file,frame", b"\xff.png,1"]
    assert np.load(tmp_path / "vectors.npy").shape == (1, 32)


def test_a_place_that_cannot_be_written_is_told_before_any_image_is_looked_for(run, model, tmp_path):
    nothing, table, taken = tmp_path / "nothing", tmp_path / "labels.csv", tmp_path / "taken"
    nothing.mkdir()
    table.touch()
    taken.touch()
    with pytest.raises(NotFound, match=r"folder of OUT.npy does not exist"):
        runner(encode_command)(model, nothing, tmp_path / "nowhere" / "vectors.npy")
    with pytest.raises(FileExistsError):
        run("--model", model, "--folder", nothing, "--labels", table, "--out", taken)
