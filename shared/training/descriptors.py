"""What an image is like by classical descriptors: the targets from which the shipped model learns to see.

Layout is gradients by direction (HOG: Dalal and Triggs 2005) and brightness, both in a 4 x 4 grid; grain is local
binary patterns (Ojala et al. 2002) at three radii, of the whole and of its quarters. They need no label and no other
network, and hold for images of any modality. Predicting descriptors is a pretext task with a record (MaskFeat: Wei et
al. 2022). An image and its mirror image have the same ones, because a left hand is like a right one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import Invalid

SIDE = 64  #: pixels at which all of them are taken
_BINS, _SCALES, _LEVELS, _RADII = 8, 4, 12, (1, 2, 4)
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class Blocks(NamedTuple):
    """Square roots of histograms, which makes the distances between them Hellinger's."""

    gradients: Tensor  #: (n, 512)
    brightness: Tensor  #: (n, 192)
    grain: Tensor  #: (n, 768), patterns of the whole image
    quarters: Tensor  #: (n, 3072), patterns of each quarter


def describe(images: Tensor) -> Blocks:
    """The descriptors of (n, side, side) in [0, 1], each the mean of those of the image and of its mirror image."""
    small = functional.interpolate(images[:, None].float(), (SIDE, SIDE), mode="area")
    pairs = zip(_one_sided(small), _one_sided(small.flip(-1)), strict=True)
    return Blocks(*((a + b) / 2 for a, b in pairs))


def _one_sided(small: Tensor) -> Blocks:
    quarters = patterns(small[:, 0])
    grain = quarters.square().mean(2).flatten(1).sqrt()
    return Blocks(gradients(small), brightness(small), grain, quarters.flatten(1))


def gradients(images: Tensor) -> Tensor:
    """(n, 1, side, side) to (n, scales * bins * 16): mean magnitude by direction; each scale halves the image."""
    found = []
    directions = torch.arange(_BINS, device=images.device).view(1, -1, 1, 1) * (2 * math.pi / _BINS)
    for _ in range(_SCALES):
        right = functional.pad(images[..., 2:] - images[..., :-2], (1, 1, 0, 0))
        below = functional.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
        towards = torch.cos(torch.atan2(below, right) - directions).clamp(min=0) ** 4
        found.append(_cells(towards * (right.square() + below.square() + 1e-8).sqrt()))
        images = functional.avg_pool2d(images, 2)
    return torch.cat(found, 1).sqrt()


def brightness(images: Tensor) -> Tensor:
    """(n, 1, side, side) to (n, levels * 16): how much of each cell is about so bright."""
    levels = torch.linspace(0, 1, _LEVELS, device=images.device).view(1, -1, 1, 1)
    return _cells(torch.exp(-((images - levels) / 0.06).square() / 2)).sqrt()


def patterns(images: Tensor) -> Tensor:
    """(n, side, side) to (n, radii, 4, 256): how often each pattern of brighter neighbours occurs in each quarter."""
    n, side, _ = images.shape
    found = []
    for radius in _RADII:
        padded = functional.pad(images[:, None], (radius,) * 4, mode="replicate")[:, 0]
        code = torch.zeros_like(images, dtype=torch.int64)
        for bit, (down, right) in enumerate(_AROUND):
            top, left = radius * (1 + down), radius * (1 + right)
            brighter = padded[:, top : top + side, left : left + side] > images + 0.01
            code |= brighter.long() << bit
        quarters = code.unfold(1, side // 2, side // 2).unfold(2, side // 2, side // 2).reshape(n * 4, -1)
        counts = images.new_zeros(n * 4, 256).scatter_add_(1, quarters, torch.ones_like(quarters, dtype=images.dtype))
        found.append((counts / quarters.shape[1]).view(n, 4, 256))
    return torch.stack(found, 1).sqrt()


def _cells(maps: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(maps, 4).flatten(1)


class Targets(nn.Module):
    """Descriptors as unit vectors of a given length: standardised block by block, weighted, joined, projected.

    Principal components keep the angles between images, which is all that a similarity needs.
    """

    def __init__(self, dims: Sequence[int], weights: Sequence[Sequence[float]], images: Tensor) -> None:
        """Fit to images (n, side, side), n greater than every length.

        Args:
            dims: length of each target.
            weights: of the blocks in each target; a block's share of the similarity is the weight's square.
            images: means, deviations and components are taken from them.

        Raises: `Invalid` for too few images to span so many components.
        """
        super().__init__()
        if len(images) <= max(dims):
            raise Invalid(f"targets of {max(dims)} numbers need more than {max(dims)} images; there are {len(images)}")
        self.weights = [list(row) for row in weights]
        for name, block in zip(Blocks._fields, describe(images), strict=True):
            self.register_buffer(f"mean_{name}", block.mean(0))
            self.register_buffer(f"scale_{name}", block.std(0) + 0.1 * block.std())
        for number, (dim, row) in enumerate(zip(dims, self.weights, strict=True)):
            mixed = self._mixed(describe(images), row)
            self.register_buffer(f"centre_{number}", mixed.mean(0))
            self.register_buffer(f"basis_{number}", _principal(mixed - mixed.mean(0), dim))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(n, side, side) in [0, 1] to (n, dim) for each target."""
        blocks = describe(images)
        found = []
        for number, row in enumerate(self.weights):
            mixed = self._mixed(blocks, row) - self.get_buffer(f"centre_{number}")
            found.append(functional.normalize(mixed @ self.get_buffer(f"basis_{number}"), dim=1))
        return found

    def _mixed(self, blocks: Blocks, weights: Sequence[float]) -> Tensor:
        parts = []
        for name, block, weight in zip(Blocks._fields, blocks, weights, strict=True):
            if weight:
                standard = (block - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"scale_{name}")
                parts.append(weight * functional.normalize(standard, dim=1))
        return torch.cat(parts, 1)


def _principal(centred: Tensor, dim: int) -> Tensor:
    """(features, dim): the directions of largest variance, by the small matrix of products between images."""
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    scaled: Tensor = vectors[:, -dim:] / values[-dim:].sqrt()
    return centred.T @ scaled.float()
