"""Figures of binary hash codes: contents of a Hamming ball, number of distinct codes, order within a class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics.ranking import Floats, Metric, Ranking, Side, chunks, expected, ties
from shared.metrics.retrieval import PerQuery, collected, dcg, joined
from shared.types import Codes


def ball(queries: Side, gallery: Side, radii: Sequence[int]) -> PerQuery:
    """Return precision and recall of the Hamming ball of each radius around each query.

    Values: `P@H<=r` (0 if the ball is empty), `R@H<=r`, `empty@H<=r` (1 or 0; its mean is the share of empty
    balls) and `size@H<=r`. NaN for a query without a relevant item.

    Raises:
        Invalid: the vectors are not packed codes, or a radius is negative.
    """
    if not radii or min(radii) < 0:
        raise Invalid("a radius must be a non-negative number of bits")
    parts = []
    for part, ranking in chunks(queries, gallery, "hamming"):
        hits = ranking.sorted(queries.labels[part][:, None] == gallery.labels)
        parts.append(collected(queries, part, ranking, hits, _ball(ranking, hits, radii)))
    return joined(parts)


def unique_codes(codes: Codes) -> int:
    """Return the number of distinct codes among (n, bytes) packed codes."""
    return len(np.unique(codes, axis=0))


def within_class_ndcg(
    queries: Side,
    gallery: Side,
    structures: tuple[NDArray[np.float32], NDArray[np.float32]],
    metric: Metric = "hamming",
) -> Floats:
    """Return (q,) nDCG of the whole list of a query's own class, with structural similarity as the gain.

    It measures whether the order within a class follows the appearance of the images, which class figures ignore. The
    gain is max(0, f_q . f_i); ties count with their expectation. NaN if no item of the class resembles the query.

    Args:
        structures: (q, d) and (n, d) unit vectors of queries and gallery: centred fingerprints, so that the
            product is Pearson's correlation.
    """
    found = np.full(len(queries), np.nan)
    for part, ranking in chunks(queries, gallery, metric):
        same = queries.labels[part][:, None] == gallery.labels
        gains = np.clip(structures[0][part] @ structures[1].T, 0, None).astype(np.float64) * same
        own = _only(ranking, same)
        ranked = own.sorted(gains)
        ideal = dcg(-np.sort(-ranked, axis=1))
        np.divide(dcg(expected(ranked, ties(own))), ideal, out=found[part], where=ideal > 0)
    return found


def _only(ranking: Ranking, same: NDArray[np.bool_]) -> Ranking:
    """Return the ranking without the items of other classes, otherwise in the same order."""
    kept = ranking.sorted(same)
    front = np.argsort(~kept, axis=1, kind="stable")
    return Ranking(
        np.take_along_axis(ranking.order, front, axis=1),
        np.take_along_axis(ranking.distances, front, axis=1),
        kept.sum(axis=1),
    )


def _ball(ranking: Ranking, hits: NDArray[np.bool_], radii: Sequence[int]) -> dict[str, Floats]:
    total = np.cumsum(np.concatenate([np.zeros((len(hits), 1), np.int64), hits], axis=1), axis=1)
    found: dict[str, Floats] = {}
    for radius in radii:
        inside = np.minimum((ranking.distances <= radius).sum(axis=1), ranking.length)
        count = total[np.arange(len(hits)), inside]
        found[f"P@H<={radius}"] = count / np.maximum(inside, 1)
        found[f"R@H<={radius}"] = count / np.maximum(total[:, -1], 1)
        found[f"empty@H<={radius}"] = (inside == 0).astype(np.float64)
        found[f"size@H<={radius}"] = inside.astype(np.float64)
    return found
