"""Out-of-distribution detection: thresholds calibrated on scores of known images, and three scores on features.

A higher score is stranger. The model itself returns the reconstruction error (`Outputs.errors`); the distances here
need only its embeddings, and detect images that a decoder misses (Denouden et al. 2018, arXiv 1812.02765).
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
MIN_SCORES = 20  #: fewer scores say nothing about the tail
AXES = 64  #: leading axes of a Gaussian; all other directions share one variance
PARTS = 5  #: folds of the known images; each is measured against the other folds
_ROWS = 1024  #: rows per block of distances, to bound memory
#: Variance that rounding to float16 adds to a unit vector: the finest known scale, and the smallest divisor.
_ROUNDING = 2.0**-22 / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The usual scores of one modality for one model. Valid only for the weights that gave the scores."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rule: Rule
    threshold: float  #: an image with a higher score is out of distribution
    mean: float
    std: float
    quantiles: Mapping[str, float]  #: of the calibrating scores, by "0.5", "0.9", ...
    n: int  #: number of calibrating images
    data_sha256: str  #: `data_digest` of the calibrating images

    def exceeded(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Return which scores are out of distribution; NaN counts as out of distribution."""
        return np.asarray(~(np.asarray(scores) <= self.threshold))


def calibrate(scores: ArrayLike, data_sha256: str, rule: Rule = "mean+3sd") -> Calibration:
    """Return the calibration from scores of known images that were not trained on: the validation split.

    `mean+3sd` is the paper's rule. Reconstruction errors are skewed to the right, so it stops more than 0.13 % of
    known images; `log` is the same rule on logarithms, and `quantile` stops 1 % of the calibrating images.

    Args:
        scores: (n,), higher is stranger.
        data_sha256: `data_digest` of their images.

    Raises:
        Invalid: fewer than 20 scores, a score that is not finite, or for `log` one that is not positive.

    Source: arXiv 2503.09370 (eq. 19 by a summary of it).
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) < MIN_SCORES or not np.isfinite(values).all():
        raise Invalid(f"a calibration needs at least {MIN_SCORES} scores, all of them finite")
    mean, std = float(values.mean()), float(values.std(ddof=1))
    if rule == "mean+3sd":
        threshold = mean + 3 * std
    elif rule == "quantile":
        threshold = float(np.quantile(values, 0.99))
    elif rule == "log":
        if values.min() <= 0:
            raise Invalid("a logarithmic calibration needs positive scores")
        logs = np.log(values)
        threshold = float(np.exp(logs.mean() + 3 * logs.std(ddof=1)))
    else:
        raise Invalid("a calibration's rule must be mean+3sd, quantile or log")
    quantiles = {str(q): float(np.quantile(values, q)) for q in QUANTILES}
    return Calibration(
        rule=rule, threshold=threshold, mean=mean, std=std, quantiles=quantiles, n=len(values), data_sha256=data_sha256
    )


def data_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted image names (or digests): it compares two sets without revealing a name."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def knn_distance(features: Features, known: Features, k: int = 5) -> Scores:
    """Return (n,) distances from each unit vector to its k-th nearest known one, 0 to 2.

    Raises: `Invalid` for fewer than k known vectors, or a vector that is zero or not finite.

    Source: Sun et al. 2022 (ICML).
    """
    if not 1 <= k <= len(known):
        raise Invalid(f"k must be 1 to {len(known)}, the number of known vectors")
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
    rarely many more images than dimensions.
    """

    centres: NDArray[np.float64]  #: (classes, dim)
    precision: NDArray[np.float64]  #: (dim, dim)

    @classmethod
    def fit(cls, known: Features, classes: ArrayLike | None = None) -> Self:
        """Fit to (n, dim) vectors and their (n,) classes, by default one. Raises: `Invalid` for fewer than two rows."""
        from sklearn.covariance import LedoitWolf

        rows = np.asarray(known, np.float64)
        if len(rows) < 2:
            raise Invalid("a covariance needs at least two vectors")
        names, member = np.unique(np.zeros(len(rows)) if classes is None else np.asarray(classes), return_inverse=True)
        centres = np.stack([rows[member == i].mean(0) for i in range(len(names))])
        fitted = LedoitWolf(assume_centered=True).fit(rows - centres[member])
        return cls(centres, fitted.precision_)

    def scores(self, features: Features) -> Scores:
        """Return (n,) scores of (n, dim) features."""
        found = [self._to(centre, np.asarray(features, np.float64)) for centre in self.centres]
        return np.min(found, axis=0).astype(np.float32)  # type: ignore[no-any-return]

    def _to(self, centre: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        away = rows - centre
        return np.einsum("ij,ij->i", away @ self.precision, away)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """The distribution of known unit embeddings: mean, up to 64 leading axes, and one variance for all other axes.

    Distances are Mahalanobis (Lee et al. 2018, arXiv 1807.03888) under a covariance shrunk towards a sphere (Ledoit &
    Wolf 2004), because there are rarely many more images than dimensions. It stores no image's embedding.
    """

    mean: NDArray[np.float64]  #: (dim,), of unit vectors
    axes: NDArray[np.float64]  #: (k, dim), each of length sqrt(1 - rest / variance of the axis)
    rest: float  #: variance in every other direction

    @classmethod
    def fit(cls, known: Features) -> Self:
        """Fit to (n, dim), n at least 2. Raises: `Invalid` for fewer, or a vector that is zero or not finite."""
        if len(known) < 2:
            raise Invalid("a covariance needs at least two vectors")
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
        """Return the Gaussian at the precision of `pack`, so that it judges the same before and after storage."""
        return self.unpack(self.pack())

    def distances(self, features: Iterable[NDArray[np.float32]]) -> list[float]:
        """Return each vector's distance in standard deviations of known ones, NaN for a vector without a direction.

        Vectors are computed one by one: the rounding of a matrix product depends on the batch, and a replay must give
        the same distances.
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
        """Return little-endian float32: the dimension, `rest`, `mean`, then axis by axis."""
        numbers = np.concatenate([[len(self.mean), self.rest], self.mean, self.axes.ravel()])
        return numbers.astype("<f4").tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        numbers = np.frombuffer(data, "<f4").astype(np.float64)
        rows = numbers[2:].reshape(-1, int(numbers[0]))
        return cls(rows[0], rows[1:], float(numbers[1]))


def _principal(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all variances of centred (n, dim) rows, largest first, and the axes of those above rounding."""
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
    """Return each known vector's distance by five-fold cross-validation: from a Gaussian of the other four folds.

    Distances from a Gaussian fitted to the same vectors would give a threshold too tight for new vectors. A group (a
    patient) stays in one fold, unless that puts more than half of the vectors into one fold.

    Raises: `Invalid` for fewer than four vectors.
    """
    if len(known) < 4:
        raise Invalid("at least four vectors are needed to hold some out")
    part_of = {name: i % PARTS for i, name in enumerate(dict.fromkeys(groups))}
    part = np.array([part_of[name] for name in groups])
    if 2 * np.bincount(part).max() > len(part):
        part = np.arange(len(part)) % PARTS
    found = np.empty(len(known))
    for one in np.unique(part):
        found[part == one] = Gaussian.fit(known[part != one]).distances(known[part == one])
    return found.tolist()


def unit(vectors: Features) -> Features:
    """Return the rows at length 1. Raises: `Invalid` for a row without a direction: zero or not finite."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise Invalid("a vector is zero or not finite")
    return (vectors / lengths).astype(np.float32, copy=False)  # type: ignore[no-any-return]
