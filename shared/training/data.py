"""Batches on the device from a collection, and the embeddings of a collection from a model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.datasets import development
from shared.datasets.collection import Collection
from shared.errors import Invalid
from shared.imaging.recipe import Pad, Recipe
from shared.training.experiment import Batch, Experiment, Rows

_ENCODE = 64  #: images in a batch of an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A development set by name, stored at `side` pixels (more than the input side, to keep crops sharp)."""

    name: str
    side: int
    limit: int | None = None  #: train only on this many images

    pad: ClassVar[Pad] = "square"

    def load(self, root: Path) -> Collection:
        return development.load(self.name, root, recipe=Recipe(size=self.side, pad=self.pad)).limited(self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Squashed(Named):
    """A development set whose images are stretched to squares, as in arXiv 2411.01473 and 2508.04790."""

    pad: ClassVar[Pad] = "squash"


def parts(data: Collection) -> tuple[Collection, Collection]:
    """Return the training and the validation part.

    Raises: `Invalid` if one of them is empty, or a group has images in both.
    """
    fit, held = data.part("train"), data.part("val")
    if not len(fit) or not len(held):
        raise Invalid("a training needs images in the parts train and val")
    if np.intersect1d(fit.groups, held.groups).size:
        raise Invalid("a patient has images in train and val, so validation would be biased")
    return fit, held


def batches(experiment: Experiment, data: Collection, plan: Iterable[Rows], device: torch.device) -> Iterator[Batch]:
    """Yield the batches of the plan; images stay uint8 until their batch is built."""
    images = torch.from_numpy(data.images)
    labels, groups = torch.from_numpy(data.labels), torch.from_numpy(data.groups)
    for chosen in plan:
        rows = torch.from_numpy(chosen)
        stored = images[rows].float() / 255
        yield Batch(
            views=tuple(experiment.augmentation(stored, experiment.side).to(device) for _ in range(experiment.views)),
            clean=resized(stored, experiment.side).to(device),
            labels=labels[rows].to(device),
            groups=groups[rows].to(device),
            rows=rows.to(device),
        )


def resized(images: Tensor, side: int) -> Tensor:
    """Resize (n, h, w) to (n, side, side): bilinear, with averaging when it shrinks."""
    if images.shape[-2:] == (side, side):
        return images
    size = (side, side)
    return functional.interpolate(images[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def encode(
    embed: Callable[[Tensor], Tensor], data: Collection, side: int, device: torch.device | None = None
) -> Tensor:
    """Return (n, dim) float32 on the CPU: `embed` applied to the collection's images at `side` pixels."""
    images = torch.from_numpy(data.images)
    made = []
    with torch.inference_mode():
        for start in range(0, len(images), _ENCODE):
            pixels = resized(images[start : start + _ENCODE].float() / 255, side).to(device)
            made.append(embed(pixels).float().cpu())
    return torch.cat(made)
