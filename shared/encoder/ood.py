"""Out of distribution: thresholds calibrated on scores of known images, and three scores on features.

Higher is stranger. The reconstruction error is the model's own (`Outputs.errors`); the distances here need only its
embeddings, and see what a decoder misses (Denouden et al. 2018, arXiv 1812.02765).
"""

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict

from shared.errors import Invalid

Scores = NDArray[np.float32]  #: (n,)
Features = NDArray[np.float32]  #: (n, dim)
Rule = Literal["mean+3sd", "quantile", "log"]

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
MIN_SCORES = 20  #: fewer say nothing about a tail
AXES = 64  #: of a Gaussian: beyond them one variance serves all directions
PARTS = 5  #: of the known images, each of which is measured from the others
_ROWS = 1024  #: of a block of distances, to bound memory
#: Variance that rounding to float16 gives a unit vector: finer nothing is known, and nothing is divided by less.
_ROUNDING = 2.0**-22 / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Which scores of one modality are usual for one model. It belongs to these weights only."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rule: Rule
    threshold: float  #: an image is out of distribution above it
    mean: float
    std: float
    quantiles: Mapping[str, float]  #: of the calibrating scores, by "0.5", "0.9", ...
    n: int  #: calibrating images
    data_sha256: str  #: of the names of the calibrating images, sorted: see `data_digest`

    def exceeded(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which scores are out of distribution; a score that is no number is."""
        return np.asarray(~(np.asarray(scores) <= self.threshold))


def calibrate(scores: ArrayLike, data_sha256: str, rule: Rule = "mean+3sd") -> Calibration:
    """The calibration from scores of known images, which trained nothing: the validation split.

    `mean+3sd` is the paper's. Reconstruction errors are skewed to the right, so it stops more known images than
    0.13 %; `log` is the same rule on logarithms, and `quantile` stops 1 % of the calibrating ones.

    Args:
        scores: (n,), higher is stranger.
        data_sha256: what `data_digest` gives for their images.

    Raises:
        Invalid: fewer than 20 scores, one that is no number, or for `log` one that is not positive.

    Source: arXiv 2503.09370 (eq. 19 by a summary of it).
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) < MIN_SCORES or not np.isfinite(values).all():
        raise Invalid(f"a calibration takes at least {MIN_SCORES} scores, all of them numbers")
    mean, std = float(values.mean()), float(values.std(ddof=1))
    if rule == "mean+3sd":
        threshold = mean + 3 * std
    elif rule == "quantile":
        threshold = float(np.quantile(values, 0.99))
    elif rule == "log":
        if values.min() <= 0:
            raise Invalid("a logarithmic calibration takes positive scores")
        logs = np.log(values)
        threshold = float(np.exp(logs.mean() + 3 * logs.std(ddof=1)))
    else:
        raise Invalid("a calibration's rule is mean+3sd, quantile or log")
    quantiles = {str(q): float(np.quantile(values, q)) for q in QUANTILES}
    return Calibration(
        rule=rule, threshold=threshold, mean=mean, std=std, quantiles=quantiles, n=len(values), data_sha256=data_sha256
    )


def data_digest(names: Iterable[str]) -> str:
    """SHA-256 over the sorted names (or digests) of images: tells whether two sets are the same, and names none."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def knn_distance(features: Features, known: Features, k: int = 5) -> Scores:
    """(n,): distance of each unit vector to its k-th nearest known one, 0 to 2. Source: Sun et al. 2022 (ICML).

    Raises: `Invalid` for fewer than k known ones, or a vector without a direction.
    """
    if not 1 <= k <= len(known):
        raise Invalid("there are fewer known vectors than neighbours to look at")
    rows, columns = unit(features), unit(known)
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS):
        cosines = rows[start : start + _ROWS] @ columns.T
        nearest = np.partition(cosines, len(known) - k, axis=1)[:, len(known) - k]
        out[start : start + _ROWS] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
    return out


@dataclass(frozen=True, slots=True)
class Mahalanobis:
    """Squared distance to the nearest class centre, in units of the covariance that the classes share.

    Source: Lee et al. 2018 (arXiv 1807.03888); the covariance is shrunk (Ledoit & Wolf 2004), because there are
    seldom many more images than dimensions.
    """

    centres: NDArray[np.float64]  #: (classes, dim)
    precision: NDArray[np.float64]  #: (dim, dim)

    @classmethod
    def fit(cls, known: Features, classes: ArrayLike | None = None) -> Self:
        """`classes`: (n,) of each known vector; without them there is one. Raises `Invalid` for fewer than two."""
        from sklearn.covariance import LedoitWolf

        rows = np.asarray(known, np.float64)
        if len(rows) < 2:
            raise Invalid("a covariance takes at least two vectors")
        names, member = np.unique(np.zeros(len(rows)) if classes is None else np.asarray(classes), return_inverse=True)
        centres = np.stack([rows[member == i].mean(0) for i in range(len(names))])
        fitted = LedoitWolf(assume_centered=True).fit(rows - centres[member])
        return cls(centres, fitted.precision_)

    def scores(self, features: Features) -> Scores:
        """(n,) of (n, dim)."""
        found = [self._to(centre, np.asarray(features, np.float64)) for centre in self.centres]
        return np.min(found, axis=0).astype(np.float32)  # type: ignore[no-any-return]

    def _to(self, centre: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        away = rows - centre
        return np.einsum("ij,ij->i", away @ self.precision, away)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """Where the directions of known embeddings lie: their mean, up to 64 leading axes, and one variance for the rest.

    The Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888) under a covariance that is shrunk towards a sphere
    (Ledoit & Wolf 2004), because there are seldom many more images than dimensions. It holds no image's embedding.
    """

    mean: NDArray[np.float64]  #: (dim,), of unit vectors
    axes: NDArray[np.float64]  #: (k, dim), each as long as its variance exceeds the rest: sqrt(1 - rest / variance)
    rest: float  #: variance in every other direction

    @classmethod
    def fit(cls, known: Features) -> Self:
        """Of (n, dim), n at least 2. Raises: `Invalid` for fewer, or a vector that has no direction."""
        if len(known) < 2:
            raise Invalid("a covariance takes at least two vectors")
        rows = unit(known).astype(np.float64)
        n, dim = rows.shape
        mean = rows.mean(0)
        rows -= mean
        variances, axes = _principal(rows)
        sphere = max(variances.sum(), _ROUNDING) / dim
        spread = (variances**2).sum()
        apart = spread - dim * sphere**2
        noise = ((rows**2).sum(1) ** 2).sum() / n**2 - spread / n
        shrinkage = float(np.clip(noise / apart, 0, 1)) if apart > 0 else 1.0
        k = min(AXES, len(axes), dim - 1)
        rest = (1 - shrinkage) * variances[k:].sum() / (dim - k) + shrinkage * sphere
        rest = max(rest, _ROUNDING / dim)
        leading = np.maximum((1 - shrinkage) * variances[:k] + shrinkage * sphere, rest)
        return cls(mean, axes[:k] * np.sqrt(1 - rest / leading)[:, None], float(rest)).rounded()

    def rounded(self) -> Self:
        """As it is stored: what judges at once is what judges later."""
        return self.unpack(self.pack())

    def distances(self, features: Iterable[NDArray[np.float32]]) -> list[float]:
        """Of each vector (dim,), in standard deviations of known ones; no number for one without a direction.

        One by one: a product of matrices may round otherwise in other company, and a replay is to find the same.
        """
        return [self._distance(np.asarray(one, np.float64)) for one in features]

    def _distance(self, vector: NDArray[np.float64]) -> float:
        if vector.shape != self.mean.shape:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            away = vector / np.linalg.norm(vector) - self.mean
        within = self.axes @ away
        square = float(away @ away - within @ within) / self.rest
        return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan

    def pack(self) -> bytes:
        """float32, little-endian: the dimension, `rest`, `mean`, then axis by axis."""
        numbers = np.concatenate([[len(self.mean), self.rest], self.mean, self.axes.ravel()])
        return numbers.astype("<f4").tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        numbers = np.frombuffer(data, "<f4").astype(np.float64)
        rows = numbers[2:].reshape(-1, int(numbers[0]))
        return cls(rows[0], rows[1:], float(numbers[1]))


def _principal(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All variances of (n, dim) centred rows, the largest first, and the axes of those that are above rounding."""
    n, dim = rows.shape
    if n >= dim:
        variances, vectors = np.linalg.eigh(rows.T @ rows / n)
        variances, axes = np.maximum(variances[::-1], 0), vectors.T[::-1]
        return variances, axes[variances > _ROUNDING / dim]
    variances, vectors = np.linalg.eigh(rows @ rows.T / n)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    kept = variances > _ROUNDING / dim
    return variances, (vectors[:, kept].T @ rows) / np.sqrt(n * variances[kept])[:, None]


def held_out(known: Features, groups: Sequence[Hashable]) -> list[float]:
    """Distance of each known vector from a Gaussian of others: of five parts the one it is in takes no part.

    A threshold of distances from a Gaussian that was fitted to the same vectors would be too tight for fresh ones. A
    group (a patient) stays together, unless that would put more than half of the vectors into one part.

    Raises: `Invalid` for fewer than four vectors.
    """
    if len(known) < 4:
        raise Invalid("too few vectors to hold any out")
    part_of = {name: i % PARTS for i, name in enumerate(dict.fromkeys(groups))}
    part = np.array([part_of[name] for name in groups])
    if 2 * np.bincount(part).max() > len(part):
        part = np.arange(len(part)) % PARTS
    found = np.empty(len(known))
    for one in np.unique(part):
        found[part == one] = Gaussian.fit(known[part != one]).distances(known[part == one])
    return found.tolist()


def unit(vectors: Features) -> Features:
    """Rows of length 1. Raises `Invalid` for one that has no direction: zero, or no numbers."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise Invalid("a vector has no direction")
    return (vectors / lengths).astype(np.float32, copy=False)  # type: ignore[no-any-return]
