import json
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.errors import Conflict, Invalid
from shared.training import checkpoint as kept
from shared.training import train as loop
from shared.training.augment import Augment
from shared.training.experiment import Batch, Encode, Experiment, Json, Method, Optimiser, Shuffled, WarmRestarts
from tests.training.small_set import Stripes, stripes


@dataclass(frozen=True, slots=True, kw_only=True)
class Small(Method[nn.Sequential]):
    """A network with state and randomness: batch normalisation, dropout, several weights."""

    scores: tuple[float, ...] = ()  #: the validation score of each epoch; empty: the real one

    def build(self, data: Collection) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(128, len(data.classes)),
        )  # fmt: skip

    def step(self, model: nn.Sequential, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = functional.cross_entropy(model(batch.pixels[:, None]), batch.labels)
        return loss, {"half": loss / 2}

    def embed(self, model: nn.Sequential, pixels: Tensor) -> Tensor:
        return model[:-1](pixels[:, None])

    def validate(self, model: nn.Sequential, held: Collection, encode: Encode) -> Mapping[str, float]:
        if not self.scores:
            return Method.validate(self, model, held, encode)
        seen = int(model[1].num_batches_tracked)  # one batch per epoch, so this is the epoch
        return {"macro_precision_at_10": self.scores[seen - 1]}

    def save(self, model: nn.Sequential, folder: Path, experiment: Experiment, about: Json) -> None:
        folder.mkdir()
        save_file(model.state_dict(), folder / "weights.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """An augmentation that stops the training at the batch that `fuse` says."""

    degrees: float = 5

    def __call__(self, images: Tensor, side: int) -> Tensor:
        if fuse and fuse.pop() == "stop":
            raise KeyboardInterrupt
        return Augment(degrees=self.degrees)(images, side)


fuse: list[str] = []  # one entry per batch; a stack: the last entry is next


@pytest.fixture(autouse=True)
def _no_fuse() -> None:
    fuse.clear()


def train(one: Experiment, out: Path, **options: bool) -> Json:
    """Train with one thread: images are few, and other tests run in parallel."""
    return loop.train(one, Path(), out, threads=1, **options)


def experiment(**changes: object) -> Experiment:
    made = Experiment(
        name="small",
        data=Stripes(),
        side=32,
        method=Small(),
        sampler=Shuffled(batch=16),
        augmentation=Fused(),
        optimiser=Optimiser(rates={"all": 1e-2}),
        schedule=WarmRestarts(first=2),
        epochs=3,
        patience=3,
        precision="fp32",
    )
    return replace(made, **changes)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_experiment_gives_the_same_weights_twice_and_another_seed_others(tmp_path: Path) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # the caller's random state must not matter
        train(experiment(seed=seed), tmp_path / out)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def stop_in_the_second_epoch() -> None:
    batches = sum(1 for _ in Shuffled(batch=16).batches(np.zeros(40), np.zeros(40), 0))
    fuse.extend(["stop", *["go on"] * (batches + 1)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_that_was_stopped_amid_an_epoch_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, precision: str
) -> None:
    one = experiment(precision=precision)
    train(one, tmp_path / "unbroken")
    stop_in_the_second_epoch()
    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path / "broken")
    assert kept.load(tmp_path / "broken").epoch == 1
    assert not (tmp_path / "broken" / "metrics.json").exists()
    train(one, tmp_path / "broken")
    assert same(tmp_path / "unbroken", tmp_path / "broken")


def test_the_caller_keeps_generator_and_threads(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted, threads = torch.rand(4), torch.get_num_threads()
    torch.manual_seed(5)
    train(experiment(epochs=1), tmp_path / "a")
    assert torch.equal(torch.rand(4), wanted)
    assert torch.get_num_threads() == threads


def test_training_learns_what_is_there_to_be_learned(tmp_path: Path) -> None:
    figures = train(experiment(epochs=8, patience=8, augmentation=Augment(degrees=0, horizontal=0)), tmp_path)
    first, last = figures["history"][0], figures["history"][-1]
    assert last["loss"] < first["loss"] / 1.5
    assert figures["best_score"] > 0.6  # chance is .25
    assert last["half"] == pytest.approx(last["loss"] / 2, rel=1e-5)


def test_a_gradient_is_clipped_to_a_norm_or_left_as_it_is(tmp_path: Path) -> None:
    steps = {"far": 1e9, "near": 1e-4, "none": None}
    for name, clip in steps.items():
        train(experiment(clip=clip, epochs=1), tmp_path / name)
    assert same(tmp_path / "none", tmp_path / "far")
    assert not same(tmp_path / "none", tmp_path / "near")
    with pytest.raises(Invalid, match="None for no clipping"):
        experiment(clip=0.0)


def one_batch_an_epoch(*scores: float, **changes: object) -> Experiment:
    return experiment(method=Small(scores=scores), sampler=Shuffled(batch=40), epochs=len(scores), **changes)


def test_the_weights_of_the_best_epoch_are_kept(tmp_path: Path) -> None:
    figures = train(one_batch_an_epoch(0.1, 0.5, 0.2), tmp_path / "best")
    assert (figures["best_epoch"], figures["best_score"]) == (1, 0.5)
    assert int(weights(tmp_path / "best")["1.num_batches_tracked"]) == 2
    train(one_batch_an_epoch(0.1, 0.5, 0.2, reload_best=False), tmp_path / "last")
    assert int(weights(tmp_path / "last")["1.num_batches_tracked"]) == 3


def test_training_ends_after_as_many_epochs_of_patience(tmp_path: Path) -> None:
    figures = train(one_batch_an_epoch(0.1, 0.5, 0.2, 0.3, 0.4, 0.9, patience=2), tmp_path)
    assert [entry["epoch"] for entry in figures["history"]] == [0, 1, 2, 3]
    assert figures["best_epoch"] == 1


def test_a_figure_that_cannot_be_measured_stops_nothing_and_leaves_the_last_epoch(tmp_path: Path) -> None:
    figures = train(one_batch_an_epoch(*[float("nan")] * 3, patience=1), tmp_path / "none")
    assert figures["best_epoch"] == 2
    assert int(weights(tmp_path / "none")["1.num_batches_tracked"]) == 3
    written = (tmp_path / "none" / "metrics.json").read_text()
    assert json.loads(written, parse_constant=pytest.fail)["best_score"] is None
    assert train(one_batch_an_epoch(0.5, float("nan"), 0.2), tmp_path / "some")["best_epoch"] == 0


def test_a_finished_model_is_never_overwritten(tmp_path: Path) -> None:
    train(experiment(epochs=1), tmp_path / "a")
    before = weights(tmp_path / "a")
    for again in (experiment(epochs=1), experiment(epochs=1, seed=9)):
        with pytest.raises(Conflict, match="finished"):
            train(again, tmp_path / "a")
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "a").items())


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(Conflict, match="no training"):
        train(experiment(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unfinished_training_is_resumed_by_the_same_experiment_only_and_only_if_wanted(tmp_path: Path) -> None:
    stop_in_the_second_epoch()
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path)
    with pytest.raises(Conflict, match="differ in clip, seed"):
        train(experiment(seed=4, clip=2.0), tmp_path)
    with pytest.raises(Conflict, match="unfinished"):
        train(experiment(), tmp_path, resume=False)
    assert train(experiment(), tmp_path)["best_epoch"] >= 0


@pytest.mark.parametrize("changed", ["images", "labels", "groups"])
def test_a_training_does_not_go_on_with_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    stop_in_the_second_epoch()
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path)
    found = Stripes().load(Path())
    rows = getattr(found, changed).copy()
    rows[0] += 1
    if changed == "labels":
        rows[0] %= len(found.classes)
    with monkeypatch.context() as patch, pytest.raises(Conflict, match="not those that this training began with"):
        patch.setattr(Stripes, "load", lambda *_: replace(found, **{changed: rows}))
        train(experiment(), tmp_path)
    assert train(experiment(), tmp_path)["best_epoch"] >= 0


def test_a_folder_in_which_nothing_was_kept_is_free_for_another_training(tmp_path: Path) -> None:
    fuse.append("stop")  # stops in the first epoch
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()  # an existing folder remains
    fuse.append("stop")
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    assert train(experiment(seed=4, epochs=1), tmp_path / "a")["seed"] == 4


def test_a_disk_without_room_for_the_checkpoint_is_told_and_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            train(experiment(), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "a").exists()
    assert train(experiment(epochs=1), tmp_path / "a")["seed"] == 0


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    with kept.claimed(tmp_path, experiment(), resume=True), pytest.raises(Conflict, match="running in this folder"):
        train(experiment(), tmp_path)
    train(experiment(epochs=1), tmp_path / "free")


def test_a_checkpoint_that_was_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    kept.save(kept.Checkpoint(epoch=3, best_epoch=1), tmp_path)
    with pytest.raises(RuntimeError, match="no space"), kept.replacing(tmp_path / kept.CHECKPOINT) as path:
        path.write_bytes(b"half a chec")
        raise RuntimeError("no space")
    assert kept.load(tmp_path).epoch == 3


def test_a_checkpoint_is_on_the_disk_before_its_name_and_its_name_before_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill does not show it: what is not synced survives a kill, and not a loss of power."""
    synced: list[str] = []
    sync = os.fsync

    def watched(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    kept.save(kept.Checkpoint(epoch=3), tmp_path)
    assert synced == [str(tmp_path / f".{kept.CHECKPOINT}.part"), str(tmp_path)]


def test_a_checkpoint_that_was_damaged_is_told(tmp_path: Path) -> None:
    kept.save(kept.Checkpoint(epoch=3, best_epoch=1), tmp_path)
    whole = (tmp_path / kept.CHECKPOINT).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x80\x02."):
        (tmp_path / kept.CHECKPOINT).write_bytes(damaged)
        with pytest.raises(Invalid, match="damaged"):
            kept.load(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="finite"):
        train(experiment(optimiser=Optimiser(rates={"all": 1e30}), clip=1e30), tmp_path)


def test_a_group_in_both_parts_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Leaky:
        def load(self, root: Path) -> Collection:
            data = stripes(64, 32, 0)
            return replace(data, groups=data.groups % 5)

    with pytest.raises(Invalid, match="a patient has images in train and val"):
        train(experiment(data=Leaky()), tmp_path)


def test_the_figures_say_what_was_done(tmp_path: Path) -> None:
    one = experiment(epochs=1)
    figures = train(one, tmp_path)
    assert figures == json.loads((tmp_path / "metrics.json").read_text())
    assert figures["digest"] == one.digest
    assert figures["images"] == {"train": 40, "val": 16}
    assert json.loads((tmp_path / "experiment.json").read_text())["data"] == {
        "kind": "Stripes", "n": 64, "side": 32, "seed": 0,
    }  # fmt: skip
