"""The training data of the shipped model: sets that may be redistributed, and generated pictures, as one collection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets import development
from shared.datasets.collection import Collection
from shared.datasets.phantom import render
from shared.datasets.sketches import sketches
from shared.datasets.textures import Grey, textures
from shared.datasets.women import exams
from shared.errors import Invalid

TEXTURE = "texture"  #: every picture of this class counts as its own class
DRAWN = ("phantoms", "sketches", "textures")  #: sources of generated pictures
_PHANTOM = (256, 200)  #: rows, cols


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """MedNIST (CC BY-SA 4.0), a part of PneumoniaMNIST (CC BY 4.0), and generated phantoms, sketches and textures."""

    side: int  #: stored side
    chests: int = 1500  #: number of PneumoniaMNIST images; limited, because they have only 28 x 28 pixels
    exams: int = 150  #: number of synthetic exams, of four images each
    sketches: int = 1800
    textures: int = 4000
    drawn: bool = True  #: whether phantoms, sketches and textures are included
    seed: int = 0

    def load(self, root: Path) -> Collection:
        chests = development.load("cxr", root, self.side)
        fit = np.flatnonzero(chests.split == "train")
        spare = np.random.default_rng(self.seed).permutation(fit)[self.chests :]
        made = [
            development.load("radiology_mednist", root, self.side),
            chests.where(np.setdiff1d(np.arange(len(chests)), spare)),
        ]
        if self.drawn:
            made += [
                mammograms(self.exams, self.side, self.seed),
                _drawn("sketches", *sketches(self.sketches, self.side, self.seed)),
                _drawn("textures", textures(self.textures, self.side, self.seed), [TEXTURE] * self.textures),
            ]
        return joined("blend", made)


def mammograms(count: int, side: int, seed: int) -> Collection:
    """Return `count` synthetic exams. A class is density and lesion; every seventh woman is in the validation part."""
    images, names, women = [], [], []
    for exam in islice(exams(seed), count):
        for breast, finding in zip(exam.breasts, exam.findings, strict=True):
            for view in ("CC", "MLO"):
                stored = render(breast, view, *_PHANTOM)
                images.append(development.square((stored >> 4).astype(np.uint8), side))
                names.append(f"{breast.density} {finding.lesion}")
                women.append(exam.woman)
    classes, labels = np.unique(names, return_inverse=True)
    groups = np.array(women, np.int64)
    return Collection(
        name="phantoms",
        images=np.stack(images),
        labels=labels.astype(np.int64),
        classes=tuple(map(str, classes)),
        groups=groups,
        split=np.where(groups % 7 == 0, "val", "train"),
        sources=np.full(len(images), "phantoms"),
        licence="Apache-2.0",
    )


def _drawn(name: str, images: Grey, names: Sequence[str]) -> Collection:
    """Return generated pictures as a collection, all in the train part and each in its own group."""
    classes, labels = np.unique(names, return_inverse=True)
    return Collection(
        name=name,
        images=images,
        labels=labels.astype(np.int64),
        classes=tuple(map(str, classes)),
        groups=np.arange(len(images), dtype=np.int64),
        split=np.full(len(images), "train"),
        sources=np.full(len(images), name),
        licence="Apache-2.0",
    )


def joined(name: str, made: list[Collection]) -> Collection:
    """Concatenate the collections; classes and groups stay distinct, and class names are prefixed with their set."""
    groups: list[NDArray[np.int64]] = []
    classes: list[str] = []
    labels: list[NDArray[np.int64]] = []
    for one in made:
        groups.append(one.groups + (groups[-1].max() + 1 if groups else 0))
        labels.append(one.labels + len(classes))
        classes += [TEXTURE if one.classes == (TEXTURE,) else f"{one.name}/{own}" for own in one.classes]
    return replace(
        made[0],
        name=name,
        images=np.concatenate([one.images for one in made]),
        labels=np.concatenate(labels),
        classes=tuple(classes),
        groups=np.concatenate(groups),
        split=np.concatenate([one.split for one in made]),
        sources=np.concatenate([one.sources for one in made]),
        licence=" and ".join(dict.fromkeys(one.licence for one in made)),
        views=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """An epoch of a fixed number of batches, drawn without repetition, so that a checkpoint is saved each minute."""

    batch: int
    batches_per_epoch: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.batches_per_epoch < 1:
            raise Invalid("an epoch needs at least one batch, and a batch at least one image")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.int64]]:  # noqa: ARG002
        order = np.random.default_rng(seed).permutation(len(labels))[: self.batch * self.batches_per_epoch]
        yield from np.split(order, range(self.batch, len(order), self.batch))
