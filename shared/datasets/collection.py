"""Images held in memory with what is known of them: what trainings and evaluations read."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`n` grey images; rows of all arrays belong together."""

    name: str
    images: NDArray[np.uint8]  #: (n, side, side), bright means dense
    labels: NDArray[np.int64]  #: (n,), index into `classes`
    classes: tuple[str, ...]
    groups: NDArray[np.int64]  #: (n,), the patient, or the block of neighbouring slices: never on two sides of a split
    split: NDArray[np.str_]  #: (n,) of `Split`
    sources: NDArray[np.str_]  #: (n,), the data set each image came from
    licence: str
    views: NDArray[np.str_] | None = None  #: (n,), CC, MLO ...; empty where an image's is unknown, None where all are

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """The same for the same images, in the same order, with the same classes, groups and split."""
        told = hashlib.sha256(repr((self.classes, self.images.shape)).encode())
        for rows in (self.images, self.labels, self.groups, self.split.astype("U5")):
            told.update(np.ascontiguousarray(rows).tobytes())
        return told.hexdigest()

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """The chosen rows, in their order."""
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
        """The first so many images of the training part, and all of the others."""
        if most is None:
            return self
        spare = np.flatnonzero(self.split == "train")[most:]
        return self.where(~np.isin(np.arange(len(self)), spare))

    def part(self, *splits: Split) -> Self:
        return self.where(np.isin(self.split, splits))
