"""Augmentation by torchvision's transforms, image by image. All randomness comes from torch's global generator."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from shared.encoder import vision
from shared.training.data import resized

GREY_MEAN = 0.449  #: value of an erased patch: about zero after ImageNet's normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAugmentation:
    def __call__(self, images: Tensor, side: int) -> Tensor:
        return resized(images, side)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Crop, flips, rotation, brightness and contrast, erasing; drawn for each image separately.

    The released code of arXiv 2508.04790 also changes saturation and hue, which grey images do not have.
    """

    scale: tuple[float, float] = (0.8, 1.0)  #: share of the area that the crop keeps
    horizontal: float = 0.5  #: probability of a flip
    vertical: float = 0.0
    degrees: float = 15.0  #: rotation to either side
    brightness: float = 0.2
    contrast: float = 0.2
    erasing: float = 0.1  #: probability

    def __call__(self, images: Tensor, side: int) -> Tensor:
        transform = _composed(self, side)
        return torch.stack([transform(image[None])[0] for image in images]).clamp_(0, 1)


@cache
def _composed(of: Augment, side: int) -> Callable[[Tensor], Tensor]:
    vision.models()  # makes torchvision importable
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomResizedCrop(side, scale=of.scale, antialias=True)]
    if of.horizontal:
        steps.append(v2.RandomHorizontalFlip(of.horizontal))
    if of.vertical:
        steps.append(v2.RandomVerticalFlip(of.vertical))
    if of.degrees:
        steps.append(v2.RandomRotation(of.degrees, interpolation=v2.InterpolationMode.BILINEAR))
    if of.brightness or of.contrast:
        steps.append(v2.ColorJitter(of.brightness, of.contrast))
    if of.erasing:
        steps.append(v2.RandomErasing(of.erasing, value=GREY_MEAN))
    return v2.Compose(steps)  # type: ignore[no-any-return]
