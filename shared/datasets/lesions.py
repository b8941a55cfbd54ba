"""The lesions of a phantom: a mass, a spiculated mass, or a cluster of calcifications."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
KINDS = ("mass", "spiculated", "calcifications")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    kind: str  #: one of KINDS
    place: tuple[float, float, float]  #: (depth, lateral, superior), as fractions of the breast
    size_mm: float  #: diameter
    coarse: bool = False  #: calcifications: few and large (benign), or many and fine
    seed: tuple[int, ...] = (0,)


def draw_mass(picture: Field, lesion: Lesion, at: tuple[float, float], mm: float) -> None:
    """Add the mass to the picture in place.

    Args:
        at: centre (x, y) in pixels.
        mm: pixels per millimetre.
    """
    rng = np.random.default_rng(lesion.seed)
    radius = max(lesion.size_mm / 2 * mm, 2.0)
    spiculated = lesion.kind == "spiculated"
    part, dx, dy = _window(picture, at, radius * (4.0 if spiculated else 1.8))
    if not part.size:
        return  # outside the picture
    far, angle = np.hypot(dx, dy * rng.uniform(0.9, 1.2)), np.arctan2(dy, dx)
    waves = rng.uniform(0, 2 * np.pi, 6)
    lobes = sum(np.cos((k + 2) * angle + np.float32(waves[k])) / (k + 2) for k in range(6))
    edge = radius * (1 + (0.22 if spiculated else 0.07) * lobes)
    soft = radius * (0.22 if spiculated else 0.07)
    body = 1 / (1 + np.exp(np.clip((far - edge) / soft, -30, 30)))
    level = 0.36 + 0.62 * float(part.mean()) + (0.16 if spiculated else 0.0)
    part += (np.maximum(level + 0.25 * part - part, 0) * body * 0.85).astype(np.float32)
    if spiculated:
        part += _rays(rng, dx, dy, radius)


def _rays(rng: np.random.Generator, dx: Field, dy: Field, radius: float) -> Field:
    """Return thin lines that radiate from the mass and fade."""
    far = np.hypot(dx, dy)
    total = np.zeros_like(far)
    width = np.float32(0.05 * radius + 0.6)
    for turn in np.linspace(-np.pi, np.pi, 18, endpoint=False) + rng.normal(0, 0.15, 18):
        east, north = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        line = np.exp(-(((dx * north - dy * east) / width) ** 2)) * (dx * east + dy * north > 0)
        total += line * np.exp(far * np.float32(-1 / (radius * rng.uniform(0.7, 1.9))))
    return np.asarray(np.minimum(total, 1) * (far > 0.5 * radius) * 0.26, np.float32)


def draw_calcifications(picture: Field, lesion: Lesion, at: tuple[float, float], mm: float, view: str) -> None:
    """Add bright grains to the picture in place; arguments as in `draw_mass`."""
    rng = np.random.default_rng([*lesion.seed, len(view)])
    count = 7 if lesion.coarse else 34
    size = max((0.9 if lesion.coarse else 0.24) * mm, 0.8)
    spots = rng.normal(0, lesion.size_mm / 4 * mm, (count, 2))
    for dx, dy in spots:
        grain = size * rng.uniform(0.7, 1.4)
        part, x, y = _window(picture, (at[0] + dx, at[1] + dy), 4 * grain)
        glow = np.exp(-(((x * x + y * y * rng.uniform(0.5, 1.5)) / (2 * grain * grain)) ** (2 if lesion.coarse else 1)))
        part += (np.maximum(0.97 - part, 0) * glow * rng.uniform(0.75, 1)).astype(np.float32)


def _window(picture: Field, at: tuple[float, float], reach: float) -> tuple[Field, Field, Field]:
    """Return a view of the picture around a point, and the offsets of its pixels from the point."""
    x, y = at
    left, top = max(int(x - reach), 0), max(int(y - reach), 0)
    part = picture[top : max(int(y + reach) + 1, top), left : max(int(x + reach) + 1, left)]
    rows, cols = part.shape
    dx = (np.arange(cols, dtype=np.float32) + left - np.float32(x))[None, :]
    dy = (np.arange(rows, dtype=np.float32) + top - np.float32(y))[:, None]
    return part, np.broadcast_to(dx, part.shape), np.broadcast_to(dy, part.shape)
