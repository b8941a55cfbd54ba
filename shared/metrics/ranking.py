"""Rankings of a gallery for many queries at once, in chunks of bounded memory.

Equal distances are *ties*. Hash codes tie by the thousand, and a gallery is often stored by class, so breaking ties by
position would measure the storage order. Every figure that is linear in the relevance is therefore computed with the
mean relevance of each group of ties, which is its expectation over all orders of the group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.types import Codes

Metric = Literal["cosine", "l2", "hamming"]
Floats = NDArray[np.float64]
Distances = NDArray[Any]  # float32, or uint16 for Hamming

#: Distances in memory at a time: with the order, the gains and temporary arrays, about 150 MB.
ELEMENTS = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The queries or the gallery; row i of every array belongs to image i."""

    vectors: NDArray[Any]  #: (n, dim) embeddings, or (n, bits / 8) uint8 codes for the Hamming distance
    labels: NDArray[np.int64]  #: (n,) class
    keys: NDArray[np.int64] | None = None  #: (n,) gallery items with the query's own key are excluded
    clusters: NDArray[np.int64] | None = None  #: (n,) patient, for intervals; by default the keys

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of `n` items for `q` queries, nearest first; ties are in the gallery's order."""

    order: NDArray[np.int64]  #: (q, n) positions in the gallery; excluded items are last
    distances: Distances  #: (q, n)
    length: NDArray[np.int64]  #: (q,) number of items that are not excluded

    def sorted(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return (q, n) gallery values in ranked order; 0 for excluded items."""
        ranked: NDArray[Any] = np.take_along_axis(values, self.order, axis=1)
        ranked[np.arange(ranked.shape[1]) >= self.length[:, None]] = 0
        return ranked


@dataclass(frozen=True, slots=True)
class Ties:
    """For each place of a ranking: the start and the size of its group of ties."""

    first: NDArray[np.int64]  #: (q, n)
    size: NDArray[np.int64]  #: (q, n)
    group: NDArray[np.int64]  #: (q, n), numbered over all rows

    def total(self, values: NDArray[Any]) -> Floats:
        """Return (q, n) sums of the values over each place's group."""
        sums = np.bincount(self.group.ravel(), weights=values.ravel())
        return np.asarray(sums, np.float64)[self.group]


def rank(distances: Distances, allowed: NDArray[np.bool_] | None = None) -> Ranking:
    """Rank each row of (q, n) distances; items that are not allowed are excluded before anything is counted."""
    length = np.full(len(distances), distances.shape[1])
    if allowed is not None:
        farthest = np.inf if distances.dtype.kind == "f" else np.iinfo(np.uint16).max
        distances = np.where(allowed, distances, distances.dtype.type(farthest))
        length = allowed.sum(axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    return Ranking(order, np.take_along_axis(distances, order, axis=1), length)


def ties(ranking: Ranking) -> Ties | None:
    """Return the groups of equal distances; None if there are no ties."""
    distances = ranking.distances
    begins: NDArray[np.bool_] = np.ones_like(distances, np.bool_)
    begins[:, 1:] = distances[:, 1:] != distances[:, :-1]
    begins |= np.arange(distances.shape[1]) >= ranking.length[:, None]  # excluded items form no group
    if begins.all():
        return None
    group = np.cumsum(begins.ravel()) - 1
    size = np.bincount(group)[group].reshape(begins.shape)
    first = np.maximum.accumulate(np.where(begins, np.arange(distances.shape[1]), 0), axis=1)
    return Ties(first, size, group.reshape(begins.shape))


def expected(gains: NDArray[Any], tied: Ties | None) -> Floats:
    """Return (q, n) ranked gains, each replaced by the mean of its group of ties.

    Source: McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence
    of tied scores", ECIR 2008.
    """
    return gains.astype(np.float64) if tied is None else tied.total(gains) / tied.size


def chunks(queries: Side, gallery: Side, metric: Metric = "cosine") -> Iterator[tuple[slice, Ranking]]:
    """Yield the gallery's ranking for chunks of queries, without the items that have a query's own key.

    Cosine and L2 are computed in float32 (L2 squared, centred on the gallery's mean); Hamming distances are exact.

    Raises:
        Invalid: a shape or a type does not fit, a vector is not finite, or is zero under cosine.
    """
    _check(queries, gallery, metric)
    left, right = _prepared(queries.vectors, gallery.vectors, metric)
    step = max(1, ELEMENTS // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        allowed = None
        if queries.keys is not None and gallery.keys is not None:
            allowed = queries.keys[part][:, None] != gallery.keys
        yield part, rank(_distances(left[part], right, metric), allowed)


def hamming(queries: Codes, gallery: Codes) -> NDArray[np.uint16]:
    """Return (q, n) numbers of differing bits between (q, bytes) and (n, bytes) packed codes."""
    return _bits(_words(queries), _words(gallery))


def _distances(queries: NDArray[Any], gallery: NDArray[Any], metric: Metric) -> Distances:
    if metric == "hamming":
        return _bits(queries, gallery)
    product = queries @ gallery.T
    if metric == "cosine":
        return np.asarray(-product)
    return np.asarray(np.square(queries).sum(axis=1)[:, None] + np.square(gallery).sum(axis=1) - 2 * product)


def _prepared(queries: NDArray[Any], gallery: NDArray[Any], metric: Metric) -> tuple[NDArray[Any], NDArray[Any]]:
    if metric == "hamming":
        return _words(queries), _words(gallery)
    left, right = queries.astype(np.float32), gallery.astype(np.float32)
    if metric == "l2":  # the origin does not change distances, but it changes rounding
        middle = right.mean(axis=0)
        return left - middle, right - middle
    return left / np.linalg.norm(left, axis=1, keepdims=True), right / np.linalg.norm(right, axis=1, keepdims=True)


def _words(codes: Codes) -> NDArray[np.uint64]:
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(np.uint64)


def _bits(queries: NDArray[np.uint64], gallery: NDArray[np.uint64]) -> NDArray[np.uint16]:
    counts = np.zeros((len(queries), len(gallery)), np.uint16)
    for word in range(queries.shape[1]):
        counts += np.bitwise_count(queries[:, word, None] ^ gallery[:, word])
    return counts


def _check(queries: Side, gallery: Side, metric: Metric) -> None:
    for side in (queries, gallery):
        if side.vectors.ndim != 2 or side.vectors.shape[1] != gallery.vectors.shape[1] or not len(side):
            raise Invalid("queries and gallery must be matrices of the same width with at least one row")
        if len(side.labels) != len(side) or (side.keys is not None and len(side.keys) != len(side)):
            raise Invalid("labels and keys must have one entry for each vector")
        if (metric == "hamming") != (side.vectors.dtype == np.uint8):
            raise Invalid("packed codes (uint8) need the metric hamming, embeddings cosine or l2")
        if metric != "hamming" and not np.isfinite(side.vectors).all():
            raise Invalid("a vector is NaN or infinite")
        if metric == "cosine" and not side.vectors.any(axis=1).all():
            raise Invalid("a zero vector has no cosine")
    if (queries.keys is None) != (gallery.keys is None):
        raise Invalid("give keys for both queries and gallery, or for neither")
