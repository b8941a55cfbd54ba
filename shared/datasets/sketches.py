"""Drawn sections of breast ultrasound and of heads in magnetic resonance, with and without a lesion, from a seed.

The drawings are schematic: layers, speckle and shadow; scalp, skull, folds and ventricles. From them a network learns
layout, grain and lesions of modalities for which it has no real training image.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

Grey = NDArray[np.uint8]
Field = NDArray[np.float64]  #: (side, side)
Random = np.random.Generator


def sketches(count: int, side: int, seed: int) -> tuple[Grey, list[str]]:
    """Return (count, side, side) pictures and their classes; a larger count starts with the same pictures."""
    names = list(DRAWN)
    chosen = [names[number % len(names)] for number in range(count)]
    drawn = [DRAWN[name](np.random.default_rng([seed, number]), side) for number, name in enumerate(chosen)]
    return np.stack(drawn), chosen


def ultrasound(rng: Random, side: int, lesion: str) -> Grey:
    """Draw skin, fat, gland and muscle, darker with depth; the lesion is dark, with enhancement or shadow below it."""
    y, x = _axes(side)
    depth = y + 0.03 * _smooth(rng, side, 0.15)
    borders = np.cumsum(rng.uniform([0.04, 0.1, 0.2], [0.1, 0.3, 0.45]))
    levels = rng.uniform([0.5, 0.15, 0.35, 0.1], [0.9, 0.4, 0.7, 0.4])
    echo = np.select([depth < border for border in borders], list(levels[:3]), levels[3])
    echo = gaussian_filter(echo, side * 0.008) * (1 + 0.35 * _smooth(rng, side, rng.uniform(0.02, 0.08)))
    echo += 0.25 * np.maximum(_streaks(rng, side), 0) * rng.uniform(0, 1)
    if lesion != "none":
        echo = _hypoechoic(rng, echo, lesion)
    echo *= np.exp(-rng.uniform(0, 1.6) * y)
    speckle = gaussian_filter(rng.rayleigh(1, (side, side)), (side * 0.004, side * rng.uniform(0.006, 0.014)))
    shown = np.log1p(rng.uniform(4, 20) * np.maximum(echo, 0) * speckle)
    if rng.random() < 0.4:  # a black margin of the screen at the sides
        left, right = rng.uniform(0, 0.15, 2)
        shown *= (x > left) & (x < 1 - right)
    return _grey(rng, shown)


def head(rng: Random, side: int, lesion: str) -> Grey:
    """Draw scalp, dark skull and a folded brain with ventricles; the lesion is brighter, with swelling around it."""
    y, x = _axes(side)
    tilt, wide, high = rng.normal(0, 0.15), rng.uniform(0.32, 0.45), rng.uniform(0.38, 0.48)
    u = (x - 0.5) * np.cos(tilt) + (y - 0.5) * np.sin(tilt)
    v = (y - 0.5) * np.cos(tilt) - (x - 0.5) * np.sin(tilt)
    far = np.hypot(u / wide, v / high) * (1 + 0.04 * _smooth(rng, side, 0.2))
    folds = np.cos(rng.uniform(25, 45) * far + 3 * _smooth(rng, side, 0.05)) * np.clip(far * 1.6 - 0.5, 0, 1)
    white, grey = rng.uniform(0.45, 0.7), rng.uniform(0.25, 0.5)
    brain = np.where(far < 0.6 + 0.08 * _smooth(rng, side, 0.08), white, grey) + 0.08 * folds
    apart, long = rng.uniform(0.05, 0.12), rng.uniform(0.1, 0.25)
    ventricles = np.exp(-(((np.abs(u) - apart) / 0.035) ** 2) - ((v + rng.uniform(-0.05, 0.05)) / long) ** 2)
    brain = brain + (rng.choice([0.05, 0.9], p=[0.75, 0.25]) - brain) * np.clip(2 * ventricles, 0, 1)
    brain += 0.03 * _smooth(rng, side, 0.03)
    if lesion != "none":
        brain = _enhancing(rng, brain, (u / wide, v / high), lesion)
    ring = np.where(far < 0.93, 0.06, rng.uniform(0.5, 1.0) * (0.7 + 0.3 * _smooth(rng, side, 0.05)))
    shown = np.where(far < rng.uniform(0.82, 0.88), brain, ring) * (far < 1)
    return _grey(rng, gaussian_filter(shown, side * 0.004) + rng.uniform(0, 0.03) * rng.standard_normal(shown.shape))


def _hypoechoic(rng: Random, echo: Field, lesion: str) -> Field:
    side = len(echo)
    y, x = _axes(side)
    cx, cy, size = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.6), rng.uniform(0.08, 0.24)
    rough = 0.05 if lesion == "smooth" else 0.4
    flat = rng.uniform(1.2, 2.0) if lesion == "smooth" else rng.uniform(0.6, 1.2)
    far = np.hypot((x - cx) / size, (y - cy) / size * flat) * (1 + rough * _smooth(rng, side, 0.06))
    inside = 1 / (1 + np.exp(np.clip((far - 1) / (0.04 if lesion == "smooth" else 0.15), -30, 30)))
    below = (np.abs(x - cx) < 0.8 * size) & (y > cy)
    change = rng.uniform(1.1, 1.7) if lesion == "smooth" else rng.uniform(0.2, 0.7)
    echo = echo * np.where(below, 1 + (change - 1) * np.clip((y - cy) / size, 0, 1), 1)
    return np.asarray(echo * (1 - inside) + rng.uniform(0, 0.15) * inside)


def _enhancing(rng: Random, brain: Field, places: tuple[Field, Field], lesion: str) -> Field:
    side = len(brain)
    turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.75) if lesion == "smooth" else rng.uniform(0.1, 0.55)
    size = rng.uniform(0.12, 0.28)
    far = np.hypot(places[0] - away * np.cos(turn), places[1] - away * np.sin(turn)) / size
    far = far * (1 + (0.05 if lesion == "smooth" else 0.35) * _smooth(rng, side, 0.05))
    swollen = np.exp(-((far / rng.uniform(1.3, 2.0)) ** 2)) * rng.uniform(-0.15, 0.05)
    core = 1 / (1 + np.exp(np.clip((far - 1) / 0.08, -30, 30)))
    if lesion == "rough":  # a bright rim around a dark middle
        core = core - rng.uniform(0, 0.9) / (1 + np.exp(np.clip((far - 0.6) / 0.08, -30, 30)))
    return np.asarray(brain + swollen + (rng.uniform(0.7, 1.0) - brain) * core * rng.uniform(0.4, 1))


def _axes(side: int) -> tuple[Field, Field]:
    """Return the row and column coordinates of each pixel, from 0 to 1."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    return y, x


def _smooth(rng: Random, side: int, scale: float) -> Field:
    """Return noise of standard deviation 1 with a grain of `scale` times the side."""
    noise = gaussian_filter(rng.standard_normal((side, side)), max(scale * side, 0.5), mode="wrap")
    return np.asarray(noise / noise.std())


def _streaks(rng: Random, side: int) -> Field:
    grain = (side * 0.008, side * rng.uniform(0.05, 0.2))
    noise = gaussian_filter(rng.standard_normal((side, side)), grain, mode="wrap")
    return np.asarray(noise / noise.std())


def _grey(rng: Random, picture: Field) -> Grey:
    low, high = np.percentile(picture, [rng.uniform(0, 2), rng.uniform(98, 100)])
    shown = np.clip((picture - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.normal(0, 0.2))
    return np.asarray(255 * shown, np.uint8)


def _kinds() -> dict[str, Callable[[Random, int], Grey]]:
    def kind(draw: Callable[[Random, int, str], Grey], lesion: str) -> Callable[[Random, int], Grey]:
        return lambda rng, side: draw(rng, side, lesion)

    drawn = {"ultrasound": ultrasound, "head": head}
    return {f"{name} {lesion}": kind(draw, lesion) for name, draw in drawn.items() for lesion in LESIONS}


LESIONS = ("none", "smooth", "rough")
DRAWN: Mapping[str, Callable[[Random, int], Grey]] = _kinds()
