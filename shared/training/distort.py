"""Strong augmentation of whole batches: framing, contrast and sharpness."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Distort:
    """Crop with rotation, stretching and flips; reduced resolution; gamma, contrast, inversion, noise.

    Drawn for each image separately, from torch's global generator.
    """

    area: tuple[float, float] = (0.4, 1.1)  #: share of the image's area in the crop; above 1, with a margin of zeros
    stretch: float = 0.2  #: largest absolute logarithm of the aspect ratio
    degrees: float = 8.0  #: standard deviation of the rotation
    horizontal: float = 0.5  #: probability of a flip
    vertical: float = 0.1
    gamma: float = 0.25  #: standard deviation of the logarithm
    contrast: float = 0.2
    inverted: float = 0.1  #: probability
    coarse: float = 0.3  #: probability of a reduced resolution, down to a quarter
    noise: float = 0.05  #: largest standard deviation, in a third of the images

    def __call__(self, images: Tensor, side: int) -> Tensor:
        """Map (n, h, w) to (n, side, side), both in [0, 1]."""
        seen = functional.grid_sample(
            self._coarser(images[:, None]), self._grid(len(images), side), padding_mode="zeros", align_corners=False
        )
        return self._toned(seen)[:, 0]

    def _grid(self, n: int, side: int) -> Tensor:
        area = _uniform(n, *self.area)
        ratio = _uniform(n, -self.stretch, self.stretch).exp()
        wide, high = (area * ratio).sqrt(), (area / ratio).sqrt()
        turn = torch.randn(n) * math.radians(self.degrees)
        across, down = _signs(n, self.horizontal), _signs(n, self.vertical)
        right = _uniform(n, -1, 1) * (1 - wide).clamp(min=0)
        below = _uniform(n, -1, 1) * (1 - high).clamp(min=0)
        first = torch.stack([wide * across * turn.cos(), -high * turn.sin() * down, right], 1)
        second = torch.stack([wide * across * turn.sin(), high * turn.cos() * down, below], 1)
        return functional.affine_grid(torch.stack([first, second], 1), [n, 1, side, side], align_corners=False)

    def _coarser(self, images: Tensor) -> Tensor:
        """Reduce the resolution of some images, at unchanged size."""
        chosen = torch.rand(len(images)) < self.coarse
        if not chosen.any():
            return images
        size = images.shape[-2:]
        factor = float(_uniform(1, 0.25, 0.75))
        small = functional.interpolate(images[chosen], scale_factor=factor, mode="area")
        images = images.clone()
        images[chosen] = functional.interpolate(small, size, mode="bilinear", align_corners=False)
        return images

    def _toned(self, images: Tensor) -> Tensor:
        n = len(images)
        images = images.clamp(1e-4, 1) ** _drawn(n, self.gamma).exp()
        images = (images * _drawn(n, self.contrast).exp()).clamp(0, 1)
        images = torch.where((torch.rand(n) < self.inverted).view(-1, 1, 1, 1), 1 - images, images)
        level = self.noise * torch.rand(n) * (torch.rand(n) < 1 / 3)
        return (images + torch.randn_like(images) * level.view(-1, 1, 1, 1)).clamp(0, 1)


def _uniform(n: int, low: float, high: float) -> Tensor:
    return torch.rand(n) * (high - low) + low


def _signs(n: int, flipped: float) -> Tensor:
    return torch.where(torch.rand(n) < flipped, -1.0, 1.0)


def _drawn(n: int, deviation: float) -> Tensor:
    return (torch.randn(n) * deviation).view(-1, 1, 1, 1)
