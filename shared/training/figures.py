"""A report's runs as rows: every figure with its interval, beside uninformed baselines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics import vote
from shared.metrics.baselines import lift
from shared.metrics.bootstrap import Interval, compare, holm, interval, intervals
from shared.training.evaluate import Report, Run

ALL = "all"
COMPARED = ("P@10", "nDCG@10", "mAP")
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure with its interval over patients, beside a random list and the majority retriever."""

    protocol: str
    leaks: bool
    space: str
    part: str  #: all, or column=value
    name: str
    micro: Interval
    macro: Interval
    random_micro: float
    random_macro: float
    majority_micro: float
    majority_macro: float
    lift_micro: float  #: ratio to the random list
    lift_macro: float
    sd_micro: float  #: standard deviation over seeds; NaN for a single seed
    sd_macro: float
    queries: int
    unanswerable: int  #: queries without a relevant item, excluded from all means
    short: int  #: lists shorter than k
    patients: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The quality of the vote of the k nearest."""

    protocol: str
    leaks: bool
    space: str
    k: int
    balanced_accuracy: Interval
    knows_nothing: float  #: balanced accuracy of a constant prediction
    macro_f1: float
    quadratic_kappa: float
    balanced_accuracy_456: float  #: BI-RADS {1, 2, 3} against {4, 5, 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A model's figure minus another model's on the same queries, compared by patient."""

    protocol: str
    leaks: bool
    space: str
    name: str
    mean: str  #: micro, or macro
    difference: Interval
    p: float  #: two-sided, sign flips over patients, Holm-adjusted for all differences of the report
    effect: float  #: d_z over patients


def figures(report: Report) -> list[Figure]:
    """Return all figures of all runs, over all queries and over the queries of each value of each column."""
    return [
        figure
        for run in report.runs
        for part, chosen in _parts_of(report, run)
        for figure in _figures(run, part, chosen, report.plan.resamples)
    ]


def votes(report: Report) -> list[Vote]:
    found = []
    for run in report.runs:
        truth = report.subjects.labels[run.rows]
        for k, predicted in run.votes.items():
            known = (predicted >= 0) & (run.found.relevant > 0)
            right = (predicted == truth)[known].astype(np.float64)
            clusters = run.found.clusters[known]
            numbers = vote.figures(truth[known], predicted[known], len(report.subjects.classes), report.subjects.grades)
            found.append(
                Vote(
                    protocol=run.protocol,
                    leaks=run.leaks,
                    space=run.space,
                    k=k,
                    balanced_accuracy=interval(right, clusters, labels=truth[known], resamples=report.plan.resamples),
                    knows_nothing=1 / len(np.unique(truth[known])),
                    macro_f1=numbers["macro_f1"],
                    quadratic_kappa=numbers.get("quadratic_kappa", NAN),
                    balanced_accuracy_456=numbers.get("balanced_accuracy_456", NAN),
                )
            )
    return found


def differences(report: Report, other: Report) -> list[Difference]:
    """Return the first report's figures minus the other's, in every protocol and space that both have.

    Raises:
        Invalid: the reports are not of the same images in the same order, or have no protocol and space in common.
    """
    mine, theirs = report.subjects, other.subjects
    if not (np.array_equal(mine.labels, theirs.labels) and np.array_equal(mine.groups, theirs.groups)):
        raise Invalid("the two models saw different images")
    others = {(run.protocol, run.space): run for run in other.runs}
    pairs = [(run, others[run.protocol, run.space]) for run in report.runs if (run.protocol, run.space) in others]
    made = [
        (run, name, mean, compare(
            run.found.values[name], against.found.values[name], run.found.clusters,
            labels=labels, resamples=report.plan.resamples,
        ))
        for run, against in pairs
        for name in COMPARED if name in run.found.values
        for mean, labels in (("micro", None), ("macro", run.found.labels))
    ]  # fmt: skip
    if not made:
        raise Invalid("the two models have no distance in common")
    adjusted = holm([found.p for *_, found in made])
    return [
        Difference(
            protocol=run.protocol, leaks=run.leaks, space=run.space, name=name, mean=mean,
            difference=found.difference, p=p, effect=found.effect,
        )
        for (run, name, mean, found), p in zip(made, adjusted, strict=True)
    ]  # fmt: skip


def per_class(report: Report) -> list[dict[str, Any]]:
    """Return a row for each class of each run: number of queries, figures, and figures of a random list."""
    rows = []
    for run in report.runs:
        names = [name for name in run.random.values if name == "mAP" or name.startswith(("P@", "nDCG@"))]
        for label, title in enumerate(report.subjects.classes):
            asked = run.found.labels == label
            if asked.any():
                row = {"protocol": run.protocol, "space": run.space, "class": title, "queries": int(asked.sum())}
                row |= {name: run.found.per_class(name).get(label, NAN) for name in names}
                rows.append(row | {f"random {name}": run.random.per_class(name).get(label, NAN) for name in names})
    return rows


def _parts_of(report: Report, run: Run) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield ALL, np.ones(len(run.rows), np.bool_)
    for column, values in report.subjects.columns.items():
        kinds = np.unique(values)
        for value in kinds if len(kinds) > 1 else ():
            yield f"{column}={value or 'unknown'}", values[run.rows] == value


def _figures(run: Run, part: str, chosen: NDArray[np.bool_], resamples: int) -> Iterator[Figure]:
    found, random, majority = (side.where(chosen) for side in (run.found, run.random, run.majority))
    if found.unanswerable == len(found):
        return
    micro = intervals(found.values, found.clusters, resamples=resamples)
    macro = intervals(found.values, found.clusters, labels=found.labels, resamples=resamples)
    by_seed = [found.where(run.seeds[chosen] == seed) for seed in np.unique(run.seeds)]
    for name in found.values:
        known = name in random.values
        chance = (random.micro(name), random.macro(name)) if known else (NAN, NAN)
        k = int(name.rpartition("@")[2]) if name.rpartition("@")[2].isdigit() else 0
        yield Figure(
            protocol=run.protocol,
            leaks=run.leaks,
            space=run.space,
            part=part,
            name=name,
            micro=micro[name],
            macro=macro[name],
            random_micro=chance[0],
            random_macro=chance[1],
            majority_micro=majority.micro(name) if known else NAN,
            majority_macro=majority.macro(name) if known else NAN,
            lift_micro=lift(micro[name].mean, chance[0]),
            lift_macro=lift(macro[name].mean, chance[1]),
            sd_micro=_deviation([side.micro(name) for side in by_seed]),
            sd_macro=_deviation([side.macro(name) for side in by_seed]),
            queries=len(found),
            unanswerable=found.unanswerable,
            short=int((found.length < k).sum()),
            patients=len(np.unique(found.clusters)),
            seeds=len(by_seed),
        )


def _deviation(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else NAN
