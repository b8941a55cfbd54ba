"""Plain loops over one ranked list, the reference for the metrics."""

import math

import numpy as np

from shared.metrics.ranking import Ranking, Side


def discounted(gains) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def average_precision(hits) -> float:
    found, total = 0, 0.0
    for place, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += found / place
    return total / found if found else math.nan


def as_ranking(distances) -> Ranking:
    """A ranking of items that are already in order."""
    values = np.atleast_2d(np.asarray(distances, np.float32))
    order = np.broadcast_to(np.arange(values.shape[1]), values.shape).copy()
    return Ranking(order, values, np.full(len(values), values.shape[1]))


def on_a_line(hits, total: int | None = None) -> tuple[Side, Side]:
    """One query of class 1 and its items by distance, given as hits or not; padded with hits up to `total`."""
    labels = [int(hit) for hit in hits] + [1] * ((total or sum(hits)) - sum(hits))
    gallery = Side(vectors=np.arange(1, len(labels) + 1, dtype=np.float32)[:, None], labels=np.array(labels))
    return Side(vectors=np.zeros((1, 1), np.float32), labels=np.array([1])), gallery
