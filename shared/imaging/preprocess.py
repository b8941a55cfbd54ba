"""The steps of the recipe: reduce, crop, mirror, pad, resize. Pure functions of arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.answers import THUMBNAIL_SIDE
from shared.imaging.recipe import Recipe
from shared.types import Frame, Header, PixelStats, Thumbnail

_MIRRORED = frozenset(("MG", "OT"))  #: what may show a chest wall: mammograms, and pictures of unknown modality


def reduction(rows: int, columns: int, recipe: Recipe) -> int:
    """Return the integer factor by which a picture may be reduced before any other step.

    The shorter side keeps at least twice the input size, or three times if the recipe crops. The final resize then
    still averages, and the discarded detail could not have been seen in the input.
    """
    keep = recipe.size * (2 if recipe.crop == "none" else 3)
    return max(1, min(rows, columns) // keep)


def box_mean(values: NDArray[Any], factor: int, bits: int) -> Frame:
    """Average factor x factor boxes; up to factor - 1 rows and columns at the far edges are dropped.

    Args:
        values: (rows, cols), integers or floats.
        bits: number of an integer's bits in use; small sums stay in 16 bits, which makes this fast.
    """
    mean = _box_sum(values, factor, bits)
    if factor > 1:
        mean *= np.float32(1 / factor**2)
    return mean


def box_mean_within(
    values: NDArray[Any], picture: NDArray[np.bool_], factor: int, bits: int
) -> tuple[Frame, NDArray[np.bool_]]:
    """Average the `picture` pixels of each box, as `box_mean`; return also the mask of boxes without any (mean 0)."""
    pixels = _box_sum(picture, factor, 1)
    mean = _box_sum(values * picture, factor, bits)
    mean /= np.maximum(pixels, 1)
    return mean, pixels == 0


def _box_sum(values: NDArray[Any], factor: int, bits: int) -> Frame:
    if factor == 1:
        return values.astype(np.float32)
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    strips = values[: rows * factor, : columns * factor].reshape(rows, factor, columns * factor)
    accumulator = _accumulator(values.dtype, bits, factor)
    sums = strips.sum(axis=1, dtype=accumulator)
    total = sums[:, ::factor].copy()
    for offset in range(1, factor):
        total += sums[:, offset::factor]
    out: Frame = total.astype(np.float32)
    return out


def _accumulator(dtype: np.dtype[Any], bits: int, factor: int) -> type[np.number[Any]]:
    grown = bits + 2 * (factor - 1).bit_length()
    if dtype.kind == "f":
        return np.float32
    if dtype.kind in "bu":
        return np.uint16 if grown <= 16 else np.uint32 if grown <= 32 else np.float64
    return np.int32 if grown <= 32 else np.float64


def breast_box(frame: Frame) -> tuple[slice, slice]:
    """Return the rows and columns that are not background; small bright marks at the border do not count."""
    level = float(frame[::4, ::4].min()) + 0.05 * float(np.ptp(frame[::4, ::4]))
    filled = frame > level
    return _extent(filled.mean(axis=1)), _extent(filled.mean(axis=0))


def _extent(share: NDArray[np.floating[Any]]) -> slice:
    """Return the longest run of lines of which at least a twentieth is filled; all lines if there is none."""
    lines = np.concatenate(([0], (share >= 0.05).astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(lines))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return slice(0, len(share))
    longest = int(np.argmax(ends - starts))
    return slice(int(starts[longest]), int(ends[longest]))


def wants_mirror(frame: Frame, header: Header, *, at_right: bool | None = None) -> bool:
    """Return whether the chest wall is on the right: by `at_right`, else by laterality, else by the brighter half.

    Args:
        at_right: the side by the file's patient orientation; None if the file does not state it.
    """
    if header.modality not in _MIRRORED:
        return False
    if at_right is not None:
        return at_right
    if header.laterality in ("L", "R"):
        return header.laterality == "R"
    half = frame.shape[1] // 2
    return float(frame[:, -half:].sum()) > float(frame[:, :half].sum())


def cut(frame: Frame, recipe: Recipe, *, mirror: bool) -> Frame:
    """Return (size, size) in [0, 1]: cropped, mirrored, padded and resized as the recipe says."""
    if recipe.crop == "breast":
        frame = frame[breast_box(frame)]
    if mirror:
        frame = frame[:, ::-1]
    if recipe.pad == "square":
        frame = _squared(frame, at_left=recipe.mirror == "left")
    return np.clip(_resized(frame, (recipe.size, recipe.size)), 0, 1)


def _squared(frame: Frame, *, at_left: bool) -> Frame:
    """Pad with background: evenly, or with the chest wall kept at the left edge."""
    rows, columns = frame.shape
    side = max(rows, columns)
    out = np.zeros((side, side), dtype=np.float32)
    top, left = (side - rows) // 2, 0 if at_left else (side - columns) // 2
    out[top : top + rows, left : left + columns] = frame
    return out


def _resized(frame: Frame, size: tuple[int, int]) -> Frame:
    """Resize to (rows, cols): bilinear, with averaging when it shrinks."""
    rows, columns = size
    picture = Image.fromarray(np.ascontiguousarray(frame, dtype=np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float32)


def thumbnail(frame: Frame) -> Thumbnail:
    """Return the whole picture in 8-bit grey for display, the longest side at most 256 pixels."""
    rows, columns = frame.shape
    scale = min(1.0, THUMBNAIL_SIDE / max(rows, columns))
    grey = Image.fromarray((frame * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(grey.resize(size, Image.Resampling.BILINEAR), dtype=np.uint8)


def pixel_stats(frame: Frame, sample: NDArray[Any]) -> PixelStats:
    """Measure a canonical frame and a sample of the stored values that it came from.

    Args:
        frame: (rows, cols) in [0, 1].
        sample: stored values at regular steps; one plane.
    """
    levels = np.bincount((frame * np.float32(65535)).astype(np.uint16).ravel(), minlength=1)
    steps = np.cumsum(levels)
    low, high = (int(np.searchsorted(steps, share * steps[-1])) for share in (0.01, 0.99))
    distinct, content = _values(sample)
    return PixelStats(spread=(high - low) / 65535, distinct=distinct, content=content, noise=noise_share(frame))


def _values(sample: NDArray[Any]) -> tuple[int, float]:
    """Return the number of different values, and the share of pixels that do not have the most common value."""
    if sample.dtype.kind in "iu" and (span := int(sample.max()) - int(low := sample.min())) < 65536:
        counts = np.bincount((sample.astype(np.int32) - np.int32(low)).ravel(), minlength=span + 1)
    else:
        counts = np.unique(sample, return_counts=True)[1]
    return min(int(np.count_nonzero(counts)), 65536), 1.0 - float(counts.max()) / sample.size


def noise_share(frame: Frame) -> float:
    """Return the share of the variance that a pixel's neighbours do not explain: 1 is pure noise.

    One minus the correlation of neighbours, down and across. The smaller of the two is returned, so that a pattern
    of lines does not count as noise.
    """
    variance = float(frame.var())
    if variance <= 1e-12 or min(frame.shape) < 2:
        return 0.0
    down = np.square(frame[1:] - frame[:-1]).mean()
    across = np.square(frame[:, 1:] - frame[:, :-1]).mean()
    return float(min(1.0, min(down, across) / (2 * variance)))
