"""Evaluation: retrieval figures of labelled vectors by protocol and distance, each beside uninformed baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.encoder.hashing import principal
from shared.errors import Invalid
from shared.metrics.baselines import majority_figures, random_figures
from shared.metrics.bootstrap import RESAMPLES
from shared.metrics.hashing import ball, unique_codes
from shared.metrics.ranking import Metric, Side
from shared.metrics.retrieval import KS, PerQuery, joined, measure
from shared.metrics.vote import votes
from shared.training.protocols import SEEDS, Fold, Rows, Subjects, protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The protocols, list lengths, seeds and resamples of an evaluation."""

    protocols: Sequence[str] = ("patient",)
    ks: Sequence[int] = KS
    seeds: Sequence[int] = SEEDS
    resamples: int = RESAMPLES
    components: int | None = None  #: reduce embeddings to this many principal components of the training part


class Space(NamedTuple):
    metric: Metric
    vectors: NDArray[Any]  #: (n, dim) embeddings for cosine and l2, (n, bits / 8) packed codes for hamming


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The results of one protocol in one space, with the queries of all seeds concatenated."""

    protocol: str
    leaks: bool
    space: str
    found: PerQuery
    random: PerQuery  #: expectations for a random order of each query's own gallery
    majority: PerQuery  #: figures of a retriever that shows the most common class first
    seeds: Rows  #: (q,) the seed of each query's fold
    rows: Rows  #: (q,) the subject of each query
    votes: Mapping[int, Rows]  #: (q,) class by a vote of the k nearest, for each k; -1 without a neighbour
    gallery: tuple[int, int]  #: sizes of the smallest and largest gallery
    codes: Mapping[str, int] = field(default_factory=dict)  #: of hash codes: bits, and unique codes in the gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    subjects: Subjects
    plan: Plan
    runs: Sequence[Run]
    about: Mapping[str, Any]  #: facts about the model and the run, as JSON


def evaluate(
    subjects: Subjects,
    spaces: Mapping[str, Space],
    plan: Plan | None = None,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Measure each protocol of the plan in each space (a model's vectors with a distance, under a name).

    Args:
        about: facts about the model and the run, for the report.

    Raises:
        Invalid: images and vectors differ in number; a leak that the protocol's name does not announce; a projection
            without a part to fit it on; a protocol in which no query has a relevant item.
        NotFound: there is no such protocol.
    """
    plan = plan or Plan()
    if not spaces or any(len(space.vectors) != len(subjects) for space in spaces.values()):
        raise Invalid("each image needs one vector in each space")
    runs: list[Run] = []
    for name in plan.protocols:
        chosen = protocol(name)
        folds = chosen.folds(subjects, plan.seeds)
        bare = [_sides(subjects, np.zeros((len(subjects), 1)), fold) for fold in folds]
        random, majority = (
            joined([baseline(*sides, ks=plan.ks, grades=subjects.grades) for sides in bare])
            for baseline in (random_figures, majority_figures)
        )
        if random.unanswerable == len(random):
            raise Invalid(f"{name}: no query has an image of its class in its gallery")
        for title, space in spaces.items():
            found, voted = _measured(subjects, space, folds, plan)
            sizes = [len(fold.gallery) for fold in folds]
            runs.append(
                Run(
                    protocol=name,
                    leaks=chosen.leaks,
                    space=title,
                    found=found,
                    random=random,
                    majority=majority,
                    seeds=np.concatenate([np.full(len(fold.queries), fold.seed) for fold in folds]),
                    rows=np.concatenate([fold.queries for fold in folds]),
                    votes=voted,
                    gallery=(min(sizes), max(sizes)),
                    codes=_codes(space, folds),
                )
            )
    return Report(subjects=subjects, plan=plan, runs=runs, about=dict(about or {}))


def projected(vectors: NDArray[np.float32], fit: NDArray[Any], components: int) -> NDArray[np.float32]:
    """Return (n, components) projections onto the principal components of the rows `fit`.

    Raises:
        Invalid: `fit` has no images or too few for this many components, or they vary in fewer directions.
    """
    fitted = vectors[fit].astype(np.float64)
    if not len(fitted):
        raise Invalid("this protocol has no training part to fit components to: use patient or split")
    if len(fitted) <= components or vectors.shape[1] < components:
        raise Invalid("components must be fewer than the training images, and at most the length of a vector")
    middle = fitted.mean(axis=0)
    return np.asarray((vectors - middle) @ principal(fitted - middle, components).T, np.float32)


def _measured(subjects: Subjects, space: Space, folds: Sequence[Fold], plan: Plan) -> tuple[PerQuery, dict[int, Rows]]:
    """Return the figures of all folds' queries, and their classes by vote for each k."""
    parts, voted = [], []
    for fold in folds:
        vectors = space.vectors
        if plan.components is not None and space.metric != "hamming":
            vectors = projected(vectors, fold.train, plan.components)
        queries, gallery = _sides(subjects, vectors, fold)
        found = measure(queries, gallery, metric=space.metric, ks=plan.ks, grades=subjects.grades)
        if space.metric == "hamming":
            radii = range(0, vectors.shape[1] * 2 + 1, 2)  # up to a quarter of the bits
            found = replace(found, values=found.values | ball(queries, gallery, radii).values)
        parts.append(found)
        voted.append(votes(queries, gallery, metric=space.metric, ks=plan.ks))
    return joined(parts), {k: np.concatenate([of_fold[k] for of_fold in voted]) for k in plan.ks}


def _sides(subjects: Subjects, vectors: NDArray[Any], fold: Fold) -> tuple[Side, Side]:
    def side(rows: Rows) -> Side:
        return Side(
            vectors=vectors[rows],
            labels=subjects.labels[rows],
            keys=None if fold.keys is None else fold.keys[rows],
            clusters=subjects.groups[rows],
        )

    return side(fold.queries), side(fold.gallery)


def _codes(space: Space, folds: Sequence[Fold]) -> dict[str, int]:
    if space.metric != "hamming":
        return {}
    unique = [unique_codes(space.vectors[fold.gallery]) for fold in folds]
    return {"bits": space.vectors.shape[1] * 8, "unique codes": round(float(np.mean(unique)))}
