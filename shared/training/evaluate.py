"""Evaluation: vectors of labelled images, protocols and distances to figures, each beside what knows nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.metrics.baselines import majority_figures, random_figures
from shared.metrics.bootstrap import RESAMPLES
from shared.metrics.hashing import ball, unique_codes
from shared.metrics.ranking import Metric, Side
from shared.metrics.retrieval import KS, PerQuery, joined, measure
from shared.metrics.vote import vote
from shared.training.protocols import SEEDS, Fold, Rows, Subjects, protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    protocols: Sequence[str] = ("patient",)
    ks: Sequence[int] = KS
    seeds: Sequence[int] = SEEDS
    resamples: int = RESAMPLES
    components: int | None = None  #: embeddings are reduced to so many principal components of the training part


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One protocol under one distance; the queries of all seeds one after the other."""

    protocol: str
    leaks: bool
    metric: Metric
    found: PerQuery
    random: PerQuery  #: expectations for a random order of each query's own gallery
    majority: PerQuery  #: of a retriever that shows the commonest class first
    seeds: Rows  #: (q,) which seed's fold asked
    rows: Rows  #: (q,) which of the subjects asked
    votes: Mapping[int, Rows]  #: (q,) class by the k nearest, for each k; -1 without a neighbour
    gallery: tuple[int, int]  #: smallest and largest gallery
    codes: Mapping[str, int] = field(default_factory=dict)  #: of hash codes: bits, and unique codes in the gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    subjects: Subjects
    plan: Plan
    runs: Sequence[Run]
    about: Mapping[str, Any]  #: the model and the circumstances, as JSON


def evaluate(
    subjects: Subjects,
    vectors: Mapping[Metric, NDArray[Any]],
    plan: Plan | None = None,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Each protocol of the plan under each distance.

    Args:
        vectors: (n, dim) embeddings for `cosine` and `l2`, (n, bits / 8) packed codes for `hamming`; their rows are
            the subjects'.
        about: what the report says of the model and of the run.

    Raises:
        Invalid: rows that do not belong together; a leak that a protocol's name does not announce; a projection
            without a part to fit it on.
        NotFound: there is no such protocol.
    """
    plan = plan or Plan()
    if not vectors or any(len(array) != len(subjects) for array in vectors.values()):
        raise Invalid("each image has one vector for each distance")
    runs = []
    for name in plan.protocols:
        chosen = protocol(name)
        folds = chosen.folds(subjects, plan.seeds)
        runs += [
            _run(subjects, array, metric, folds, plan, name=name, leaks=chosen.leaks)
            for metric, array in vectors.items()
        ]
    return Report(subjects=subjects, plan=plan, runs=runs, about=dict(about or {}))


def principal(vectors: NDArray[np.float32], fold: Fold, components: int) -> NDArray[np.float32]:
    """(n, components) projections onto the principal components of the fold's training part.

    Raises:
        Invalid: there is no training part, or it has too few images for so many components.
    """
    if len(fold.train) <= components or vectors.shape[1] < components:
        raise Invalid("principal components are fitted on more training images than there are components")
    middle = vectors[fold.train].mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[fold.train] - middle, full_matrices=False)
    return np.asarray((vectors - middle) @ axes[:components].T, np.float32)


def _run(
    subjects: Subjects,
    array: NDArray[Any],
    metric: Metric,
    folds: Sequence[Fold],
    plan: Plan,
    *,
    name: str,
    leaks: bool,
) -> Run:
    parts = list(_parts(subjects, array, metric, folds, plan))
    found, random, majority = (joined(list(side)) for side in zip(*(p[:3] for p in parts), strict=True))
    sizes = [len(fold.gallery) for fold in folds]
    codes = {}
    if metric == "hamming":
        unique = [unique_codes(array[fold.gallery]) for fold in folds]
        codes = {"bits": array.shape[1] * 8, "unique codes": round(float(np.mean(unique)))}
    return Run(
        protocol=name,
        leaks=leaks,
        metric=metric,
        found=found,
        random=random,
        majority=majority,
        seeds=np.concatenate([np.full(len(fold.queries), fold.seed) for fold in folds]),
        rows=np.concatenate([fold.queries for fold in folds]),
        votes={k: np.concatenate([p[3][k] for p in parts]) for k in parts[0][3]},
        gallery=(min(sizes), max(sizes)),
        codes=codes,
    )


def _parts(
    subjects: Subjects, array: NDArray[Any], metric: Metric, folds: Sequence[Fold], plan: Plan
) -> Iterator[tuple[PerQuery, PerQuery, PerQuery, dict[int, Rows]]]:
    for fold in folds:
        used = array
        if plan.components is not None and metric != "hamming":
            used = principal(array, fold, plan.components)
        queries, gallery = (_side(subjects, used, fold.keys, rows) for rows in (fold.queries, fold.gallery))
        found = measure(queries, gallery, metric=metric, ks=plan.ks, grades=subjects.grades)
        if metric == "hamming":
            radii = range(0, array.shape[1] * 2 + 1, 2)  # up to a quarter of the bits
            found = replace(found, values=found.values | ball(queries, gallery, radii).values)
        yield (
            found,
            random_figures(queries, gallery, ks=plan.ks, grades=subjects.grades),
            majority_figures(queries, gallery, ks=plan.ks, grades=subjects.grades),
            _votes(found, gallery.labels, len(subjects.classes), plan.ks),
        )


def _side(subjects: Subjects, array: NDArray[Any], keys: Rows | None, rows: Rows) -> Side:
    return Side(
        vectors=array[rows],
        labels=subjects.labels[rows],
        keys=None if keys is None else keys[rows],
        clusters=subjects.groups[rows],
    )


def _votes(found: PerQuery, labels: Rows, classes: int, ks: Sequence[int]) -> dict[int, Rows]:
    near = np.where(found.neighbours >= 0, labels[found.neighbours], -1)
    return {k: vote(near[:, :k], classes) for k in ks}
