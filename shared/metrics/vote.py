"""Classification by the labels of the k nearest: whether a reader who trusts the list would be right."""

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Labels = NDArray[np.int64]


def vote(neighbours: Labels, classes: int) -> Labels:
    """(q,) the commonest label of each row of (q, k) neighbours' labels, -1 marking an empty place.

    Of equally common labels the one that appears first wins; a row without neighbours is -1.
    """
    rows, k = neighbours.shape
    counts = np.zeros((rows, classes))
    first = np.full((rows, classes), k)
    for place in reversed(range(k)):
        (known,) = np.nonzero(neighbours[:, place] >= 0)
        counts[known, neighbours[known, place]] += 1
        first[known, neighbours[known, place]] = place
    best = (counts - first / (k + 1)).argmax(axis=1)
    return np.where(counts.any(axis=1), best, -1)


def confusion(truth: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts, rows being the truth.

    Raises:
        Invalid: a label that is none of the classes.
    """
    for labels in (truth, predicted):
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise Invalid("a label is none of the classes")
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(table: NDArray[np.int64]) -> float:
    """Mean recall of the classes that occur."""
    asked = table.sum(axis=1)
    return float((np.diag(table)[asked > 0] / asked[asked > 0]).mean())


def macro_f1(table: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that occur or were predicted; one that was never right counts 0."""
    size = table.sum(axis=1) + table.sum(axis=0)
    return float((2 * np.diag(table)[size > 0] / size[size > 0]).mean())


def quadratic_kappa(table: NDArray[np.int64], grades: Labels) -> float:
    """Cohen's kappa with quadratic weights (g_i - g_j)^2; NaN where truth and prediction are one single grade."""
    weights = np.square(grades[:, None] - grades).astype(np.float64)
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    expected = float((weights * by_chance).sum())
    return 1 - float((weights * table).sum()) / expected if expected > 0 else float("nan")


def figures(truth: Labels, predicted: Labels, classes: int, grades: Labels | None = None) -> dict[str, float]:
    """Balanced accuracy and macro F1 of the vote; with `grades` (ordinal value of each class) also the kappa.

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
