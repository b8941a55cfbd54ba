"""Test-time augmentation: the mean over five views of an image.

Source: arXiv 2508.04790 and its released code (plain; flipped; rotated; enlarged and cropped; brighter with more
contrast). That code draws rotation and brightness anew for each image, so no vector is reproducible. Here they are
fixed (`five`, recommended), or drawn once with the seed S from the ranges of the released code (`five:S`).
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.encoder.network import Outputs

VIEWS = 5
_ENLARGED = 240 / 224


class Views(nn.Module):
    """Map grey pixels (n, side, side) in [0, 1] to (5 n, side, side), view by view, the unchanged images first."""

    grid: Tensor

    def __init__(self, side: int, seed: int | None = None) -> None:
        super().__init__()
        self.angle, self.brightness, self.contrast = 5.0, 1.1, 1.1
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            draw = (torch.rand(3, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
            self.angle, self.brightness, self.contrast = 5 * draw[0], 1 + 0.1 * draw[1], 1 + 0.1 * draw[2]
        self.side = side
        self.register_buffer("grid", _rotation(self.angle, side), persistent=False)

    @classmethod
    def named(cls, name: str, side: int) -> Self:
        """Return the views that a card names: `five`, or `five:SEED`."""
        _, _, seed = name.partition(":")
        return cls(side, int(seed) if seed else None)

    def forward(self, pixels: Tensor) -> Tensor:
        views = (pixels, pixels.flip(-1), self._rotated(pixels), self._enlarged(pixels), self._jittered(pixels))
        return torch.cat(views)

    def _rotated(self, pixels: Tensor) -> Tensor:
        """Rotate counter-clockwise about the centre; pixels from outside the image are black."""
        grid = self.grid.expand(pixels.shape[0], -1, -1, -1)
        return functional.grid_sample(pixels.unsqueeze(1), grid, mode="bilinear", align_corners=False).squeeze(1)

    def _enlarged(self, pixels: Tensor) -> Tensor:
        larger = round(self.side * _ENLARGED)
        start = (larger - self.side) // 2
        resized = functional.interpolate(
            pixels.unsqueeze(1), size=(larger, larger), mode="bilinear", align_corners=False
        )
        return resized[:, 0, start : start + self.side, start : start + self.side]

    def _jittered(self, pixels: Tensor) -> Tensor:
        """Change brightness, then contrast around the image's mean, each clipped, like ColorJitter on a grey image."""
        bright = (pixels * self.brightness).clamp(0, 1)
        mean = bright.mean((1, 2), keepdim=True)
        return (bright * self.contrast + mean * (1 - self.contrast)).clamp(0, 1)


class Tta(nn.Module):
    """A network on grey pixels whose outputs are averaged over the views.

    Embeddings are the mean of the raw vectors, normalised to unit length (the released code does not normalise, which
    is the same by cosine). Logits are averaged. Errors are those of the unchanged view, because calibrations use
    unchanged images.
    """

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network = network
        self.views = views

    def forward(self, pixels: Tensor) -> Tensor | Outputs:
        outputs = self.network(self.views(pixels))
        if isinstance(outputs, Tensor):
            return self._embeddings(outputs)
        return Outputs(
            self._embeddings(outputs.embeddings),
            None if outputs.logits is None else average(outputs.logits),
            None if outputs.errors is None else outputs.errors.reshape(VIEWS, -1)[0],
        )

    def _embeddings(self, vectors: Tensor) -> Tensor:
        return functional.normalize(average(vectors), dim=1)


def average(rows: Tensor) -> Tensor:
    """Average (5 n, dim), view by view, to (n, dim)."""
    return rows.reshape(VIEWS, -1, rows.shape[1]).mean(0)


def _rotation(degrees: float, side: int) -> Tensor:
    """Return (1, side, side, 2): the source position of each pixel of the rotated image, in [-1, 1]."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # row indices grow downwards, so sampling by this matrix rotates the image counter-clockwise
    turn = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    return functional.affine_grid(turn, [1, 1, side, side], align_corners=False)
