"""An encoder without a network: real vectors at almost no cost, for measuring overhead and for quick tests.

A seeded random projection of the 32 x 32 box means. Similar images get similar vectors (Johnson & Lindenstrauss),
which is enough for a search but says nothing about the content.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from shared.encoder.cards import WEIGHTS, Weights, sha256_of
from shared.errors import Invalid
from shared.types import Embeddings, Pixels

NULL = "null"
DIM = 64
_GRID = 32
_FLOOR = 0.1  #: weight of a constant input, so that the vector of a uniform image is not zero


def save(path: Path, dim: int, seed: int, note: str) -> Weights:
    """Write the projection to `path`."""
    projection = np.random.default_rng(seed).standard_normal((_GRID * _GRID + 1, dim), dtype=np.float32)
    save_file({"projection": projection / np.sqrt(np.float32(dim))}, path)
    return Weights(source=f"random:{seed}", sha256=sha256_of(path), trained=False, seed=seed, note=note)


class Projection:
    """Map pixels (n, side, side) to (n, dim)."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._matrix: NDArray[np.float32] = load_file(folder / WEIGHTS)["projection"]
        if self._matrix.shape != (_GRID * _GRID + 1, dim):
            raise Invalid("the null encoder's projection is of another shape than its card says")

    def __call__(self, pixels: Pixels) -> Embeddings:
        boxes = _boxes(pixels).reshape(len(pixels), -1)
        boxes -= boxes.mean(1, keepdims=True)
        inputs = np.concatenate([boxes, np.full((len(boxes), 1), _FLOOR, np.float32)], axis=1)
        return inputs @ self._matrix


def _boxes(pixels: Pixels) -> Pixels:
    """Return means over a 32 x 32 grid; if 32 does not divide the side, box sizes differ by one pixel."""
    edges = np.arange(_GRID) * pixels.shape[1] // _GRID
    sizes = np.diff(np.append(edges, pixels.shape[1])).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(pixels, edges, axis=1), edges, axis=2)
    return sums / (sizes[:, None] * sizes)  # type: ignore[no-any-return]
