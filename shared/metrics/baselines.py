"""What a retriever scores that knows nothing: it stands beside every figure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Baseline:
    """P@k of a retriever without knowledge, for every k alike."""

    micro: float
    macro: float


def chance(queries: Labels, gallery: Labels) -> Baseline:
    """A random list: micro = sum over classes of q_c g_c, macro = mean of g_c over the classes asked for.

    `q_c` and `g_c` are the shares of class c among queries and gallery.
    """
    classes, shares = np.unique(queries, return_counts=True)
    found = np.array([(gallery == c).mean() for c in classes])
    return Baseline(float(found @ shares / len(queries)), float(found.mean()))


def chance_after_exclusion(queries: Labels, relevant: Labels, length: Labels) -> Baseline:
    """The same where each query has a gallery of its own: the mean share of relevant items in it.

    Queries without a relevant item are left out, as they are of every figure.
    """
    known = (relevant > 0) & (length > 0)
    if not known.any():
        raise Invalid("no query has a relevant item")
    share = relevant[known] / length[known]
    return Baseline(float(share.mean()), _macro(share, queries[known]))


def majority(queries: Labels, gallery: Labels) -> Baseline:
    """A retriever that always returns the gallery's commonest class: P@k is the share of queries of that class."""
    classes, counts = np.unique(gallery, return_counts=True)
    right = (queries == classes[counts.argmax()]).astype(np.float64)
    return Baseline(float(right.mean()), _macro(right, queries))


def chance_with_self(k: int, count: int, total: int) -> float:
    """P@k of random neighbours if the query itself stands first: its class has `count` of `total` images."""
    if not 1 <= k <= total or not 1 <= count <= total:
        raise Invalid("k and the class are at least one and at most the collection")
    return (1 + (k - 1) * (count - 1) / max(total - 1, 1)) / k


def lift(value: float, baseline: float) -> float:
    """How many times the baseline the figure is."""
    return value / baseline if baseline > 0 else float("nan")


def _macro(values: NDArray[np.float64], labels: Labels) -> float:
    return float(np.mean([values[labels == c].mean() for c in np.unique(labels)]))
