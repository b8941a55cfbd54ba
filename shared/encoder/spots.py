"""Bright and dark spots, counted by size: filters that are fixed, and one trained linear layer for each count.

A spot is what a blur removes, and the blur tells its size: the bands of a scale space (differences of Gaussians:
Lindeberg 1994, J. Appl. Stat. 21(2)). Two histograms of the bands' heights are taken: in three rings around the middle
of the image, in units of brightness; and of the whole image, in units of the band's own deviation. The histograms
need no training and hold for images of any modality. An image and its mirror image have the same ones.
"""

import math

import torch
from torch import Tensor, nn

SIDE = 64  #: pixels at which spots are counted
SIGMAS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3)  #: of the blurs, in pixels: half an octave apart
RINGS = (0, 16, 28)  #: distance from the middle at which each ring begins, in pixels
LEVELS = 9  #: heights that are told apart, from dark to bright
RING_HEIGHT, RELATIVE_HEIGHT = 0.2, 3.0  #: the largest height: of 1 as the full brightness, and in deviations
_FLAT = 0.004  #: added to a band's deviation: about one grey level of 256
_EMPTY = 1e-8  #: a share of pixels that counts as none
WIDTHS = (128, 64)  #: of the two features


class Spots(nn.Module):
    """RGB (n, 3, side, side) in [0, 1] to two features, (n, 128) of the rings and (n, 64) of the whole image.

    The reduction to 64 pixels and the blurs are linear along each axis, so both are products with fixed matrices.
    """

    blurs: Tensor
    shares: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        bands = len(SIGMAS) - 1
        self.rings = nn.Linear(bands * len(RINGS) * LEVELS, WIDTHS[0])
        self.relative = nn.Linear(bands * LEVELS, WIDTHS[1])
        reduction = _reduction(side)
        blurs = torch.stack([_blur(sigma) @ reduction for sigma in SIGMAS])
        self.register_buffer("blurs", blurs, persistent=False)  # (blurs, SIDE, side)
        self.register_buffer("shares", _shares(), persistent=False)  # (SIDE * SIDE, rings)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # a band is a small difference of large numbers
            bands = self.bands(x.float().mean(1))
            return self.rings(self.in_rings(bands)), self.relative(self.in_deviations(bands))

    def bands(self, images: Tensor) -> Tensor:
        """(n, side, side) to (n, bands, SIDE, SIDE): what each blur removes from the one before."""
        blurred = self.blurs @ images[:, None] @ self.blurs.transpose(1, 2)
        return blurred[:, :-1] - blurred[:, 1:]

    def in_rings(self, bands: Tensor) -> Tensor:
        """Square roots of histograms, (n, levels * bands * rings): the share of each ring at each height."""
        return _histogram(bands.flatten(2), RING_HEIGHT, self.shares)

    def in_deviations(self, bands: Tensor) -> Tensor:
        """Square roots of histograms, (n, levels * bands), of heights in units of the band's standard deviation."""
        flat = bands.flatten(2)
        deviation = (flat - flat.mean(2, keepdim=True)).square().mean(2, keepdim=True).sqrt()
        return _histogram(flat / (deviation + _FLAT), RELATIVE_HEIGHT, self.shares.mean(1, keepdim=True))


def _histogram(flat: Tensor, highest: float, shares: Tensor) -> Tensor:
    """Map bands (n, bands, pixels) and each pixel's share of each zone (pixels, zones) to (n, levels * bands * zones).

    A height counts for every level within 1.5 level spacings, the less the farther away. Square roots, because the
    distances between them are Hellinger's.
    """
    reach = 1.5 * 2 * highest / (LEVELS - 1)
    levels = torch.linspace(-highest, highest, LEVELS).tolist()
    counts = [(1 - ((flat - level) / reach).abs()).clamp(min=0) @ shares for level in levels]
    return torch.stack(counts, 1).flatten(1).clamp(min=_EMPTY).sqrt()


def _reduction(side: int) -> Tensor:
    """(SIDE, side): the mean over the part of a row that each new pixel covers."""
    edges = torch.arange(SIDE + 1) * (side / SIDE)
    pixels = torch.arange(side)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return covered.clamp(min=0) * (SIDE / side)


def _blur(sigma: float) -> Tensor:
    """(SIDE, SIDE): a Gaussian along a row, continued beyond its ends by their values."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    columns = (torch.arange(SIDE)[:, None] + offsets).clamp(0, SIDE - 1)
    return torch.zeros(SIDE, SIDE).scatter_add_(1, columns, (kernel / kernel.sum()).expand(SIDE, -1))


def _shares() -> Tensor:
    """(SIDE * SIDE, rings): 1 / the pixels of the ring for those in it, else 0."""
    along = torch.arange(SIDE) - (SIDE - 1) / 2
    distance = (along[:, None].square() + along.square()).sqrt().flatten()
    ring = (distance[:, None] >= torch.tensor(RINGS)).sum(1) - 1
    inside = nn.functional.one_hot(ring, len(RINGS)).float()
    return inside / inside.sum(0)
