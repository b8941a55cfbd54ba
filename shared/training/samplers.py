"""Batches for losses over pairs and triplets: some classes, and several images of each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalanced:
    """P x K: each batch holds `per_class` images of each of `classes` classes (all, where there are fewer).

    An epoch has as many batches as the images fill. Within a class images come in turn, each once before any comes
    again, and from different groups as far as there are any: a pair from one patient teaches little.
    """

    classes: int
    per_class: int

    def __post_init__(self) -> None:
        if self.classes < 2 or self.per_class < 1:
            raise Invalid("a class-balanced batch has an image or more of each of two classes or more")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[Rows]:
        """Rows of (n,) labels and groups, (classes * per_class,) at a time.

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
            while len(chosen) < width:  # a reshuffled cycle may name one twice in a row
                label = next(drawn)
                if label not in chosen:
                    chosen.append(label)
            yield np.array([next(turns[label]) for label in chosen for _ in range(self.per_class)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Triplets:
    """Three parts of `batch` rows: anchors, then an image of each one's class, then one of another class.

    Every image is an anchor once an epoch; the last batch has fewer where they do not divide, and is left out where it
    would have one, for which batch normalisation has no statistics. Positives and negatives
    are drawn from all images: another image of the class (itself where it is the only one), and an image of another
    class, classes being equally likely. Source: the released code of arXiv 2508.04790.
    """

    batch: int

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise Invalid("a batch has two anchors or more")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[Rows]:  # noqa: ARG002
        """Rows of (n,) labels, (3 * batch,) at a time.

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
    """The members for ever: first one of each group, then the second of each, in new orders every round."""
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
