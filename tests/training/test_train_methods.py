from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from shared.encoder import cards
from shared.encoder.network import state_of
from shared.encoder.runtime import load
from shared.encoder.untrained import untrained
from shared.imaging.recipe import Recipe
from shared.training.augment import NoAugmentation
from shared.training.experiment import Batch, Experiment, Optimiser, Shuffled, WarmRestarts
from shared.training.finetune import AdvancedFT
from shared.training.metric import MetricLearning, Mining
from shared.training.train import train
from tests.training.small_set import Stripes, stripes


@pytest.fixture(scope="module")
def batch() -> Batch:
    data = stripes(32, 32, 0)
    pixels = torch.from_numpy(data.images).float() / 255
    labels, groups = torch.from_numpy(data.labels), torch.from_numpy(data.groups)
    return Batch(views=(pixels,), clean=pixels, labels=labels, groups=groups, rows=torch.arange(32))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that writes untrained weights of an architecture, cached because that takes a second."""
    folder = tmp_path_factory.mktemp("weights")

    def path(architecture: str) -> str:
        made = folder / f"{architecture}.safetensors"
        if not made.exists():
            save_file(state_of(untrained(architecture, 0)), made)
        return str(made)

    return path


@pytest.fixture(scope="module")
def squeeze(weights: Callable[[str], str]) -> str:
    return weights("squeezenet1_0")


def metric(**changes: object) -> MetricLearning:
    return replace(MetricLearning(architecture="squeezenet1_0", weights="random:0"), **changes)


def test_advanced_ft_descends_the_smoothed_cross_entropy_of_its_head(batch: Batch, squeeze: str) -> None:
    method = AdvancedFT(architecture="squeezenet1_0", weights=squeeze)
    model = method.build(stripes(32, 32, 0)).eval()
    loss, parts = method.step(model, batch)
    features, logits = model(batch.pixels)
    log_p = logits.log_softmax(1)
    picked = log_p[torch.arange(32), batch.labels]
    assert loss.item() == pytest.approx((-0.9 * picked - 0.1 * log_p.mean(1)).mean().item(), rel=1e-5)
    assert float(parts["accuracy"]) == pytest.approx(float((logits.argmax(1) == batch.labels).float().mean()))
    assert torch.equal(method.embed(model, batch.pixels), features)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.numel() > 1000)


def test_the_validation_counts_what_the_head_says(batch: Batch, squeeze: str) -> None:
    method = AdvancedFT(architecture="squeezenet1_0", weights=squeeze)
    data = stripes(32, 32, 0)
    model = method.build(data).eval()
    with torch.inference_mode():
        features, logits = model(batch.pixels)
    figures = method.validate(model, data, lambda _: features)
    assert figures["val_accuracy"] == pytest.approx(float((logits.argmax(1) == batch.labels).float().mean()))


@pytest.mark.parametrize("kind", [AdvancedFT, MetricLearning])
@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_statistics_stay_and_free_ones_move(
    batch: Batch, weights: Callable[[str], str], kind: type, freeze: bool
) -> None:
    method = kind(architecture="mobilenet_v2", weights=weights("mobilenet_v2"), freeze_norm=freeze)
    model = method.build(stripes(32, 32, 0)).train()
    norm = next(m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    method.step(model, batch)
    assert torch.equal(norm.running_mean, before) is freeze
    assert model.train(mode=False).training is False


def test_groups_cover_every_parameter_once(squeeze: str) -> None:
    for method in (AdvancedFT(architecture="squeezenet1_0", weights=squeeze), metric(weights=squeeze)):
        model = method.build(stripes(16, 32, 0))
        named = [p for group in method.groups(model).values() for p in group]
        assert len(named) == len({id(p) for p in named})
        assert {id(p) for p in named} == {id(p) for p in model.parameters()}
        assert all(p.requires_grad for p in named)


def slow_triplets(unit: np.ndarray, labels: np.ndarray, margin: float, mining: Mining) -> float:
    """The mean violation over the chosen triplets that violate the margin at all."""
    n = len(labels)
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    found = []
    for a in range(n):
        positives = [p for p in range(n) if p != a and labels[p] == labels[a]]
        negatives = [m for m in range(n) if labels[m] != labels[a]]
        if mining == "batch-hard":
            found.append(max(distance[a, p] for p in positives) - min(distance[a, m] for m in negatives) + margin)
        else:
            pairs = [(distance[a, p], distance[a, m]) for p in positives for m in negatives]
            found += [near - far + margin for near, far in pairs if near < far <= near + margin]
    violating = [value for value in found if value > 0]
    return float(np.mean(violating)) if violating else 0.0


@pytest.mark.parametrize("mining", ["batch-hard", "semi-hard"])
def test_triplets_are_mined_as_plain_loops_do(mining: Mining) -> None:
    unit = functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    labels = torch.arange(20) % 4
    value = float(metric(mining=mining)._triplet(unit, labels))
    assert value == pytest.approx(slow_triplets(unit.double().numpy(), labels.numpy(), 0.5, mining), rel=1e-5)


def test_drawn_triplets_are_those_of_the_three_parts_and_only_those_that_violate_count() -> None:
    unit = functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0, 1])
    anchor, near, far = unit.chunk(3)
    gaps = (anchor - near).norm(dim=1) - (anchor - far).norm(dim=1) + 0.1
    assert 0 < (gaps > 0).sum() < 4
    assert float(metric(mining="drawn", margin=0.1)._triplet(unit, labels)) == pytest.approx(
        gaps[gaps > 0].mean().item(), rel=1e-5
    )


def test_of_drawn_triplets_the_anchors_alone_are_classified_and_each_part_is_normalised_alone(
    batch: Batch, weights: Callable[[str], str]
) -> None:
    method = metric(architecture="mobilenet_v2", weights=weights("mobilenet_v2"), mining="drawn", centre=0.0)
    model = method.build(stripes(32, 32, 0)).train()
    pixels, labels = batch.pixels[:12], batch.labels[:12]
    one = batch._replace(views=(pixels,), labels=labels)
    torch.manual_seed(0)  # for dropout
    parts = method.step(model, one)[1]
    torch.manual_seed(0)
    unit = functional.normalize(model(pixels[:4]), dim=1)
    wanted = functional.cross_entropy(model.classifier(unit), labels[:4], label_smoothing=0.1)
    assert parts["classification"].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("mining", ["batch-hard", "semi-hard"])
def test_a_batch_of_one_class_has_no_triplets_and_still_a_gradient(mining: Mining) -> None:
    unit = functional.normalize(torch.randn(4, 8), dim=1).requires_grad_()
    loss = metric(mining=mining)._triplet(unit, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(("shares", "names"), [((0.6, 0.3, 0.1), 3), ((0.7, 0.3, 0.0), 2)])
def test_the_losses_are_combined_by_their_weights(
    batch: Batch, squeeze: str, shares: tuple[float, ...], names: int
) -> None:
    method = metric(weights=squeeze, triplet=shares[0], classification=shares[1], centre=shares[2])
    model = method.build(stripes(32, 32, 0)).eval()
    loss, parts = method.step(model, batch)
    assert len(parts) == names
    values = [parts[name].item() for name in ("triplet", "classification", "centre") if name in parts]
    assert loss.item() == pytest.approx(sum(w * v for w, v in zip(shares, values, strict=False)), rel=1e-5)


def test_the_centre_loss_is_taken_before_or_after_vectors_are_made_unit(batch: Batch, squeeze: str) -> None:
    losses = {}
    for of in ("raw", "unit"):
        model = metric(weights=squeeze).build(stripes(32, 32, 0)).eval()
        raw = model(batch.pixels)
        losses[of] = metric(weights=squeeze, centres_of=of).step(model, batch)[1]["centre"].item()
        vectors = raw if of == "raw" else functional.normalize(raw, dim=1)
        assert losses[of] == pytest.approx((vectors.square().sum(1).mean() / 2).item(), rel=1e-4)
    assert losses["unit"] == pytest.approx(0.5, rel=1e-4)  # the centres are zero


@pytest.mark.parametrize(
    ("method", "rates", "dim"),
    [
        (AdvancedFT(architecture="squeezenet1_0", weights="random:0"), {"backbone": 1e-3, "head": 1e-2}, 512),
        (metric(), {"backbone": 1e-3, "head": 1e-2}, 512),
    ],
    ids=["advanced-ft", "metric"],
)
def test_what_was_trained_is_a_model_that_encodes_as_it_did_in_training(
    tmp_path: Path, method: AdvancedFT | MetricLearning, rates: dict[str, float], dim: int
) -> None:
    one = Experiment(
        name="squeeze",
        data=Stripes(side=48),
        side=48,
        method=method,
        sampler=Shuffled(batch=8),
        augmentation=NoAugmentation(),
        optimiser=Optimiser(rates=rates),
        schedule=WarmRestarts(),
        epochs=1,
        patience=1,
    )
    train(one, Path(), tmp_path / "out", threads=1)
    folder = tmp_path / "out" / "model"
    card = cards.read(folder)
    assert (card.name, card.dim, card.weights.trained) == ("squeeze", dim, True)
    assert card.recipe == Recipe(size=48, pad="square")  # the recipe with which the collection was made square
    assert "from random:0" in card.weights.note
    assert card.about["images"] == {part: len(one.data.load(Path()).part(part)) for part in ("train", "val")}
    model = method.build(one.data.load(Path()).part("train")).eval()
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["best"]
    model.load_state_dict(state)
    pixels = torch.from_numpy(stripes(4, 48, 7).images).float() / 255
    with torch.inference_mode():
        wanted = method.embed(model, pixels).numpy()
    assert load(folder).encode(pixels.numpy()).embeddings == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert not load_file(folder / "weights.safetensors").keys() & {"head.weight", "centre.centres"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint.pt", "experiment.json", "metrics.json", "model",
    ]  # fmt: skip
