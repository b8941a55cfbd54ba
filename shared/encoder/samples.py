"""Synthetic frames for the encoders' parity check, and for the statistics of untrained weights."""

import numpy as np

from shared.types import Pixels


def samples(n: int, side: int, seed: int) -> Pixels:
    """Return (n, side, side) in [0, 1]: smooth noise at five scales inside an ellipse, fixed by the arguments."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    frames = np.empty((n, side, side), np.float32)
    for i in range(n):
        texture = sum(_smooth(rng.standard_normal((k, k)), side) / (k / 4) for k in (4, 8, 16, 32, 64))
        cx, cy, rx, ry = rng.uniform((-0.6, -0.6, 0.4, 0.4), (0.6, 0.6, 1.3, 1.3))
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        frames[i] = np.clip((0.5 + 0.25 * texture) * inside, 0, 1)
    return frames


def _smooth(
    noise: np.ndarray[tuple[int, int], np.dtype[np.float64]], side: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Interpolate (k, k) noise linearly to (side, side)."""
    k = len(noise)
    position = np.linspace(0, k - 1, side)[:, None]
    hat = np.maximum(0, 1 - np.abs(position - np.arange(k)))
    return hat @ noise @ hat.T  # type: ignore[no-any-return]
