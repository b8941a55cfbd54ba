"""Intervals and comparisons with the patient as the unit, not the image.

Images of one patient are not independent observations: intervals over images are too narrow. All functions here draw,
or flip, whole patients with all their queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2000
_BLOCK = 1 << 21  # drawn patients in memory at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its percentile bootstrap interval."""

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
    effect: float  #: mean of the patients' mean differences, in standard deviations of these


def interval(
    values: Floats,
    clusters: Ints,
    *,
    labels: Ints | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of (q,) values with its interval over patients: `intervals` for one figure."""
    return intervals({"": values}, clusters, labels=labels, resamples=resamples, seed=seed, level=level)[""]


def intervals(
    values: Mapping[str, Floats],
    clusters: Ints,
    *,
    labels: Ints | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the means of several (q,) figures of the same queries, with their intervals from the same draws.

    NaN values (queries without a relevant item) are left out. With `labels`, the mean is the macro mean over
    classes; a draw without a class averages the other classes.

    Raises:
        Invalid: no value, arrays of different lengths, figures with NaN for different queries, or fewer than 1,000
            resamples.
    """
    stacked = np.stack(list(values.values()), axis=1)
    sums, counts = _by_cluster(stacked, clusters, labels)
    draws = _resample(sums, counts, resamples, seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    mean = _mean(sums.sum(axis=0), counts.sum(axis=0))
    return {name: Interval(float(mean[i]), float(low[i]), float(high[i])) for i, name in enumerate(values)}


def compare(
    first: Floats,
    second: Floats,
    clusters: Ints,
    *,
    labels: Ints | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two systems' (q,) values on the same queries: paired interval, permutation test and effect size.

    The test flips the sign of all differences of a patient at once: under the hypothesis that the systems are
    exchangeable for each patient, the p-value is exact up to the number of flips, and never 0. It tests the mean of
    the interval: with `labels` the macro mean.

    Raises:
        Invalid: as `interval`, or only one of the two values of a query is NaN.
    """
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        raise Invalid("the two systems answered different queries")
    difference = first - second
    found = interval(difference, clusters, labels=labels, resamples=resamples, seed=seed)
    sums, counts = _by_cluster(difference[:, None], clusters, labels)
    flipped = _flips(sums, counts, resamples, seed)
    # the slack counts flips that equal the observed arrangement up to rounding
    p = (1 + int((np.abs(flipped) >= abs(found.mean) - 1e-12).sum())) / (1 + resamples)
    return Comparison(found, p, paired_effect(difference, clusters))


def paired_effect(differences: Floats, clusters: Ints) -> float:
    """Return Cohen's d_z over patients: the mean of their mean differences, divided by its standard deviation.

    0 if nothing differs, infinite if all patients differ by the same amount.
    """
    sums, counts = _by_cluster(differences[:, None], clusters, None)
    means = (sums / counts).ravel()
    mean, deviation = float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0
    if deviation < 1e-12:
        return float(np.copysign(np.inf, mean)) if abs(mean) > 1e-12 else 0.0
    return mean / deviation


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for multiple tests, in the same order. Source: Holm 1979."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def _by_cluster(values: Floats, clusters: Ints, labels: Ints | None) -> tuple[Floats, Floats]:
    """Return (patients, figures, classes) sums of (q, figures) values, and (patients, 1, classes) query counts."""
    if not len(values) == len(clusters) == (len(values) if labels is None else len(labels)):
        raise Invalid("values, clusters and labels must have the same length")
    unknown = np.isnan(values)
    if (unknown.any(axis=1) != unknown.all(axis=1)).any():
        raise Invalid("all figures must have values for the same queries")
    known = ~unknown[:, 0]
    if not known.any():
        raise Invalid("there is no value to resample")
    _, cluster = np.unique(clusters[known], return_inverse=True)
    kind = np.zeros(int(known.sum()), np.int64) if labels is None else np.unique(labels[known], return_inverse=True)[1]
    patients, classes = int(cluster.max()) + 1, int(kind.max()) + 1
    cell = cluster * classes + kind

    def added(weights: Floats) -> Floats:
        sums = np.bincount(cell, weights=weights, minlength=patients * classes)
        return np.asarray(sums, np.float64).reshape(patients, classes)

    sums = np.stack([added(figure) for figure in values[known].T], axis=1)
    return sums, added(np.ones(len(cell)))[:, None]


def _resample(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, figures) means over patients drawn with replacement."""
    if resamples < 1000:
        raise Invalid("an interval needs at least 1,000 resamples")
    patients = len(sums)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // patients)
    found = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)
        found.append(_mean(_weighed(times, sums), _weighed(times, counts)))
    return np.concatenate(found)


def _flips(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, figures) means after random sign flips of whole patients."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(sums))
    found = []
    for start in range(0, resamples, step):
        signs = rng.choice([-1.0, 1.0], size=(min(step, resamples - start), len(sums)))
        found.append(_mean(_weighed(signs, sums), counts.sum(axis=0)))
    return np.concatenate(found)


def _weighed(weights: Floats, values: Floats) -> Floats:
    """Return (rows, figures, classes): (rows, patients) weights times (patients, figures, classes) values, summed."""
    return np.asarray(weights @ values.reshape(len(values), -1)).reshape(len(weights), *values.shape[1:])


def _mean(sums: Floats, counts: Floats) -> Floats:
    """Return (..., figures) means over those classes, the last axis, that have a count."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return np.asarray(means.sum(axis=-1) / (counts > 0).sum(axis=-1))
