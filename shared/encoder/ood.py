"""Out of distribution: thresholds calibrated on scores of known images, and two scores on features.

Higher is stranger. The reconstruction error is the model's own (`Outputs.errors`); the distances here need only its
embeddings, and see what a decoder misses (Denouden et al. 2018, arXiv 1812.02765).
"""

import hashlib
from collections.abc import Iterable, Mapping
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
_ROWS = 1024  #: of a block of distances, to bound memory


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


def unit(vectors: Features) -> Features:
    """Rows of length 1. Raises `Invalid` for one that has no direction: zero, or no numbers."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise Invalid("a vector has no direction")
    return (vectors / lengths).astype(np.float32, copy=False)  # type: ignore[no-any-return]
