"""Retrieval figures of every query, and their means.

With hits rel_i in {0, 1}, R relevant items left after exclusion, and expectation over ties throughout:

    P@k         hits / k, also if the list is shorter than k
    P_adj@k     hits / min(k, R)                    (Denner et al., arXiv 2403.06567)
    R@k         hits / R
    nDCG@k      sum_k rel_i / log2(i + 1), divided by its value for the ideal list of min(k, R) hits
    nDCG_retrieved_ideal@k   divided by its value for the sorted retrieved list: as in arXiv 2411.01473 and 2508.04790,
                not standard, only for comparison with their tables; ties are broken by position, without expectation
    mAP, mAP@k  sum of the precision at each relevant place, over R or min(k, R); mAP is over the whole ranking
    MRR, hit@k  1 / rank of the first hit; whether the first k have a hit
    graded_nDCG@k, grade_difference@k   gain 1 - |b_q - b_i| / span, and mean |b_q - b_i| over the retrieved items

The figures of a query without a relevant item are NaN; such queries are counted separately and enter no mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics.ranking import Floats, Metric, Ranking, Side, Ties, chunks, expected, ties

KS = (1, 5, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerQuery:
    """Figures of `q` queries; row i of every array belongs to query i."""

    labels: NDArray[np.int64]  #: (q,)
    clusters: NDArray[np.int64]  #: (q,) the patient of each query
    relevant: NDArray[np.int64]  #: (q,) relevant items in the query's gallery
    length: NDArray[np.int64]  #: (q,) items in the query's gallery; a list of k is short if this is smaller
    values: dict[str, Floats] = field(default_factory=dict)  #: (q,) each; NaN without a relevant item

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unanswerable(self) -> int:
        """Number of queries without a relevant item."""
        return int((self.relevant == 0).sum())

    def micro(self, name: str) -> float:
        """Return the mean over queries; NaN if no query has a relevant item."""
        values = self.values[name][self.relevant > 0]
        return float(values.mean()) if len(values) else float("nan")

    def per_class(self, name: str) -> dict[int, float]:
        """Return the mean over the queries of each class, for classes with a query that has a relevant item."""
        known = self.relevant > 0
        classes = np.unique(self.labels[known])
        return {int(c): float(self.values[name][known & (self.labels == c)].mean()) for c in classes}

    def macro(self, name: str) -> float:
        """Return the mean of the classes' means: a rare class counts as much as a common one."""
        means = list(self.per_class(name).values())
        return float(np.mean(means)) if means else float("nan")

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        return type(self)(
            **{f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "values"},
            values={name: values[chosen] for name, values in self.values.items()},
        )


def joined(parts: Sequence[PerQuery]) -> PerQuery:
    """Concatenate the queries of several runs."""
    if not parts:
        raise Invalid("there is nothing to join")
    arrays = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(PerQuery) if f.name != "values"
    }
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    return PerQuery(**arrays, values=values)


def measure(
    queries: Side,
    gallery: Side,
    *,
    metric: Metric = "cosine",
    ks: Sequence[int] = KS,
    grades: NDArray[np.int64] | None = None,
) -> PerQuery:
    """Return all figures of each query against the whole gallery; an item is relevant if it has the query's label.

    Args:
        queries, gallery: vectors with labels; if both have keys, items with a query's own key are excluded before
            ranking.
        ks: list lengths, at least 1.
        grades: (classes,) the ordinal value of each label, for the graded figures.

    Raises:
        Invalid: queries and gallery do not fit each other, or a k is below 1.
    """
    if not ks or min(ks) < 1:
        raise Invalid("every k must be at least 1")
    parts = []
    for part, ranking in chunks(queries, gallery, metric):
        hits = ranking.sorted(queries.labels[part][:, None] == gallery.labels)
        found = _figures(ranking, hits, ks)
        if grades is not None:
            apart = np.abs(grades[queries.labels[part]][:, None] - grades[gallery.labels]).astype(np.float64)
            found |= _graded(ranking, ranking.sorted(apart), float(np.ptp(grades)), ks)
        parts.append(collected(queries, part, ranking, hits, found))
    return joined(parts)


def dcg(gains: Floats) -> Floats:
    """Return the discounted cumulative gain of each row: sum of gain_i / log2(i + 1)."""
    return np.asarray(gains @ (1 / np.log2(np.arange(gains.shape[-1]) + 2)))


def ndcg(gains: Floats, relevant: NDArray[np.int64], k: int) -> Floats:
    """Return standard nDCG@k of (q, n) ranked binary gains with (q,) `relevant` items in the whole gallery."""
    ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))
    return dcg(gains[:, :k]) / np.where(relevant > 0, ideal[np.minimum(relevant, k) - 1], np.nan)


def ndcg_retrieved_ideal(gains: Floats, k: int) -> Floats:
    """Return the papers' nDCG@k, whose ideal is the sorted retrieved list; 0 for a list without a hit.

    Not standard: a list with its two hits in front scores 1, however many it missed. Source: arXiv 2411.01473,
    equation 3, in the reading that the paper's tables confirm.
    """
    top = gains[:, :k]
    ideal = dcg(-np.sort(-top, axis=1))
    return np.divide(dcg(top), ideal, out=np.zeros(len(top)), where=ideal > 0)


def average_precision(hits: NDArray[np.bool_], tied: Ties | None) -> Floats:
    """Return the average precision of (q, n) ranked hits, expected over all orders of ties; NaN without a hit."""
    relevant = hits.sum(axis=1)
    return np.asarray(precisions(hits, tied).sum(axis=1) / np.where(relevant > 0, relevant, np.nan))


def precisions(hits: NDArray[np.bool_], tied: Ties | None) -> Floats:
    """Return (q, n) expectations of hit x precision at each place; their sum divided by R is the average precision.

    In a group of n ties with r relevant, N items and P relevant before it, place t has
    (r / n) (P + 1 + (t - 1)(r - 1) / (n - 1)) / (N + t).

    Source: He, Cakir, Bargal and Sclaroff, "Hashing as tie-aware learning to rank", CVPR 2018.
    """
    total = np.cumsum(hits, axis=1, dtype=np.int32)
    here = hits if tied is None else tied.total(hits)  # r
    row, column = at = np.nonzero(here)  # few places are not 0
    terms = np.zeros(hits.shape)
    if tied is None:
        terms[at] = total[at] / (column + 1)
        return terms
    first, size, relevant = tied.first[at], tied.size[at], here[at]
    before = total[row, first] - hits[row, first]  # P
    later = (column - first) * (relevant - 1) / np.maximum(size - 1, 1)
    terms[at] = relevant / size * (before + 1 + later) / (column + 1)
    return terms


def _figures(ranking: Ranking, hits: NDArray[np.bool_], ks: Sequence[int]) -> dict[str, Floats]:
    tied = ties(ranking)
    relevant = hits.sum(axis=1)
    some = np.where(relevant > 0, relevant, np.nan)
    gains = expected(hits, tied)[:, : max(ks)]
    at_hits = precisions(hits, tied)
    reciprocal, misses = _first_hit(hits, tied, ks)
    found = {"mAP": at_hits.sum(axis=1) / some, "MRR": reciprocal}
    for k in ks:
        count = gains[:, :k].sum(axis=1)
        found[f"P@{k}"] = count / k
        found[f"P_adj@{k}"] = count / np.minimum(some, k)
        found[f"R@{k}"] = count / some
        found[f"nDCG@{k}"] = ndcg(gains, relevant, k)
        found[f"nDCG_retrieved_ideal@{k}"] = ndcg_retrieved_ideal(hits.astype(np.float64), k)
        found[f"mAP@{k}"] = at_hits[:, :k].sum(axis=1) / np.minimum(some, k)
        found[f"hit@{k}"] = 1 - misses[k]
    return found


def _first_hit(hits: NDArray[np.bool_], tied: Ties | None, ks: Sequence[int]) -> tuple[Floats, dict[int, Floats]]:
    """Return the expected 1 / (place of the first hit), and the probability of no hit among k; NaN without a hit.

    In a group of n ties with r hits, the first s places have no hit with probability C(n - s, r) / C(n, r).
    """
    rows = np.arange(len(hits))
    first = np.argmax(hits, axis=1)
    known = hits.any(axis=1)
    begin = first if tied is None else tied.first[rows, first]
    size = np.ones(len(hits), np.int64) if tied is None else tied.size[rows, first]
    here = np.ones(len(hits)) if tied is None else tied.total(hits)[rows, first]
    steps = np.arange(int(size.max()) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # C(n - s, r) / C(n, r) = prod over i < s of (n - r - i) / (n - i)
        factors = np.clip((size[:, None] - here[:, None] - steps[:-1]) / (size[:, None] - steps[:-1]), 0, 1)
    factors[np.isnan(factors)] = 0
    none = np.concatenate([np.ones((len(hits), 1)), np.cumprod(factors, axis=1)], axis=1)
    reciprocal = ((none[:, :-1] - none[:, 1:]) / (begin[:, None] + 1 + steps[:-1])).sum(axis=1)
    misses = {k: none[rows, np.clip(k - begin, 0, steps[-1])] for k in ks}
    unknown = np.where(known, 0.0, np.nan)
    return reciprocal + unknown, {k: missed + unknown for k, missed in misses.items()}


def _graded(ranking: Ranking, apart: Floats, span: float, ks: Sequence[int]) -> dict[str, Floats]:
    tied = ties(ranking)
    present = np.arange(apart.shape[1]) < ranking.length[:, None]
    gains = np.where(present, 1 - apart / max(span, 1.0), 0)
    ideal = -np.sort(-gains, axis=1)[:, : max(ks)]
    retrieved, differences = expected(gains, tied), expected(apart, tied)
    found = {}
    for k in ks:
        best = dcg(ideal[:, :k])
        found[f"graded_nDCG@{k}"] = np.divide(
            dcg(retrieved[:, :k]), best, out=np.full(len(best), np.nan), where=best > 0
        )
        # a short list is divided by its length: division by k would count the missing items as perfect
        shown = np.maximum(np.minimum(ranking.length, k), 1)
        found[f"grade_difference@{k}"] = differences[:, :k].sum(axis=1) / shown
    return found


def collected(
    queries: Side, part: slice, ranking: Ranking, hits: NDArray[np.bool_], found: dict[str, Floats]
) -> PerQuery:
    """Pack the figures of a part of the queries; those of a query without a relevant item become NaN."""
    relevant = hits.sum(axis=1)
    clusters = queries.clusters if queries.clusters is not None else queries.keys
    return PerQuery(
        labels=queries.labels[part],
        clusters=np.arange(len(queries))[part] if clusters is None else clusters[part],
        relevant=relevant,
        length=ranking.length,
        values={name: np.where(relevant > 0, values, np.nan) for name, values in found.items()},
    )
