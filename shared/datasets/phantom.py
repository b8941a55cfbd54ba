"""Synthetic breasts: one anatomy in three dimensions, seen from two directions, determined by a seed.

They are pictures for demonstration and tests, not a physical simulation: glandular tissue is a cloud of Gaussians
behind the nipple, projected exactly into CC and MLO; the fine texture is noise with the power law of mammograms.
So the four views of a woman and her earlier study look alike, and so do women with the same density and lesion.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.datasets.lesions import Lesion, draw_calcifications, draw_mass

Field = NDArray[np.float32]  #: (rows, cols), any unit
Stored = NDArray[np.uint16]  #: (rows, cols), 12 bits, bright means dense

TOP = 4095  #: the largest stored value
GRID = (512, 400)  #: size at which texture is computed, before it is resized
BLOBS = 260
FIELD_MM = 215.0  #: height of an image

#: by ACR density: amount of gland in the cloud, and its brightness
GLAND = {"A": (-0.15, 0.17), "B": (0.22, 0.27), "C": (0.58, 0.36), "D": (0.98, 0.46)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Breast:
    """One breast at one time. Lengths are fractions of the image's sides."""

    woman: tuple[int, ...]  #: seed of the anatomy that both sides and all exams share
    side: str  #: L or R
    exam: int  #: 0 is the newest; an older one differs slightly
    density: str  #: A to D
    depth: float = 0.6  #: chest wall to nipple, of the columns
    height: float = 0.38  #: half the height of the breast in CC, of the rows
    lesion: Lesion | None = None


@dataclass(frozen=True, slots=True)
class _Outline:
    """A half ellipse on the chest wall, in pixels; in MLO the upper part is taller than the lower."""

    depth: float
    middle: float
    up: float
    down: float

    def place(self, points: NDArray[np.float64], view: str) -> tuple[Field, Field]:
        """Return image (x, y) of points given as (depth, lateral, superior), each in [-1, 1]."""
        depth, lateral, superior = points.T
        upward = lateral if view == "CC" else (lateral + superior) * 0.70
        y = self.middle - upward * np.where(upward > 0, min(self.up, 1.25 * self.down), self.down)
        return (depth * self.depth).astype(np.float32), y.astype(np.float32)


def render(breast: Breast, view: str, rows: int, cols: int) -> Stored:
    """Render one view, with the chest wall on the left for the left breast and on the right for the right breast.

    Args:
        view: CC or MLO.
        rows, cols: even numbers.
    """
    base = (rows // 2, cols // 2)
    outline = _outline(breast, view, base)
    inside = _distance(outline, base)
    picture = _tissue(breast, view, outline, inside)
    mm = base[0] / FIELD_MM
    lesion = breast.lesion
    at = outline.place(np.array([lesion.place]), view) if lesion else None
    if lesion and at and lesion.kind != "calcifications":
        draw_mass(picture, lesion, (float(at[0][0]), float(at[1][0])), mm)
    picture *= np.clip(inside + 0.5, 0, 1)
    large = _resize(picture, (rows, cols))
    if lesion and at and lesion.kind == "calcifications":
        draw_calcifications(large, lesion, (2 * float(at[0][0]), 2 * float(at[1][0])), 2 * mm, view)
    large *= large > 0.02  # the air of an image for presentation is one value
    large += _grain(breast, view, rows, cols) * 0.024 * np.sqrt(large)
    stored = (np.clip(large, 0, 1) * TOP).astype(np.uint16)
    return stored if breast.side == "L" else np.ascontiguousarray(stored[:, ::-1])


def _rng(breast: Breast, *more: int) -> np.random.Generator:
    return np.random.default_rng([*breast.woman, *more])


def _outline(breast: Breast, view: str, base: tuple[int, int]) -> _Outline:
    rows, cols = base
    shift = _rng(breast, 1, breast.exam, ord(breast.side), len(view)).normal(0, 0.006, 2)  # positioning
    depth = (breast.depth + shift[0]) * cols
    if view == "CC":
        return _Outline(depth, (0.5 + shift[1]) * rows, breast.height * rows, breast.height * rows)
    middle = (0.6 + shift[1]) * rows
    return _Outline(depth * 1.04, middle, 1.06 * middle, min(0.85 * breast.height * rows, 0.36 * rows))


def _distance(outline: _Outline, base: tuple[int, int]) -> Field:
    """Return the approximate distance of each point inside the skin, in pixels; negative outside."""
    x = np.arange(base[1], dtype=np.float32)[None, :]
    dy = np.arange(base[0], dtype=np.float32)[:, None] - np.float32(outline.middle)
    half = np.where(dy < 0, outline.up, outline.down).astype(np.float32)
    nipple = 1 + 0.035 * np.exp(-((dy / (0.016 * base[0])) ** 2))
    depth = np.float32(outline.depth) * nipple.astype(np.float32)
    u, t = x / depth, dy / half
    level = 1 - u * u - t * t
    slope = 2 * np.sqrt((u / depth) ** 2 + (t / half) ** 2) + np.float32(1e-6)
    return np.asarray(level / slope, np.float32)


def _tissue(breast: Breast, view: str, outline: _Outline, inside: Field) -> Field:
    """Return fat, gland, ligaments, skin and (MLO) the pectoral muscle."""
    rows, cols = inside.shape
    smooth, fine = (_resize(field, inside.shape) for field in _texture(breast, view))
    strands = _strands(smooth, outline, inside.shape)
    amount, bright = GLAND[breast.density]
    cloud = _cloud(breast, view, outline, inside.shape) * (1 + 0.25 * smooth + 0.20 * strands)
    gland = 1 / (1 + np.exp((0.62 - 0.55 * amount - cloud) * 6.5))
    thick = np.clip(inside / (0.22 * cols), 0, 1)
    thick = 1 - (1 - thick) ** 3
    picture = 0.13 + 0.10 * thick + 0.022 * smooth + 0.035 * np.maximum(strands, 0)
    picture += thick * gland * bright * (0.85 + 0.12 * fine + 0.09 * strands)
    picture += 0.10 * np.exp(-(((inside - 1.5) / 1.6) ** 2))
    if view == "MLO":
        x, y = np.arange(cols, dtype=np.float32)[None, :], np.arange(rows, dtype=np.float32)[:, None]
        reach = (0.34 + 0.03 * _rng(breast, 2).normal()) * cols
        edge = reach * (1 - y / (0.60 * rows)) + 0.05 * cols * np.sin(np.pi * np.clip(y / (0.60 * rows), 0, 1))
        muscle = 1 / (1 + np.exp(np.clip((x - edge) / 1.5, -30, 30)))
        picture += muscle * (0.50 + 0.10 * x / cols + 0.03 * smooth + 0.02 * fine - picture) * 0.9
    return np.asarray(picture, np.float32)


def _cloud(breast: Breast, view: str, outline: _Outline, shape: tuple[int, ...]) -> Field:
    """Return the glandular density, about 0 to 1: projected Gaussians behind the nipple, by one matrix product."""
    shared = _rng(breast, 3)
    depth = 0.9 - 0.72 * shared.beta(1.3, 1.5, BLOBS)
    spread = 0.10 + 0.62 * np.sqrt(0.95 - depth)
    across = np.clip(shared.normal(0, 0.5, (BLOBS, 2)), -1, 1) * spread[:, None]
    across += shared.normal((0.05, 0.03), 0.06)  # more gland in the upper outer quadrant
    weight = shared.gamma(1.5, 0.6, BLOBS)
    points = np.column_stack([depth, across])
    points += _rng(breast, 4, ord(breast.side)).normal(0, 0.05, points.shape)
    points += _rng(breast, 5, ord(breast.side), breast.exam).normal(0, 0.010, points.shape)
    sigma = shared.uniform(0.025, 0.085, BLOBS)
    x, y = outline.place(points, view)
    wide = (1.5 * sigma * outline.depth).astype(np.float32)
    high = (sigma * outline.down).astype(np.float32)
    over = np.exp(-(((np.arange(shape[1], dtype=np.float32)[None, :] - x[:, None]) / wide[:, None]) ** 2) / 2)
    down = np.exp(-(((np.arange(shape[0], dtype=np.float32)[None, :] - y[:, None]) / high[:, None]) ** 2) / 2)
    total = (down * weight.astype(np.float32)[:, None]).T @ over
    return np.asarray(1 - np.exp(-0.30 * total), np.float32)


@lru_cache(maxsize=2)
def _spectrum(power: float) -> Field:
    rows, cols = GRID
    radius = np.hypot(np.fft.fftfreq(rows)[:, None] * rows, np.fft.fftfreq(cols)[None, :] * cols)
    return np.asarray(1 / (radius + 4) ** power, np.float32)


def _texture(breast: Breast, view: str) -> tuple[Field, Field]:
    """Return two independent fields of unit variance with the power law of breast tissue, the same in every exam."""
    rng = _rng(breast, 6, ord(breast.side), len(view))
    white = rng.standard_normal((2, *GRID), dtype=np.float32)
    made = np.fft.ifft2((white[0] + 1j * white[1]) * _spectrum(1.55))
    return tuple(np.asarray(part / part.std(), np.float32) for part in (made.real, made.imag))  # type: ignore[return-value]


def _strands(field: Field, outline: _Outline, shape: tuple[int, ...]) -> Field:
    """Bend the field around the nipple, so that its ridges converge there like ducts and ligaments."""
    dx = np.float32(outline.depth) - np.arange(shape[1], dtype=np.float32)[None, :]
    dy = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(outline.middle)
    far = np.hypot(dx, dy)
    angle = np.arctan2(dy, dx)
    rows = (angle * (shape[0] / 3.0)).astype(np.int32) % shape[0]
    cols = (far * 0.35).astype(np.int32) % shape[1]
    bent = field[rows, cols]
    return np.asarray(1 - 2.2 * np.abs(bent), np.float32)


def _resize(field: Field, shape: tuple[int, ...]) -> Field:
    if field.shape == shape:
        return field
    made = Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.array(made, np.float32)


@lru_cache(maxsize=2)
def _noise(rows: int, cols: int) -> Field:
    return np.random.default_rng(0).standard_normal((rows, cols), dtype=np.float32)


def _grain(breast: Breast, view: str, rows: int, cols: int) -> Field:
    """Return one detector noise field, shifted differently in every image: new noise would take half of the time."""
    by = _rng(breast, 7, ord(breast.side), len(view), breast.exam).integers(0, (rows, cols))
    return np.roll(_noise(rows, cols), tuple(int(n) for n in by), (0, 1))
