"""Figures of uninformed retrievers, reported beside every figure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.metrics.ranking import Side
from shared.metrics.retrieval import KS, PerQuery, measure

Labels = NDArray[np.int64]


def random_figures(queries: Side, gallery: Side, *, ks: Sequence[int] = KS, grades: Labels | None = None) -> PerQuery:
    """Return every figure's expectation for a random order of each query's own gallery.

    All items get the same code, so they form one group of ties, and figures are expectations over ties: no list is
    drawn.
    """
    return _figures(queries, gallery, np.zeros(len(gallery), np.uint8), ks, grades)


def majority_figures(queries: Side, gallery: Side, *, ks: Sequence[int] = KS, grades: Labels | None = None) -> PerQuery:
    """Return every figure of a retriever that always shows the gallery's most common class first, in random order."""
    classes, counts = np.unique(gallery.labels, return_counts=True)
    return _figures(queries, gallery, (gallery.labels != classes[counts.argmax()]).astype(np.uint8), ks, grades)


def lift(value: float, baseline: float) -> float:
    """Return the ratio of the figure to the baseline; NaN if the baseline is 0."""
    return value / baseline if baseline > 0 else float("nan")


def _figures(
    queries: Side, gallery: Side, codes: NDArray[np.uint8], ks: Sequence[int], grades: Labels | None
) -> PerQuery:
    """Return the figures of queries with code 0 against the gallery's one-byte codes."""
    asked = replace(queries, vectors=np.zeros((len(queries), 1), np.uint8))
    found = measure(asked, replace(gallery, vectors=codes[:, None]), metric="hamming", ks=ks, grades=grades)
    # nDCG_retrieved_ideal breaks ties by position: if all items tie, it would measure the order of storage
    values = {name: value for name, value in found.values.items() if not name.startswith("nDCG_retrieved_ideal")}
    return replace(found, values=values)
