"""Classification by a vote of the k nearest items' labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics.ranking import Floats, Metric, Ranking, Side, chunks, expected, ties

Labels = NDArray[np.int64]


def votes(queries: Side, gallery: Side, *, metric: Metric, ks: Sequence[int]) -> dict[int, Labels]:
    """Return for each k the (q,) most common label among a query's k nearest items; -1 if its gallery is empty.

    Items at equal distance share their places evenly, so that no vote depends on the order of storage. Of labels with
    equal counts, the label that appears first wins; of labels that first appear together, the smallest.
    """
    classes = range(int(gallery.labels.max()) + 1)
    parts = []
    for _, ranking in chunks(queries, gallery, metric):
        front = _front(ranking, max(ks))
        tied, near = ties(front), gallery.labels[front.order]
        near[np.arange(near.shape[1]) >= front.length[:, None]] = -1
        shares = np.stack([expected(near == label, tied)[:, : max(ks)] for label in classes], axis=2)
        parts.append({k: _winners(shares[:, :k]) for k in ks})
    return {k: np.concatenate([part[k] for part in parts]) for k in ks}


def _front(ranking: Ranking, k: int) -> Ranking:
    """Return the first k places and all ties of the last of them."""
    last = ranking.distances[:, :k][:, -1:]
    inside = np.minimum((ranking.distances <= last).sum(axis=1), ranking.length)
    width = max(k, int(inside.max()))
    return Ranking(ranking.order[:, :width], ranking.distances[:, :width], np.minimum(ranking.length, width))


def _winners(shares: Floats) -> Labels:
    """Return the (q,) classes with the largest sum of (q, places, classes) shares, which are 0 beyond a short list."""
    counts = shares.sum(axis=1)
    most = counts.max(axis=1, keepdims=True)
    first = np.where(np.isclose(counts, most, rtol=1e-9), (shares > 0).argmax(axis=1), shares.shape[1])
    return np.where(most[:, 0] > 0, first.argmin(axis=1), -1)


def confusion(truth: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Return (classes, classes) counts, with the truth in rows.

    Raises:
        Invalid: a label is not one of the classes.
    """
    for labels in (truth, predicted):
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise Invalid("a label is not one of the classes")
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(table: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that occur."""
    asked = table.sum(axis=1)
    return float((np.diag(table)[asked > 0] / asked[asked > 0]).mean())


def macro_f1(table: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that occur or were predicted; a class without a correct prediction counts 0."""
    size = table.sum(axis=1) + table.sum(axis=0)
    return float((2 * np.diag(table)[size > 0] / size[size > 0]).mean())


def quadratic_kappa(table: NDArray[np.int64], grades: Labels) -> float:
    """Return Cohen's kappa with weights (g_i - g_j)^2; NaN if truth and prediction are all one grade."""
    weights = np.square(grades[:, None] - grades).astype(np.float64)
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    expected = float((weights * by_chance).sum())
    return 1 - float((weights * table).sum()) / expected if expected > 0 else float("nan")


def figures(truth: Labels, predicted: Labels, classes: int, grades: Labels | None = None) -> dict[str, float]:
    """Return balanced accuracy and macro F1 of the vote; with `grades` (ordinal value of each class) also the kappa.

    With BI-RADS grades, also the balanced accuracy of {1, 2, 3} against {4, 5, 6}. Queries without a neighbour
    (-1) are left out.
    """
    known = predicted >= 0
    truth, predicted = truth[known], predicted[known]
    table = confusion(truth, predicted, classes)
    found = {"balanced_accuracy": balanced_accuracy(table), "macro_f1": macro_f1(table)}
    if grades is not None:
        found["quadratic_kappa"] = quadratic_kappa(table, grades)
        suspicious = (grades >= 4).astype(np.int64)
        if grades.min() >= 1 and grades.max() <= 6 and suspicious.any() and not suspicious.all():
            halves = confusion(suspicious[truth], suspicious[predicted], 2)
            found["balanced_accuracy_456"] = balanced_accuracy(halves)
    return found
