"""Intervals and comparisons whose unit is the patient, not the image.

Images of one patient are no independent observations: intervals over images are too narrow. Everything here draws,
or flips, whole patients with all their queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2000
_BLOCK = 1 << 21  # drawn patients held at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the percentile bootstrap's interval about it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same queries: `difference` is the first minus the second."""

    difference: Interval
    p: float  #: two-sided, sign-flip permutation over patients
    effect: float  #: mean over patients of their mean difference, in standard deviations of it


def interval(
    values: Floats,
    clusters: Ints,
    *,
    labels: Ints | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of (q,) values with its interval over patients.

    NaN values (queries without a relevant item) are left out. With `labels`, the mean is the macro mean over
    classes; a draw that lacks a class is the mean of the others.

    Raises:
        Invalid: no value, arrays of different lengths, or fewer than 1,000 resamples.
    """
    sums, counts = _by_cluster(values, clusters, labels)
    draws = _resample(sums, counts, resamples, seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    mean = _mean(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True))[0]
    return Interval(float(mean), float(low), float(high))


def compare(
    first: Floats,
    second: Floats,
    clusters: Ints,
    *,
    labels: Ints | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Two systems' (q,) values on the same queries: paired interval, permutation test and effect size.

    The test flips the sign of all differences of a patient at once: under the hypothesis that the systems are
    exchangeable for each patient, the p-value is exact up to the number of flips, and never 0. It tests the mean
    that the interval is of: with `labels` the macro mean.

    Raises:
        Invalid: as `interval`, or a query that only one of the two could answer.
    """
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        raise Invalid("the two systems answered different queries")
    difference = first - second
    found = interval(difference, clusters, labels=labels, resamples=resamples, seed=seed)
    sums, counts = _by_cluster(difference, clusters, labels)
    flipped = _flips(sums, counts.sum(axis=0), resamples, seed)
    # the slack keeps flips that are the observed arrangement itself from missing it by rounding
    p = (1 + int((np.abs(flipped) >= abs(found.mean) - 1e-12).sum())) / (1 + resamples)
    return Comparison(found, p, paired_effect(difference, clusters))


def paired_effect(differences: Floats, clusters: Ints) -> float:
    """Cohen's d_z over patients: the mean of their mean differences over the standard deviation of these.

    0 where nothing differs, infinite where all patients differ by the same.
    """
    sums, counts = _by_cluster(differences, clusters, None)
    means = sums[:, 0] / counts[:, 0]
    mean, deviation = float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0
    if deviation < 1e-12:
        return float(np.copysign(np.inf, mean)) if abs(mean) > 1e-12 else 0.0
    return mean / deviation


def cohens_d(means: tuple[float, float], deviations: tuple[float, float]) -> float:
    """Difference of two independent groups of equal size over their pooled standard deviation."""
    return (means[0] - means[1]) / float(np.sqrt((deviations[0] ** 2 + deviations[1] ** 2) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order. Source: Holm 1979."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def _by_cluster(values: Floats, clusters: Ints, labels: Ints | None) -> tuple[Floats, Floats]:
    """(patients, classes) sums and counts of the known values; one class where there are no labels."""
    if not len(values) == len(clusters) == (len(values) if labels is None else len(labels)):
        raise Invalid("values, clusters and labels belong together")
    known = ~np.isnan(values)
    if not known.any():
        raise Invalid("there is no value to resample")
    _, cluster = np.unique(clusters[known], return_inverse=True)
    kind = np.zeros(int(known.sum()), np.int64) if labels is None else np.unique(labels[known], return_inverse=True)[1]
    width = int(kind.max()) + 1
    cell = cluster * width + kind
    size = (int(cluster.max()) + 1) * width
    sums = np.bincount(cell, weights=values[known], minlength=size).reshape(-1, width)
    counts = np.bincount(cell, minlength=size).reshape(-1, width)
    return np.asarray(sums, np.float64), np.asarray(counts, np.float64)


def _resample(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    if resamples < 1000:
        raise Invalid("an interval takes at least 1,000 resamples")
    patients = len(sums)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // patients)
    found = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)
        found.append(_mean(times @ sums, times @ counts))
    return np.concatenate(found)


def _flips(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(sums))
    found = []
    for start in range(0, resamples, step):
        signs = rng.integers(2, size=(min(step, resamples - start), len(sums))) * 2.0 - 1
        found.append(_mean(signs @ sums, np.broadcast_to(counts, (len(signs), len(counts)))))
    return np.concatenate(found)


def _mean(sums: Floats, counts: Floats) -> Floats:
    """(rows,) means over the classes that have a count."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return means.sum(axis=1) / (counts > 0).sum(axis=1)  # type: ignore[no-any-return]
