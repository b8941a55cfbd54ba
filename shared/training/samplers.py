"""Samplers for losses over pairs and triplets: batches of some classes, with several images of each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalanced:
    """P x K sampling: each batch has `per_class` images of each of `classes` classes (or of all, if fewer).

    An epoch has as many batches as the images fill. Within a class, each image is drawn once before any is drawn
    again, and consecutive images are from different groups if possible: a pair from one patient teaches little.
    """

    classes: int
    per_class: int

    def __post_init__(self) -> None:
        if self.classes < 2 or self.per_class < 1:
            raise Invalid("a class-balanced batch needs at least one image of each of at least two classes")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[Rows]:
        """Yield batches of (classes * per_class,) row indices of (n,) labels and groups.

        Raises: `Invalid` for a single class: a contrastive batch needs two.
        """
        rng = np.random.default_rng(seed)
        present = np.unique(labels)
        if len(present) < 2:
            raise Invalid("a class-balanced batch needs images of at least two classes")
        turns = {int(label): _turns(np.flatnonzero(labels == label), groups, rng) for label in present}
        drawn = _cycle(present, rng)
        width = min(self.classes, len(present))
        for _ in range(max(len(labels) // (width * self.per_class), 1)):
            chosen: list[int] = []
            while len(chosen) < width:  # a reshuffled cycle may repeat a class
                label = next(drawn)
                if label not in chosen:
                    chosen.append(label)
            yield np.array([next(turns[label]) for label in chosen for _ in range(self.per_class)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Triplets:
    """Batches of three parts of `batch` rows: anchors, then positives, then negatives.

    Every image is an anchor once per epoch. The last batch may be smaller; a last batch of one anchor is dropped,
    because batch normalisation needs two. A positive is another image of the anchor's class (the anchor itself if it
    is the only one), a negative an image of another class, with all classes equally likely; both are drawn from all
    images. Source: the released code of arXiv 2508.04790.
    """

    batch: int

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise Invalid("a batch needs at least two anchors")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[Rows]:  # noqa: ARG002
        """Yield batches of (3 * batch,) row indices of (n,) labels.

        Raises: `Invalid` for a single class: a triplet needs two.
        """
        rng = np.random.default_rng(seed)
        members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
        if len(members) < 2:
            raise Invalid("a triplet needs images of at least two classes")
        order = rng.permutation(len(labels))
        for anchors in np.split(order, range(self.batch, len(order), self.batch)):
            if len(anchors) == 1:
                continue
            positives, negatives = [], []
            for anchor in anchors:
                own = int(labels[anchor])
                alike = members[own][members[own] != anchor]
                positives.append(rng.choice(alike) if len(alike) else anchor)
                negatives.append(rng.choice(members[rng.choice([label for label in members if label != own])]))
            yield np.concatenate([anchors, positives, negatives])


def _turns(members: Rows, groups: NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    """Yield the members endlessly: one of each group, then the second of each, in a new random order every round."""
    while True:
        order = rng.permutation(members)
        seen: Counter[int] = Counter()
        rank = []
        for group in groups[order]:
            rank.append(seen[group])
            seen[group] += 1
        yield from order[np.argsort(rank, kind="stable")]


def _cycle(labels: NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(label) for label in rng.permutation(labels))
