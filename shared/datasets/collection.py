"""Images in memory with their labels, groups and split: the input of training and evaluation."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`n` grey images; row i of every array belongs to image i."""

    name: str
    images: NDArray[np.uint8]  #: (n, side, side), bright means dense
    labels: NDArray[np.int64]  #: (n,), index into `classes`
    classes: tuple[str, ...]
    groups: NDArray[np.int64]  #: (n,), the patient or the block of neighbouring slices; no split divides a group
    split: NDArray[np.str_]  #: (n,) of `Split`
    sources: NDArray[np.str_]  #: (n,), the data set each image came from
    licence: str
    views: NDArray[np.str_] | None = None  #: (n,), CC, MLO ...; empty if one image's view is unknown, None if all are
    note: str = ""  #: what was left out when the set was read, for the reader

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """The SHA-256 of images, labels, classes, groups and split, in their order."""
        told = hashlib.sha256(repr((self.classes, self.images.shape)).encode())
        for rows in (self.images, self.labels, self.groups, self.split.astype("U5")):
            told.update(np.ascontiguousarray(rows).tobytes())
        return told.hexdigest()

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Return the chosen rows, in the order of `chosen`."""
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            groups=self.groups[chosen],
            split=self.split[chosen],
            sources=self.sources[chosen],
            views=None if self.views is None else self.views[chosen],
        )

    def limited(self, most: int | None) -> Self:
        """Return the first `most` images of the training part, and all images of the other parts."""
        if most is None:
            return self
        spare = np.flatnonzero(self.split == "train")[most:]
        return self.where(~np.isin(np.arange(len(self)), spare))

    def part(self, *splits: Split) -> Self:
        return self.where(np.isin(self.split, splits))
