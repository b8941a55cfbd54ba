"""Hashing losses against plain loops and gradients, and four defects of the released code."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.errors import Invalid
from shared.training.hashing import (
    METHODS,
    OrthoHash,
    class_weights,
    dtsh_loss,
    fingerprint,
    fingerprints,
    hash_centres,
    objective,
    quantisation_loss,
    relaxed_hamming,
    sch_loss,
    signs,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 0, 1, 1, 1, 2])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0])


def logits(bits=8, seed=0):
    return torch.randn(len(LABELS), bits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prints(seed=1):
    drawn = torch.randn(len(LABELS), 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(drawn - drawn.mean(1, keepdim=True), dim=1)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("mode", ["soft", "released"])
def test_the_structure_aware_loss_is_its_formula_over_pairs(mode):
    u, marks = logits().tolist(), prints().tolist()
    total, pairs = 0.0, 0
    for i in range(6):
        for j in range(6):
            if i == j:
                continue
            d = (1 - cosine(u[i], u[j])) / 2
            s = max(0.0, cosine(marks[i], marks[j]))
            if LABELS[i] != LABELS[j]:
                cost = -math.exp(s) * math.log(d)
            elif mode == "released":
                cost = -s * math.log(1 - d)
            else:
                target = 1 - 0.25 * (1 - s)
                cost = -target * math.log(1 - d) - (1 - target) * math.log(d)
            total += float(WEIGHTS[LABELS[i]] * WEIGHTS[LABELS[j]]) * cost
            pairs += 1
    quantisation = sum(math.log(1 + (1 - cosine([abs(x) for x in row], [1.0] * 8)) / 2) for row in u) / 6
    got = sch_loss(logits(), LABELS, prints(), WEIGHTS, mode=mode)
    assert got.item() == pytest.approx(total / pairs + 0.5 * quantisation, rel=1e-5)


@pytest.mark.parametrize("mode", ["soft", "released"])
def test_the_gradient_of_the_structure_aware_loss_is_that_of_finite_differences(mode):
    u = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: sch_loss(u, LABELS, prints(), WEIGHTS, mode=mode), (u,))


def test_distances_in_half_precision_are_computed_in_full():
    u = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert relaxed_hamming(u).dtype == torch.float32
    assert sch_loss(u, LABELS, prints().float(), WEIGHTS).dtype == torch.float32


def test_uniform_fingerprints_are_the_plain_pairwise_loss():
    same = fingerprints(torch.zeros(6, 4, 4), 3, kind="uniform").double()
    assert (same @ same.T).numpy() == pytest.approx(1)
    d = relaxed_hamming(logits()).double()
    together = LABELS[:, None] == LABELS
    cost = torch.where(together, -torch.log1p(-d), -math.e * torch.log(d)) * (1 - torch.eye(6))
    wanted = cost.sum() / 30 + 0.5 * quantisation_loss(logits())
    ones = torch.ones(3)
    assert sch_loss(logits(), LABELS, same, ones).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert sch_loss(logits(), LABELS, same, ones, mode="released").item() == pytest.approx(wanted.item(), rel=1e-5)
    assert objective("pairwise", 3, 8, ones)(logits(), LABELS, prints()).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_relaxed_distance_is_the_hamming_distance_of_codes():
    codes = signs(torch.randn(20, 32))
    wanted = (codes[:, None] != codes).sum(-1) / 32
    torch.testing.assert_close(relaxed_hamming(codes), wanted, rtol=0, atol=1e-6)


def test_a_constant_added_to_one_image_changes_its_distances():
    """The released distance is centred: it stays the same although half of the bits flip."""
    u = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    moved = u + torch.linspace(-2, 2, 8)[:, None]
    centred = [relaxed_hamming(x - x.mean(1, keepdim=True)) for x in (u, moved)]
    torch.testing.assert_close(*centred, rtol=0, atol=1e-5)
    assert (signs(u) != signs(moved)).float().mean() > 0.2
    assert (relaxed_hamming(u) - relaxed_hamming(moved)).abs().max() > 0.1


def released_quantisation_loss(u):
    """The loss of the released code. Its centring turns the vector of ones into 0, so it is log 1.5 for any u."""
    magnitudes, ones = u.abs(), torch.ones_like(u)
    a, b = magnitudes - magnitudes.mean(1, keepdim=True), ones - ones.mean(1, keepdim=True)
    rho = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
    return torch.log1p((1 - rho) / 2).mean()


def test_the_released_quantiser_has_no_gradient_and_ours_has():
    for seed in range(3):
        u = logits(seed=seed).requires_grad_()
        released = released_quantisation_loss(u)
        assert released.item() == pytest.approx(math.log(1.5), abs=1e-6)
        assert torch.autograd.grad(released, u)[0].abs().max() == 0
        assert torch.autograd.grad(quantisation_loss(u), u)[0].abs().max() > 1e-4


def test_the_quantiser_makes_magnitudes_equal():
    u = torch.nn.Parameter(logits(16).float())
    optimiser = torch.optim.Adam([u], lr=0.05)
    for _ in range(300):
        loss = quantisation_loss(u)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    magnitudes = u.detach().abs()
    assert (magnitudes.std(1) / magnitudes.mean(1)).max() < 1e-2


def test_a_lone_pair_of_a_class_settles_where_its_fingerprints_say():
    """The optimum of `soft` is d = gamma (1 - S); that of `released` is 0."""
    marks = functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
    for mode, wanted in (("soft", 0.4 * (1 - 0.6)), ("released", 0.0)):
        u = torch.nn.Parameter(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
        optimiser = torch.optim.Adam([u], lr=0.02)
        for _ in range(600):
            loss = sch_loss(u, torch.zeros(2, dtype=torch.long), marks, torch.ones(1), mode=mode, gamma=0.4, alpha=0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert relaxed_hamming(u.detach())[0, 1].item() == pytest.approx(wanted, abs=5e-3)


DEGENERATE = {
    "one class": (torch.randn(4, 16), torch.zeros(4, dtype=torch.long)),
    "identical rows": (torch.ones(4, 16), torch.tensor([0, 0, 1, 1])),
    "zero rows": (torch.zeros(4, 16), torch.tensor([0, 0, 1, 1])),
    "each alone": (torch.randn(4, 16), torch.arange(4) % 3),
}


@pytest.mark.parametrize("method", [*METHODS])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_have_finite_losses_and_gradients(method, case):
    torch.manual_seed(0)
    u, labels = DEGENERATE[case]
    u = u.clone().requires_grad_()
    loss = objective(method, 3, 16, torch.ones(3))(u, labels, fingerprint(torch.rand(4, 20, 20)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_separates_classes(method):
    torch.manual_seed(0)
    labels = torch.arange(24) % 3
    head = torch.nn.Linear(6, 16)
    loss = objective(method, 3, 16, torch.ones(3))
    x = functional.one_hot(labels, 3).float().repeat(1, 2) + 0.1 * torch.randn(24, 6)
    marks = fingerprint(torch.rand(24, 20, 20))
    optimiser = torch.optim.Adam([*head.parameters(), *loss.parameters()], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        loss(head(x), labels, marks).backward()
        optimiser.step()
    loss.eval()
    codes = signs(loss.logits(head(x)).detach())
    apart = (codes[:, None] != codes).float().sum(-1)
    same = labels[:, None] == labels
    assert apart[same].mean() < 3
    assert apart[~same].mean() > 4


def test_dtsh_is_its_formula_over_triplets():
    u = logits().tolist()
    theta = [[sum(a * b for a, b in zip(x, y, strict=True)) / 2 for y in u] for x in u]
    costs = [
        math.log(1 + math.exp(2 - theta[i][j] + theta[i][k]))
        for i in range(6)
        for j in range(6)
        for k in range(6)
        if i != j and LABELS[i] == LABELS[j] and LABELS[i] != LABELS[k]
    ]
    far = [(x - (1 if x >= 0 else -1)) ** 2 for row in u for x in row]
    assert dtsh_loss(logits(), LABELS).item() == pytest.approx(np.mean(costs) + np.mean(far), rel=1e-5)


def test_csq_is_the_cross_entropy_to_its_centres():
    csq = objective("csq", 3, 8, torch.ones(3))
    wanted = 0.0
    for row, label in zip(logits().tolist(), LABELS.tolist(), strict=True):
        for value, centre in zip(row, csq.centres[label].tolist(), strict=True):
            p = (math.tanh(value) + 1) / 2
            wanted -= math.log(p if centre > 0 else 1 - p) / 48
            wanted += 1e-4 * (abs(math.tanh(value)) - 1) ** 2 / 48
    assert csq(logits(), LABELS, prints()).item() == pytest.approx(wanted, rel=1e-5)


def test_greedyhash_classifies_the_code_and_passes_its_gradient_on():
    torch.manual_seed(0)
    greedy = objective("greedyhash", 3, 8, torch.ones(3))
    u = logits().float().requires_grad_()
    loss = greedy(u, LABELS, prints())
    code = signs(u.detach()).requires_grad_()
    classifying = functional.cross_entropy(greedy.classifier(code), LABELS)
    excess = (u.abs() - 1).abs().pow(3).mean()
    assert loss.item() == pytest.approx((classifying + 0.1 * excess).item(), rel=1e-5)
    through = torch.autograd.grad(classifying, code)[0] + 0.1 * torch.autograd.grad(excess, u)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, u)[0], through)


def test_orthohash_is_a_margin_softmax_over_cosines_to_fixed_codes():
    torch.manual_seed(0)
    ortho = OrthoHash(3, 8)
    u = logits().float()
    normed = (u - u.mean(0)) / (u.var(0, correction=0) + 1e-5).sqrt()
    wanted = 0.0
    for row, label in zip(normed.tolist(), LABELS.tolist(), strict=True):
        scores = [8 * (cosine(row, code) - 0.2 * (k == label)) for k, code in enumerate(ortho.codebook.tolist())]
        wanted -= math.log(math.exp(scores[label]) / sum(math.exp(score) for score in scores)) / 6
    assert ortho(u, LABELS, prints()).item() == pytest.approx(wanted, rel=1e-4)
    assert set(ortho.codebook.unique().tolist()) == {-1, 1}


@pytest.mark.parametrize(("classes", "bits"), [(16, 8), (16, 16), (3, 64), (20, 48), (10, 24)])
def test_centres_are_far_apart(classes, bits):
    centres = hash_centres(classes, bits)
    assert set(centres.unique().tolist()) == {-1, 1}
    apart = ((bits - centres @ centres.T) / 2)[~torch.eye(classes, dtype=torch.bool)]
    assert apart.min() > bits / 4
    assert apart.mean() >= bits / 2


def test_more_centres_than_bits_can_hold_are_refused():
    with pytest.raises(Invalid, match="6 bits"):
        hash_centres(40, 6)
    with pytest.raises(Invalid, match="unknown hashing method"):
        objective("hashnet", 3, 8, torch.ones(3))


def test_the_sign_of_zero_is_plus_one():
    assert signs(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [-1, 1, 1]


def test_fingerprints_are_correlations_of_small_grey_images():
    images = torch.rand(3, 3, 48, 48)
    got = fingerprint(images, 16)
    small = images.mean(1).reshape(3, 16, 3, 16, 3)
    # the antialiased bilinear filter is a triangle over 6 pixels, close to the mean of 3 x 3
    wanted = np.corrcoef(small.mean((2, 4)).reshape(3, 256).numpy())
    assert (got @ got.T).numpy() == pytest.approx(wanted, abs=0.2)
    assert (got @ got.T).diagonal().numpy() == pytest.approx(1, abs=1e-5)
    assert got.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(fingerprint(0.3 + 0.5 * images), got, rtol=0, atol=1e-4)
    assert (fingerprint(images, centred=False) >= 0).all()
    assert fingerprint(images, 8).shape == (3, 64)


def test_random_fingerprints_know_no_image_and_come_from_their_seed():
    one, two = torch.rand(4, 32, 32), torch.rand(4, 32, 32)
    torch.testing.assert_close(fingerprints(one, kind="random", seed=3), fingerprints(two, kind="random", seed=3))
    drawn = fingerprints(one, kind="random", seed=4)
    assert not torch.equal(drawn, fingerprints(one, kind="random", seed=3))
    assert (drawn @ drawn.T).fill_diagonal_(0).abs().max() < 0.4


def test_class_weights_are_inverse_frequencies():
    assert class_weights(torch.tensor([0, 0, 0, 2]), 3).tolist() == pytest.approx([4 / 9, 0, 4 / 3])
