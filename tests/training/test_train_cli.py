import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer

from shared.datasets.archive import write_archive
from shared.encoder import cards
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Pad, Recipe
from shared.training.archive import Archive
from shared.training.cli import changed, load, register
from shared.training.data import parts

FILE = """
from dataclasses import replace
from shared.training.augment import NoAugmentation
from shared.training.configs import advanced_ft
from tests.training.small_set import Stripes

PRESETS = ("recommended",)

def experiment(preset, variant):
    one = advanced_ft.experiment(preset, "squeezenet1_0")
    return replace(one, name="stripes", data=Stripes(), side=32, augmentation=NoAugmentation(), epochs=1)
"""


@pytest.fixture
def similis() -> Callable[..., None]:
    app = typer.Typer()
    register(app)

    def run(*words: object) -> None:
        app([str(word) for word in words], standalone_mode=False)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "stripes.py"
    path.write_text(FILE)
    return path


def test_a_model_is_trained_into_a_new_folder(
    similis: Callable[..., None], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", config, "--out", tmp_path / "out", "--set", "method.weights=random:0", "--threads", 1]
    similis(*words, "--seed", 5)
    captured = capsys.readouterr()
    folder = Path(captured.out.strip())
    assert folder == tmp_path / "out" / "model"
    assert cards.read(folder).architecture == "squeezenet1_0"
    assert "epoch 1/1" in captured.err
    assert "images/s" in captured.err
    with pytest.raises(Conflict, match="finished"):
        similis(*words, "--seed", 5)


def test_the_folder_is_named_after_the_experiment(
    similis: Callable[..., None], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    similis("train", config, "--set", "method.weights=random:0", "--threads", 1)
    assert (tmp_path / "runs" / "stripes-recommended-0" / "metrics.json").exists()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files with their table, some of them broken or no images."""
    folder = tmp_path_factory.mktemp("own") / "archive"
    write_archive(folder, studies=8, seed=1)
    return folder


def own(archive: Path, labels: Path) -> Archive:
    return Archive(folder=str(archive), labels=str(labels), label="density", side=48)


def test_an_archive_of_ones_own_is_decoded_by_the_platform_and_split_by_patient(archive: Path) -> None:
    data = own(archive, archive / "labels.csv").load(Path())
    with (archive / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert data.images.shape == (len(rows), 48, 48) == (32, 48, 48)
    fit, held = parts(data)
    assert not set(fit.groups) & set(held.groups)
    assert len(fit) + len(held) == len(data)
    assert len(set(data.groups)) == len({row["patient"] for row in rows})
    assert sorted(data.classes[label] for label in data.labels) == sorted(row["density"] for row in rows)
    assert 0.02 < data.images.mean() / 255 < 0.9


def test_files_that_a_training_leaves_out_are_counted_before_it_begins(
    similis: Callable[..., None], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (archive / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(lines[:-1]) + "\n")
    words = ["train", "own_archive:squeezenet1_0", "--folder", archive, "--labels", tmp_path / "labels.csv"]
    words += ["--label", "density", "--epochs", 1, "--set", "method.weights=random:0", "--set", "side=48"]
    similis(*words, "--threads", 1, "--out", tmp_path / "out")
    said = next(line for line in capsys.readouterr().err.splitlines() if "images to train on" in line)
    note = json.loads((tmp_path / "out" / "metrics.json").read_text())["note"]
    assert "files without a label" in note
    assert said.endswith(f"; {note}")


def test_raw_detector_data_is_not_trained_on(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "archive"
    shutil.copytree(archive, copy)
    path = next((copy / "mammography").rglob("*.dcm"))
    image = pydicom.dcmread(path)
    image.PresentationIntentType = "FOR PROCESSING"
    image.save_as(path)
    data = own(copy, copy / "labels.csv").load(Path())
    assert len(data) == 31
    assert "1 files of raw detector data" in data.note


def test_a_training_that_cannot_choose_an_epoch_says_so(
    similis: Callable[..., None], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "own_archive:squeezenet1_0", "--folder", archive, "--labels", archive / "labels.csv"]
    words += ["--label", "density", "--epochs", 1, "--set", "method.weights=random:0", "--set", "side=48"]
    similis(*words, "--threads", 1, "--out", tmp_path / "out")
    # eight women of four densities: one of each is held out
    assert "the last epoch is kept: too few patients were held out" in capsys.readouterr().err


def test_an_archive_of_ones_own_is_limited_as_the_configuration_says(
    similis: Callable[..., None], archive: Path, tmp_path: Path
) -> None:
    whole = own(archive, archive / "labels.csv").load(Path())
    cut = replace(own(archive, archive / "labels.csv"), limit=5).load(Path())
    assert np.array_equal(cut.part("train").images, whole.part("train").images[:5])
    assert np.array_equal(cut.part("val").images, whole.part("val").images)
    words = ["train", "metric_learning:squeezenet1_0", "--preset", "released-code", "--folder", archive]
    words += ["--labels", archive / "labels.csv", "--label", "density", "--epochs", 1, "--threads", 1]
    similis(*words, "--out", tmp_path / "out", "--set", "method.weights=random:0", "--set", "side=48")
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["data"]["limit"] == 200


def test_a_single_kind_of_label_is_nothing_to_train_on(archive: Path, tmp_path: Path) -> None:
    head, *lines = (archive / "labels.csv").read_text().splitlines()
    kind = next(csv.DictReader([head, *lines]))["density"]
    (tmp_path / "one.csv").write_text("\n".join([head, *(line for line in lines if f",{kind}," in line)]) + "\n")
    with pytest.raises(Invalid, match=r"two different labels: \d+ files not decoded; \d+ files without a label"):
        own(archive, tmp_path / "one.csv").load(Path())


def test_patients_that_are_too_few_to_hold_some_out_are_counted(archive: Path, tmp_path: Path) -> None:
    with (archive / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    one = {row["density"]: row["patient"] for row in rows}  # one woman per density
    with (tmp_path / "few.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows if row["patient"] in one.values())
    with pytest.raises(Invalid, match=r"too few patients \(4\): none can be held out"):
        own(archive, tmp_path / "few.csv").load(Path())


@pytest.mark.parametrize(("base", "preset", "pad"), [("own_archive", "recommended", "square"),
                                                       ("advanced_ft", "paper", "squash")])  # fmt: skip
def test_a_model_is_trained_on_an_archive_of_ones_own(
    similis: Callable[..., None], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    base: str, preset: str, pad: Pad,
) -> None:  # fmt: skip
    words = ["train", f"{base}:squeezenet1_0", "--preset", preset, "--folder", archive]
    words += ["--labels", archive / "labels.csv", "--label", "density", "--epochs", 1, "--threads", 1]
    similis(*words, "--out", tmp_path / "out", "--set", "method.weights=random:0", "--set", "side=48")
    card = cards.read(Path(capsys.readouterr().out.strip()))
    assert card.recipe == Recipe(size=48, pad=pad)
    assert (card.about["data"], card.about["classes"]) == ("folder, density", ["A", "B", "C", "D"])
    assert str(archive) not in json.dumps(cards.read(tmp_path / "out" / "model").to_json()), "the card travels"
    said = json.loads((tmp_path / "out" / "experiment.json").read_text())["data"]
    assert (said["pad"], said["side"]) == (pad, 128 * 256 // 224)  # as the configuration stores images
    with pytest.raises(typer.BadParameter, match="or neither"):
        similis("train", "own_archive", "--folder", archive)


def test_a_folder_that_is_not_there_is_told_and_the_output_stays_free_for_the_right_one(
    similis: Callable[..., None], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive)
    words = ["train", "own_archive:squeezenet1_0", "--labels", "labels.csv", "--label", "density", "--epochs", 1]
    words += ["--set", "method.weights=random:0", "--set", "side=48", "--threads", 1, "--out", tmp_path / "out"]
    with pytest.raises(NotFound, match="no such folder of images"):
        similis(*words, "--folder", archive / "absent")
    similis(*words, "--folder", ".")
    said = json.loads((tmp_path / "out" / "experiment.json").read_text())["data"]
    assert (said["folder"], said["labels"]) == (str(archive), str(archive / "labels.csv"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.limit=abc"], "limit must be of type int"),
        (["data.limit=1.5"], "limit must be of type int"),
        (["clip=null", "clip=abc"], "clip must be of type float"),
        (["seed=-1"], "a seed must be 0 to"),
        (["seed=99999999999999999999"], "a seed must be 0 to"),
        (["sampler.batch=0"], "at least one image"),
        (["optimiser.betas=[2,3]"], "betas must be at least 0"),
        (["optimiser.betas=[0.9]"], "betas must have 2 values"),
        (["optimiser.betas=[0.9,true]"], "betas must be of type float"),
        (["optimiser.weight_decay=-1"], "must be at least 0"),
        (["optimiser.rates.head=-1"], "must be at least 0"),
        (["method.smoothing=3"], "smoothing"),
    ],
)
def test_a_value_that_no_training_can_have_is_told_at_once(
    similis: Callable[..., None], tmp_path: Path, changes: list[str], told: str
) -> None:
    words = [word for change in changes for word in ("--set", change)]
    with pytest.raises(Invalid, match=told):
        similis("train", "advanced_ft:squeezenet1_0", "--data", tmp_path, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "preset", "field", "value"),
    [
        ("acir:s", "recommended", "sampler.per_class", "0"),
        ("acir:s", "recommended", "sampler.classes", "1"),
        ("acir:s", "recommended", "method.shape.bits", "7"),
        ("acir:s", "recommended", "method.fingerprint", "0"),
        ("acir:s", "recommended", "method.stem", "resnet50"),
        ("metric_learning:squeezenet1_0", "released-code", "sampler.batch", "1"),
        ("metric_learning:squeezenet1_0", "recommended", "method.smoothing", "-0.5"),
        ("similis_base:trunk", "recommended", "sampler.batch", "0"),
        *[("advanced_ft:squeezenet1_0", "paper", f"schedule.{name}", "0") for name in ("first", "factor")],
        ("acir:s", "released-code", "schedule.cycle", "0"),
    ],
)
def test_a_part_of_an_experiment_refuses_what_would_never_end_or_end_in_a_traceback(
    config: str, preset: str, field: str, value: str
) -> None:
    with pytest.raises(Invalid, match=r"at least|multiple of 8|a stem must|0 to 1"):
        changed(load(config, preset), field, value)


def test_a_network_made_for_another_side_is_told_before_anything_is_read(
    similis: Callable[..., None], tmp_path: Path
) -> None:
    words = ["train", "acir:xs", "--data", tmp_path, "--out", tmp_path / "out", "--set", "side=64"]
    with pytest.raises(Invalid, match="network takes images of 112 pixels, but the experiment has 64"):
        similis(*words)
    with pytest.raises(NotFound, match="data"):
        similis(*words, "--set", "method.shape.side=64")
    assert not (tmp_path / "out").exists()


def test_what_was_nothing_is_set_as_it_is_declared() -> None:
    experiment = changed(load("advanced_ft:squeezenet1_0", "recommended"), "data.limit", "3")
    experiment = changed(changed(experiment, "clip", "null"), "clip", "2")
    assert (experiment.data.limit, experiment.clip) == (3, 2.0)


def test_a_figure_to_select_by_that_there_is_not_is_told(
    similis: Callable[..., None], config: Path, tmp_path: Path
) -> None:
    words = ["train", config, "--out", tmp_path / "out", "--set", "method.weights=random:0", "--threads", 1]
    with pytest.raises(Invalid, match="selection must be one of macro_precision_at_10, val_accuracy"):
        similis(*words, "--set", "selection=accuracy")


def test_a_file_that_is_no_configuration_is_told(similis: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(Invalid, match="no PRESETS"):
        similis("train", tmp_path / "empty.py")


def test_what_can_be_trained_is_listed(similis: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    similis("train", "--list")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("advanced_ft:densenet121 ") and "released-code" in line for line in lines)


def test_a_data_folder_that_is_not_there_is_told(similis: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="radiology_16class"):
        similis("train", "advanced_ft:squeezenet1_0", "--data", tmp_path, "--out", tmp_path / "out")


def test_a_command_without_a_configuration_says_what_to_do(similis: Callable[..., None]) -> None:
    with pytest.raises(typer.BadParameter, match="--list"):
        similis("train")


def test_the_command_line_does_not_pay_for_torch() -> None:
    code = (
        "import sys, typer; from shared.training.cli import register; register(typer.Typer()); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
