import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from shared.encoder import cards
from shared.errors import Conflict, NotFound
from shared.training.cli import register

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
