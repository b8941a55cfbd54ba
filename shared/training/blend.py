"""What the shipped model is trained on: sets that may be given on, and pictures drawn here, as one collection."""

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

TEXTURE = "texture"  #: each picture of this class is a class of its own
DRAWN = ("phantoms", "sketches", "textures")  #: sources of what no camera saw
_PHANTOM = (256, 200)  #: rows, cols


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """MedNIST (CC BY-SA 4.0), a part of PneumoniaMNIST (CC BY 4.0), and phantoms, sketches and textures drawn here."""

    side: int  #: stored side
    chests: int = 1500  #: of PneumoniaMNIST: 28 x 28 images, so that they do not outweigh the others
    exams: int = 150  #: synthetic studies, of eight or four images
    sketches: int = 1800
    textures: int = 4000
    drawn: bool = True  #: with the phantoms, sketches and textures
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
    """`count` synthetic exams. A class is density and finding; every seventh woman is of the validation part."""
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
    """Pictures drawn here, all to train on; each is of nobody."""
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
    """All of them in their order; classes and groups stay apart, and a class says where it is from."""
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
    """An epoch is so many batches of the images, drawn without repetition: checkpoints come by the minute."""

    batch: int
    batches_per_epoch: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.batches_per_epoch < 1:
            raise Invalid("an epoch has a batch or more, and a batch an image or more")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.int64]]:  # noqa: ARG002
        order = np.random.default_rng(seed).permutation(len(labels))[: self.batch * self.batches_per_epoch]
        yield from np.split(order, range(self.batch, len(order), self.batch))
