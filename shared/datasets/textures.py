"""Abstract pictures from a seed: smooth outlines, power-law noise and speckle on a dark or textured ground.

They belong to no modality. A network that must tell each picture from all others learns many kinds of edges, shapes
and grain, which helps on images unlike its training set. Source of the idea: Baradad et al. 2021, "Learning to See by
Looking at Noise" (arXiv 2106.05963).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Grey = NDArray[np.uint8]
Field = NDArray[np.float64]  #: (side, side), any unit
Mask = NDArray[np.bool_]

_CORNERS = 64  #: corners of the polygon that approximates a smooth outline


def textures(n: int, side: int, seed: int) -> Grey:
    """Return (n, side, side) pictures; a larger n starts with the same pictures."""
    return np.stack([_picture(np.random.default_rng([seed, number]), side) for number in range(n)])


def _picture(rng: np.random.Generator, side: int) -> Grey:
    """Draw 1 to 13 shapes on a ground, sometimes with speckle, sometimes masked by an aperture."""
    picture = _ground(rng, side)
    for _ in range(int(rng.integers(1, 14))):
        picture = _with_shape(rng, picture)
    if rng.random() < 0.2:
        picture = picture * np.exp(rng.uniform(0.2, 0.6) * _noise(rng, side, rng.uniform(0, 1)))
    if rng.random() < 0.35:
        aperture = _shape(rng, side)
        if aperture.mean() > 0.2:
            picture = picture * aperture
    low, high = np.percentile(picture, [rng.uniform(0, 5), rng.uniform(95, 100)])
    shown = np.clip((picture - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.normal(0, 0.4))
    return np.asarray(255 * shown, np.uint8)


def _ground(rng: np.random.Generator, side: int) -> Field:
    if rng.random() < 0.6:
        return np.asarray(0.5 + 0.15 * _noise(rng, side, rng.uniform(0.5, 2.5)))
    return np.full((side, side), rng.uniform(0, 1) if rng.random() < 0.5 else 0.0)


def _with_shape(rng: np.random.Generator, picture: Field) -> Field:
    """Add a shape: flat or grainy, filled or an outline, opaque or translucent."""
    side = len(picture)
    mask = _shape(rng, side)
    if rng.random() < 0.3:
        mask ^= np.roll(mask, max(1, round(side * rng.uniform(0.01, 0.04))), 0)
    value = np.full((side, side), rng.uniform(0, 1))
    if rng.random() < 0.7:
        value += rng.uniform(0, 0.3) * _noise(rng, side, rng.uniform(0, 3))
    if rng.random() < 0.7:
        return np.where(mask, value, picture)
    return picture + mask * (value - 0.5) * 0.6


def _noise(rng: np.random.Generator, side: int, exponent: float) -> Field:
    """Return noise with an amplitude of frequency to the power of -`exponent`, often stretched in one direction."""
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 4) if rng.random() < 0.4 else 1.0
    down, right = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    along = right * np.cos(angle) + down * np.sin(angle)
    across = (down * np.cos(angle) - right * np.sin(angle)) * stretch
    frequency = np.hypot(along, across)
    frequency[0, 0] = np.inf  # the mean is 0
    waves = frequency ** -max(exponent, 1e-6) * np.exp(2j * np.pi * rng.random(frequency.shape))
    noise = np.fft.irfft2(waves, s=(side, side))
    return np.asarray(noise / noise.std())


def _shape(rng: np.random.Generator, side: int) -> Mask:
    """Return the inside of a smooth closed curve of random place and size."""
    turn = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = np.ones(_CORNERS)
    for wave in range(1, int(rng.integers(3, 7))):
        radius += rng.normal(0, 0.25 / wave) * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    centre, tilt = rng.uniform(-0.1, 1.1, 2) * side, rng.uniform(0, 2 * np.pi)
    size = side * np.exp(rng.uniform(np.log(0.05), np.log(0.6)))
    long = np.sqrt(rng.uniform(0.5, 2))
    curve = size * radius * (long * np.cos(turn) + 1j * np.sin(turn) / long) * np.exp(1j * tilt)
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).polygon([(centre[0] + z.real, centre[1] + z.imag) for z in curve], fill=1)
    return np.asarray(image).copy()
