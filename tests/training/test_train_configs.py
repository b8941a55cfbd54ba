"""The presets against the tables of the papers, and the papers' networks through two steps and a resume."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.datasets import development
from shared.datasets.collection import Collection
from shared.encoder.backbones import BACKBONES, PAPER_WEIGHTS
from shared.encoder.network import body, state_of
from shared.errors import Invalid, NotFound
from shared.imaging.recipe import Recipe
from shared.training import checkpoint as kept
from shared.training.augment import Augment
from shared.training.cli import CONFIGS, changed, listed, load
from shared.training.experiment import Cosine, Experiment, Optimiser, Shuffled, Steps, WarmRestarts
from shared.training.finetune import AdvancedFT
from shared.training.metric import MetricLearning
from shared.training.samplers import ClassBalanced, Triplets
from shared.training.train import train
from tests.training.small_set import stripes

NAMES = [line.split()[0] for line in listed()]
MINE = [name for name in NAMES if name.startswith(("advanced_ft", "metric_learning"))]


@pytest.mark.parametrize("variant", ["densenet121", "resnet50"])
def test_advanced_ft_is_as_the_paper_has_it(variant: str) -> None:
    one = load(f"advanced_ft:{variant}", "paper")
    assert one.method == AdvancedFT(architecture=variant, weights=PAPER_WEIGHTS[variant], smoothing=0.1)
    assert one.optimiser == Optimiser(rates={"backbone": 1e-5, "head": 1e-4}, kind="adamw", weight_decay=1e-4)
    assert one.schedule == WarmRestarts(first=5, factor=2, least=1e-6)
    assert (one.epochs, one.patience, one.clip, one.side) == (20, 7, 1.0, 224)
    assert one.sampler == Shuffled(batch=16)
    assert one.data.side == 256
    assert one.augmentation == Augment(
        scale=(0.8, 1.0), horizontal=0.5, vertical=0.0, degrees=15, brightness=0.2, contrast=0.2, erasing=0.1
    )
    assert (one.selection, one.reload_best) == ("macro_precision_at_10", True)


def test_advanced_ft_differs_as_the_released_code_does() -> None:
    paper, code = load("advanced_ft:densenet121", "paper"), load("advanced_ft:densenet121", "released-code")
    assert set(code.optimiser.rates.values()) == {1e-4}
    assert code.augmentation == replace(paper.augmentation, vertical=0.3)
    assert (code.selection, code.reload_best) == ("val_accuracy", False)
    assert (code.method, code.schedule, code.sampler, code.epochs) == (
        paper.method, paper.schedule, paper.sampler, paper.epochs,
    )  # fmt: skip


def test_metric_learning_is_as_the_paper_and_as_the_released_code_have_it() -> None:
    paper, code = load("metric_learning:densenet121", "paper"), load("metric_learning:densenet121", "released-code")
    assert (paper.method.triplet, paper.method.classification, paper.method.centre) == (0.6, 0.3, 0.1)
    assert (paper.method.mining, paper.method.margin, paper.method.centres_of) == ("batch-hard", 0.5, "raw")
    assert paper.sampler == ClassBalanced(classes=5, per_class=6)
    assert (code.method.triplet, code.method.classification, code.method.centre) == (0.7, 0.3, 0.0)
    assert (code.method.mining, code.data.limit, code.sampler) == ("drawn", 200, Triplets(batch=8))
    assert (code.augmentation, code.patience) == (Augment(vertical=0, erasing=0), code.epochs)
    assert code.schedule == Steps(size=5, factor=0.5)
    for one in (paper, code):
        assert (one.epochs, one.optimiser.weight_decay, set(one.optimiser.rates.values())) == (15, 1e-4, {1e-4})


@pytest.mark.parametrize("name", MINE)
def test_each_configuration_makes_an_experiment_of_its_own_in_each_preset(name: str) -> None:
    made = [load(name, preset) for preset in ("recommended", "paper", "released-code")]
    assert len({one.digest for one in made}) == 3
    assert {one.preset for one in made} == {"recommended", "paper", "released-code"}
    architecture = name.partition(":")[2]
    assert all(one.method.architecture == architecture for one in made)
    assert architecture in BACKBONES
    small = architecture in {"mobilenet_v2", "squeezenet1_0"}
    assert {(one.side, one.data.side) for one in made} == {(128, 146) if small else (224, 256)}
    assert all(isinstance(one.method, AdvancedFT | MetricLearning) for one in made)


@pytest.mark.parametrize("config", ["advanced_ft", "metric_learning"])
def test_images_are_squashed_as_the_papers_do_and_padded_as_we_do(config: str, tmp_path: Path) -> None:
    for preset, pad in (("paper", "squash"), ("released-code", "squash"), ("recommended", "square")):
        one = load(f"{config}:densenet121", preset)
        assert one.recipe == Recipe(size=224, pad=pad)
        data = replace(one.data, name="phantoms:1:1", side=64)
        wanted = development.load("phantoms:1:1", tmp_path, recipe=Recipe(size=64, pad=pad))
        assert np.array_equal(data.load(tmp_path).images, wanted.images)


def test_recommended_keeps_the_ratio_of_the_rates_and_runs_one_cosine() -> None:
    one = load("advanced_ft:mobilenet_v2", "recommended")
    assert one.optimiser.rates["head"] / one.optimiser.rates["backbone"] == pytest.approx(10)
    assert isinstance(one.schedule, Cosine)


def test_every_file_of_configurations_is_listed() -> None:
    assert {name.partition(":")[0] for name in NAMES} == {p.stem for p in CONFIGS.glob("*.py")} - {"__init__"}


def test_names_that_are_not_there_are_told() -> None:
    with pytest.raises(NotFound):
        load("no_such", "paper")
    with pytest.raises(NotFound):
        load("../cli", "paper")
    with pytest.raises(Invalid, match="recommended, paper"):
        load("advanced_ft", "exact")
    with pytest.raises(Invalid, match="densenet121"):
        load("advanced_ft:alexnet", "paper")


def test_a_file_like_those_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from shared.training.configs import advanced_ft\n"
        "PRESETS = ('paper',)\n"
        "def experiment(preset, variant):\n"
        "    return replace(advanced_ft.experiment(preset, 'vgg16'), epochs=2)\n"
    )
    assert load(str(path), "paper") == replace(load("advanced_ft:vgg16", "paper"), epochs=2)


def test_a_field_is_changed_deep_inside_and_nothing_else() -> None:
    one = load("advanced_ft:vgg16", "paper")
    assert changed(one, "seed", "3") == replace(one, seed=3)
    assert changed(one, "method.weights", "net.safetensors") == replace(
        one, method=replace(one.method, weights="net.safetensors")
    )
    assert changed(one, "optimiser.rates.head", "1").optimiser.rates == {"backbone": 1e-5, "head": 1.0}
    assert changed(one, "method.mean", "[0.5, 0.5, 0.5]").method.mean == (0.5, 0.5, 0.5)
    assert changed(one, "data.limit", "10").data.limit == 10
    assert changed(one, "clip", "null").clip is None
    assert changed(one, "optimiser.kind", "sgd").optimiser.kind == "sgd"


@pytest.mark.parametrize("word", ["colour=1", "method.colour=1", "seed.a=1", "epochs=many", "epochs=1.5", "epochs=0"])
def test_a_field_that_is_not_there_or_of_another_type_is_refused(word: str) -> None:
    with pytest.raises(Invalid):
        changed(load("advanced_ft:vgg16", "paper"), *word.split("="))


@pytest.mark.parametrize(
    ("config", "word", "words"),
    [
        ("advanced_ft:vgg16", "optimiser.kind=adamW", "adamw, adam, sgd"),
        ("advanced_ft:vgg16", "precision=fp16", "fp32, bf16"),
        ("metric_learning:vgg16", "method.mining=hard", "batch-hard, semi-hard, drawn"),
        ("metric_learning:vgg16", "method.centres_of=units", "raw, unit"),
        ("acir:s", "method.shape.widths=m", "full, s, s-half, xs"),
        ("acir:s", "method.printed=both", "clean, augmented"),
    ],
)
def test_a_word_that_a_field_does_not_have_is_refused_and_the_others_are_named(
    config: str, word: str, words: str
) -> None:
    """Otherwise the value would be taken for another, or fail after hours of training."""
    with pytest.raises(Invalid, match=f"must be one of {words}"):
        changed(load(config, "recommended"), *word.split("="))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sixteen:
    """Sixteen training images: one batch, so one optimiser step per epoch."""

    side: int = 32

    def load(self, root: Path) -> Collection:
        return stripes(32, self.side, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedAt:
    """The configuration's augmentation, which stops the training at the batch that `turns` says."""

    inner: Augment

    def __call__(self, images: Tensor, side: int) -> Tensor:
        if turns and turns.pop() == "stop":
            raise KeyboardInterrupt
        return self.inner(images, side)


turns: list[str] = []  # a stack: the last entry is next


def interrupted(one: Experiment, out: Path, after: int) -> None:
    turns[:] = ["stop", *["go on"] * after]
    with pytest.raises(KeyboardInterrupt):
        train(one, Path(), out, threads=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that writes randomly initialised weights of an architecture."""
    folder = tmp_path_factory.mktemp("weights")

    def path(architecture: str) -> str:
        made = folder / f"{architecture}.safetensors"
        if not made.exists():
            save_file(state_of(body(architecture)), made)
        return str(made)

    return path


@pytest.mark.parametrize(
    "name",
    [
        "advanced_ft:densenet121",
        "advanced_ft:resnet50",
        "metric_learning:densenet121",
        pytest.param("advanced_ft:vgg16", marks=pytest.mark.soak),  # half a minute
    ],
)
def test_the_papers_networks_take_two_steps_and_a_resume(
    tmp_path: Path, name: str, weights: Callable[[str], str]
) -> None:
    one = load(name, "paper")
    method = replace(one.method, weights=weights(one.method.architecture))
    one = replace(one, data=Sixteen(), side=32, method=method, augmentation=StoppedAt(inner=one.augmentation))
    large = name == "advanced_ft:vgg16"
    if large:  # with AdamW's two moments, a checkpoint of 134 million weights would take 1.6 GB; this one a third
        one = replace(one, optimiser=Optimiser(rates=one.optimiser.rates, kind="sgd", momentum=0))
    interrupted(one, tmp_path / "broken", after=1)
    first = kept.load(tmp_path / "broken")
    interrupted(one, tmp_path / "broken", after=1)
    second = kept.load(tmp_path / "broken")
    assert (first.epoch, second.epoch) == (1, 2)
    assert {int(entry["step"]) for entry in second.optimiser["state"].values()} == (set() if large else {2})
    moved = {key.partition(".")[0] for key, value in second.model.items() if not torch.equal(value, first.model[key])}
    assert {"network", "head"} <= moved
    if name == "advanced_ft:densenet121":
        interrupted(one, tmp_path / "unbroken", after=2)
        unbroken = kept.load(tmp_path / "unbroken").model
        assert all(torch.equal(value, unbroken[key]) for key, value in second.model.items())
