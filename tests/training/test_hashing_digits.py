"""The effect of the losses on codes of scikit-learn's digits: whether order within a class is kept."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from shared.metrics.hashing import unique_codes
from shared.metrics.ranking import Side
from shared.metrics.retrieval import measure
from shared.training.hashing import fingerprint, objective
from shared.training.samplers import ClassBalanced

pytestmark = pytest.mark.usefixtures("one_thread")

BITS, GALLERY = 32, 1000


@pytest.fixture(scope="module")
def digits():
    """Images (n, 8, 8) in [0, 1], the digit, and whether it is below five."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 8, 8) / 16
    return pixels, labels.astype(np.int64), (labels >= 5).astype(np.int64)


def codes(method, pixels, labels, gamma=0.25, epochs=40, seed=0):
    """(n, bytes) codes of all images, by a network trained on the first thousand."""
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(),
    )  # fmt: skip
    head, auxiliary = nn.Linear(64, BITS), nn.Linear(64, classes)
    loss = objective(method, classes, BITS, torch.ones(classes), gamma=gamma)
    marks = fingerprint(pixels, 8)
    trained = [*trunk.parameters(), *head.parameters(), *auxiliary.parameters(), *loss.parameters()]
    optimiser = torch.optim.Adam(trained, 2e-3)
    sampler = ClassBalanced(classes=classes, per_class=128 // classes)
    for epoch in range(epochs):
        for rows in sampler.batches(labels[:GALLERY], np.arange(GALLERY), epoch):
            chosen = torch.from_numpy(rows)
            y = torch.from_numpy(labels)[chosen]
            hidden = trunk(pixels[chosen, None])
            total = loss(head(hidden), y, marks[chosen]) + 0.5 * functional.cross_entropy(auxiliary(hidden), y)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
    loss.eval()
    with torch.no_grad():
        return np.packbits(loss.logits(head(trunk(pixels[:, None]))).numpy() >= 0, axis=1)


def mean_average_precision(found, labels):
    gallery = Side(vectors=found[:GALLERY], labels=labels[:GALLERY])
    queries = Side(vectors=found[GALLERY:], labels=labels[GALLERY:])
    return measure(queries, gallery, metric="hamming", ks=(1,)).micro("mAP")


def of_two_codes(found):
    """The share of the gallery that has one of the two most common codes."""
    counts = np.unique(found[:GALLERY], axis=0, return_counts=True)[1]
    return np.sort(counts)[-2:].sum() / GALLERY


@pytest.mark.slow
def test_soft_targets_keep_digits_apart_that_share_a_class_and_others_collapse(digits):
    """Trained on whether a digit is below five, queried for the digit. Chance is 0.1, two perfect codes give 0.2."""
    pixels, fine, coarse = digits
    kept = []
    for seed in range(3):  # a single one lies between 0.31 and 0.54, depending on seed and processor
        soft = codes("acir", pixels, coarse, gamma=0.4, seed=seed)
        assert mean_average_precision(soft, coarse) > 0.95
        assert of_two_codes(soft) < 0.7
        kept.append(mean_average_precision(soft, fine))
    assert np.mean(kept) > 0.33
    for method in ("pairwise", "acir-released", "csq"):
        collapsed = codes(method, pixels, coarse, epochs=80 if method == "csq" else 40)  # csq converges slowest
        assert mean_average_precision(collapsed, coarse) > 0.95
        assert mean_average_precision(collapsed, fine) < 0.3, method
        assert of_two_codes(collapsed) > 0.95, method


@pytest.mark.slow
def test_centres_give_one_code_to_a_class(digits):
    pixels, fine, _ = digits
    found = codes("csq", pixels, fine, epochs=80)
    assert mean_average_precision(found, fine) > 0.9
    assert 10 <= unique_codes(found[:GALLERY]) <= 20
