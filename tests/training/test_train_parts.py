import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from shared.errors import Invalid
from shared.training.augment import Augment, NoAugmentation
from shared.training.data import Named, encode, resized
from shared.training.experiment import (
    Cosine,
    Optimiser,
    PrefixedCosine,
    Schedule,
    Shuffled,
    Steps,
    WarmRestarts,
    describe,
)
from shared.training.losses import CentreLoss
from shared.training.selection import macro_precision
from tests.training.small_set import stripes


def of_torch(kind: type, epochs: int, base: float, **arguments: float) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = kind(optimiser, **arguments)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (WarmRestarts(), (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 5, "T_mult": 2, "eta_min": 1e-6})),
        (Steps(size=5, factor=0.5), (lr_scheduler.StepLR, {"step_size": 5, "gamma": 0.5})),
        (Cosine(warmup=0), (lr_scheduler.CosineAnnealingLR, {"T_max": 40, "eta_min": 1e-6})),
    ],
)
def test_a_schedule_is_that_of_torch(mine: Schedule, theirs: tuple[type, dict[str, float]]) -> None:
    wanted = of_torch(theirs[0], 40, 1e-4, **theirs[1])
    assert [mine.rate(1e-4, epoch, 40) for epoch in range(40)] == pytest.approx(wanted, rel=1e-9)


def test_a_warm_restart_holds_for_its_epoch_and_a_cosine_moves_within_one() -> None:
    assert WarmRestarts().rate(1e-4, 3.9, 20) == WarmRestarts().rate(1e-4, 3, 20)
    assert WarmRestarts().rate(1e-4, 5, 20) == 1e-4
    assert WarmRestarts().rate(1e-4, 15, 20) == 1e-4
    assert Cosine().rate(1e-4, 3.9, 20) < Cosine().rate(1e-4, 3, 20)


@given(st.floats(0, 20), st.floats(1e-5, 1), st.floats(0, 5))
def test_a_cosine_stays_between_nothing_and_its_rate_and_ends_at_the_least(
    epoch: float, base: float, warmup: float
) -> None:
    schedule = Cosine(warmup=warmup)
    assert 0 < schedule.rate(base, epoch, 20) <= base * (1 + 1e-9)
    assert schedule.rate(base, 20, 20) == pytest.approx(1e-6)


def test_the_cosine_after_a_warm_up_is_that_of_timm() -> None:
    # timm 1.0's CosineLRScheduler(t_initial=150, lr_min=5e-6, warmup_t=10, warmup_lr_init=1e-4, warmup_prefix=True)
    wanted = {0: 1e-4, 1: 1.2e-4, 9: 2.8e-4, 10: 3e-4, 85: 1.525e-4, 149: 8.897112e-6, 160: 5e-6, 200: 5e-6}
    schedule = PrefixedCosine(cycle=150)
    for epoch, rate in wanted.items():
        assert schedule.rate(3e-4, epoch, 150) == pytest.approx(rate, rel=1e-6)
    assert schedule.rate(3e-4, 84.9, 150) == schedule.rate(3e-4, 84, 150)  # stepped per epoch


def test_the_warm_up_is_linear() -> None:
    schedule = Cosine(warmup=2, start=0.1)
    assert [schedule.rate(1.0, epoch, 9) for epoch in (0, 1, 2)] == pytest.approx([0.1, 0.55, 1.0])


@pytest.mark.parametrize(("n", "batch", "count"), [(10, 4, 2), (8, 4, 2), (3, 4, 1), (4, 4, 1)])
def test_shuffled_batches_are_full_and_hold_every_image_at_most_once(n: int, batch: int, count: int) -> None:
    rows = list(Shuffled(batch=batch).batches(np.zeros(n), np.zeros(n), 3))
    assert len(rows) == count
    assert all(len(one) == min(n, batch) for one in rows)
    assert len(np.unique(np.concatenate(rows))) == count * min(n, batch)


def test_a_learning_rate_is_needed_for_each_group_and_no_other() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(Invalid, match="head"):
        Optimiser(rates={"backbone": 1.0}).build({"backbone": [layer.weight], "head": [layer.bias]})


def test_groups_have_their_own_rates_and_frozen_parameters_are_left_out() -> None:
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 2)
    backbone.bias.requires_grad_(requires_grad=False)
    optimiser = Optimiser(rates={"backbone": 1e-5, "head": 1e-4}).build(
        {"backbone": backbone.parameters(), "head": head.parameters()}
    )
    assert isinstance(optimiser, torch.optim.AdamW)
    assert [(group["lr"], len(group["params"])) for group in optimiser.param_groups] == [(1e-5, 1), (1e-4, 2)]
    assert {group["weight_decay"] for group in optimiser.param_groups} == {1e-4}


@pytest.mark.parametrize(("kind", "wanted"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_an_optimiser_has_its_kind(kind: str, wanted: type) -> None:
    made = Optimiser(rates={"all": 0.1}, kind=kind).build({"all": nn.Linear(2, 2).parameters()})
    assert type(made) is wanted


def test_what_has_no_words_is_no_part_of_an_experiment() -> None:
    @dataclass(frozen=True)
    class Holder:
        value: object

    assert describe(Holder((1, {"a": 0.5}))) == {"kind": "test_what_has_no_words_is_no_part_of_an_experiment.<locals>"
                                                 ".Holder", "value": [1, {"a": 0.5}]}  # fmt: skip
    with pytest.raises(Invalid, match="function"):
        describe(Holder(lambda: 1))


def test_augmented_images_are_the_same_for_a_seed_differ_from_each_other_and_stay_in_range() -> None:
    images = torch.rand(1, 48, 48).expand(6, -1, -1)
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        made.append(Augment(vertical=0.3)(images, 32))
    assert torch.equal(*made)
    assert made[0].shape == (6, 32, 32)
    assert 0 <= float(made[0].min()) <= float(made[0].max()) <= 1
    assert all(not torch.equal(made[0][0], other) for other in made[0][1:])


def test_an_augmentation_that_may_do_nothing_does_nothing() -> None:
    images = torch.rand(50, 32, 32)
    still = Augment(scale=(1, 1), horizontal=0, degrees=0, brightness=0, contrast=0, erasing=0)
    # torchvision draws the aspect ratio from 3/4 to 4/3, but with the whole area only 1 fits a square
    assert torch.equal(still(images, 32), images)
    assert torch.equal(NoAugmentation()(images, 32), images)


@pytest.mark.parametrize(("name", "axis"), [("horizontal", -1), ("vertical", -2)])
def test_a_flip_has_its_probability_and_axis(name: str, axis: int) -> None:
    still = {"scale": (1.0, 1.0), "degrees": 0.0, "brightness": 0.0, "contrast": 0.0, "erasing": 0.0, "horizontal": 0.0}
    images = torch.zeros(400, 32, 32)
    images.narrow(axis, 0, 16).fill_(1)
    torch.manual_seed(0)
    made = Augment(**{**still, name: 0.3})(images, 32)
    flipped = made.narrow(axis, 0, 8).mean((1, 2)) < 0.5
    assert 0.2 < float(flipped.float().mean()) < 0.4


def test_shrinking_averages() -> None:
    assert torch.allclose(resized(torch.eye(64)[None], 32).sum(), torch.tensor(32.0 / 2), rtol=0.05)


def test_encoding_goes_over_all_images_in_order() -> None:
    data = stripes(150, 40, 1)
    vectors = encode(lambda pixels: pixels.mean((1, 2))[:, None], data, 40)
    assert vectors.numpy()[:, 0] == pytest.approx(data.images.mean((1, 2)) / 255, abs=1e-5)


def slow_macro_precision(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int) -> float:
    means: dict[int, list[float]] = {}
    for q in range(len(labels)):
        others = [i for i in range(len(labels)) if groups[i] != groups[q]]
        cosine = {i: vectors[q] @ vectors[i] / np.linalg.norm(vectors[q]) / np.linalg.norm(vectors[i]) for i in others}
        relevant = sum(labels[i] == labels[q] for i in others)
        if relevant:
            top = sorted(others, key=lambda i: -cosine[i])[:k]
            means.setdefault(labels[q], []).append(sum(labels[i] == labels[q] for i in top) / min(k, relevant))
    return float(np.mean([np.mean(hits) for hits in means.values()]))


def test_macro_precision_is_that_of_plain_loops() -> None:
    data = stripes(60, 32, 0)
    lonely = np.where(data.groups == 3, 3, data.labels % 3)  # class 3 has a single group, so its queries have no answer
    data = replace(data, labels=lonely)
    vectors = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + functional.one_hot(
        torch.from_numpy(lonely) % 5, 5
    )
    wanted = slow_macro_precision(vectors.numpy().astype(np.float64), data.labels, data.groups, 10)
    assert macro_precision(vectors, data, 10) == pytest.approx(wanted, abs=1e-6)


def test_the_centre_loss_is_that_of_plain_loops_and_its_gradient_reaches_the_vectors_alone() -> None:
    loss = CentreLoss(3, 4).double()
    loss.centres = torch.randn(3, 4, dtype=torch.float64)
    loss.eval()
    vectors, labels = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 2, 2, 0, 2])
    plain = vectors.detach()
    squares = [(float(plain[i, d]) - float(loss.centres[labels[i], d])) ** 2 for i in range(5) for d in range(4)]
    wanted = sum(squares) / 2 / 5
    value = loss(vectors, labels)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    value.backward()
    assert torch.allclose(vectors.grad, ((vectors - loss.centres[labels]) / 5).float(), atol=1e-6)
    assert not list(loss.parameters())


def test_centres_move_half_way_as_wen_has_it_and_only_in_training() -> None:
    loss = CentreLoss(3, 2, rate=0.5)
    vectors, labels = torch.tensor([[2.0, 0], [4, 0], [0, 6]]), torch.tensor([0, 0, 1])
    loss.eval()(vectors, labels)
    assert torch.equal(loss.centres, torch.zeros(3, 2))
    before = loss.train()(vectors, labels)
    assert float(before) == pytest.approx((4 + 16 + 36) / 2 / 3)  # before the centres are updated
    # eq. 4: half of the sum of the differences, divided by their number plus one
    assert torch.allclose(loss.centres, torch.tensor([[0.5 * 6 / 3, 0], [0, 0.5 * 6 / 2], [0, 0]]))


def test_centres_come_to_the_means_of_their_classes() -> None:
    loss = CentreLoss(2, 3)
    vectors, labels = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    for _ in range(60):
        loss(vectors, labels)
    assert torch.allclose(loss.centres[0], vectors[::2].mean(0), atol=1e-4)


def test_a_limit_keeps_the_first_images_of_the_training_part_alone(data_dir) -> None:
    whole, cut = Named(name="cxr", side=28).load(data_dir), Named(name="cxr", side=28, limit=50).load(data_dir)
    assert np.array_equal(cut.part("train").images, whole.part("train").images[:50])
    assert len(cut.part("val", "test")) == len(whole.part("val", "test"))
    assert math.isclose(len(cut), len(whole) - len(whole.part("train")) + 50)


def test_a_small_part_tells_good_vectors_from_bad_ones() -> None:
    data = stripes(8, 32, 0)
    data = replace(data, labels=data.groups % 2)  # four groups of two images: fewer than ten others
    good = functional.one_hot(torch.from_numpy(data.labels)).float()
    assert macro_precision(good, data, 10) == 1
    assert macro_precision(functional.one_hot(torch.from_numpy(data.groups // 2)).float(), data, 10) == 0


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0]])
def test_a_part_that_asks_nothing_has_no_figure(labels: list[int]) -> None:
    data = replace(stripes(6, 32, 0), labels=np.array(labels))  # a class for each group, or one for all
    assert math.isnan(macro_precision(torch.randn(6, 4), data, 10))
