"""What a retriever scores that knows nothing: it stands beside every figure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics.ranking import Side
from shared.metrics.retrieval import KS, PerQuery, measure

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Baseline:
    """P@k of a retriever without knowledge, for every k alike."""

    micro: float
    macro: float


def random_figures(queries: Side, gallery: Side, *, ks: Sequence[int] = KS, grades: Labels | None = None) -> PerQuery:
    """Every figure's expectation for a random order of each query's own gallery.

    One code for all items is one group of ties, and figures are expectations over ties: no list is drawn.
    """
    return _figures(queries, gallery, np.zeros(len(gallery), np.uint8), ks, grades)


def majority_figures(queries: Side, gallery: Side, *, ks: Sequence[int] = KS, grades: Labels | None = None) -> PerQuery:
    """Every figure of a retriever that shows the gallery's commonest class first, in random order, to everybody."""
    classes, counts = np.unique(gallery.labels, return_counts=True)
    return _figures(queries, gallery, (gallery.labels != classes[counts.argmax()]).astype(np.uint8), ks, grades)


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


def _figures(
    queries: Side, gallery: Side, codes: NDArray[np.uint8], ks: Sequence[int], grades: Labels | None
) -> PerQuery:
    """Figures of queries whose code is 0 among the gallery's one-byte codes."""
    asked = replace(queries, vectors=np.zeros((len(queries), 1), np.uint8))
    found = measure(asked, replace(gallery, vectors=codes[:, None]), metric="hamming", ks=ks, grades=grades)
    # of one list as it stands: among nothing but ties it would measure the order of storage
    values = {name: value for name, value in found.values.items() if not name.startswith("nDCG_retrieved_ideal")}
    return replace(found, values=values)
