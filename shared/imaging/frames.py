"""The canonical frames of a data set: decoded one at a time, reduced, in [0, 1], bright meaning dense."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from shared.imaging.codecs import Plane, decode_frame
from shared.imaging.fragments import Encapsulated
from shared.imaging.geometry import Geometry
from shared.imaging.limits import Limits
from shared.imaging.native import native_frame, single
from shared.imaging.palette import palette_luma
from shared.imaging.preprocess import box_mean, box_mean_within, reduction
from shared.imaging.read import NATIVE, Opened, attribute, word
from shared.imaging.reasons import Reason, empty, undecodable
from shared.imaging.recipe import Recipe, chosen_frames
from shared.imaging.scan import UNDEFINED
from shared.imaging.tone import Tone, apply_tone, tone_of
from shared.types import Frame

Loader = Callable[[int, int], Plane]  #: (1-based frame number, permitted reduction)


@dataclass(frozen=True, slots=True)
class Canonical:
    number: int  #: 1-based
    frame: Frame
    sample: NDArray[Any]  #: a regular sample of the stored values, after the modality LUT
    voi: str
    reduced: int


def canonical_frames(opened: Opened, geometry: Geometry, recipe: Recipe, limits: Limits) -> Iterator[Canonical]:
    """Yield the chosen frames of a DICOM image.

    Raises: `Rejected` if there are no pixels, or no permitted decoder reads them.
    """
    load, padding = _loader(opened, geometry, limits), _padding(opened, geometry)
    for number in chosen_frames(geometry.frames, recipe.frames):
        tone = tone_of(opened.dataset, geometry, number, voi=recipe.voi == "apply")
        factor = reduction(geometry.rows, geometry.columns, recipe)
        # a table is not linear: values must be looked up before they are averaged
        exact = tone.modality is not None or geometry.photometric == "PALETTE COLOR"
        # a decoder's average of picture and padding is not a picture value, and would widen a measured range
        exact = exact or (padding is not None and tone.measured)
        plane = load(number, 1 if exact else factor)
        frame, sample = _reduced(plane, _grey(plane, opened, geometry, tone), factor, padding=padding, tone=tone)
        yield Canonical(number, frame, sample, tone.kind, plane.reduced)


def _loader(opened: Opened, geometry: Geometry, limits: Limits) -> Loader:
    pixels = opened.pixels
    if pixels is None:
        raise empty(Reason.NO_PIXEL_DATA)
    if opened.transfer_syntax in NATIVE:
        if pixels.length == UNDEFINED:
            raise undecodable(Reason.MISMATCH)
        if pixels.length > len(opened.buffer):
            raise undecodable(Reason.SHORT)
        return lambda number, _factor: native_frame(opened, pixels, geometry, number)
    if pixels.length != UNDEFINED:
        raise undecodable(Reason.MISMATCH)
    stream = Encapsulated(opened.buffer, pixels, opened.dataset, geometry.frames, limits)
    return lambda number, factor: decode_frame(stream.frame(number), opened.transfer_syntax, geometry, factor)


def _grey(plane: Plane, opened: Opened, geometry: Geometry, tone: Tone) -> NDArray[Any]:
    values = plane.values
    if geometry.floating:  # `_picture` leaves out what is no number, but NaN times 0 is NaN
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if geometry.photometric == "PALETTE COLOR":
        return palette_luma(values, opened.dataset, signed=geometry.signed)
    if values.ndim == 3:
        values = luma(values) if plane.rgb else values[..., 0]
    return tone.modality(values) if tone.modality is not None else values


def luma(values: NDArray[Any]) -> NDArray[Any]:
    """Return the luma of (rows, cols, 3), same integer type.

    Source: ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, in 1/65536.
    """
    wide: type[Any] = np.uint32 if values.dtype.itemsize == 1 else np.float64
    mixed = np.full(values.shape[:2], 32768, wide)
    for sample, weight in enumerate((19595, 38470, 7471)):
        weighted = values[..., sample].astype(wide)  # in place from here on: a large picture's copies count
        weighted *= weight
        mixed += weighted
    mixed //= 65536
    out: NDArray[Any] = mixed.astype(values.dtype)
    return out


def _padding(opened: Opened, geometry: Geometry) -> tuple[float, float] | None:
    """Return the least and greatest stored value of the padding; either attribute may hold the greater one.

    Source: PS3.3 C.7.5.1.1.2; C.7.6.24 and C.7.6.25 for floating point numbers, which have attributes of their own.
    """
    if geometry.samples != 1:
        return None
    kind = opened.pixels.keyword.removesuffix("PixelData") if opened.pixels else ""
    value = _stored_value(opened.dataset, f"{kind}PixelPaddingValue", geometry)
    limit = _stored_value(opened.dataset, f"{kind}PixelPaddingRangeLimit", geometry)
    if value is None:
        return None
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _stored_value(dataset: Dataset, keyword: str, geometry: Geometry) -> float | None:
    value = attribute(dataset, keyword)
    if geometry.floating:  # single precision, as the frame has it; NaN is never a picture value, see `_picture`
        return float(single(value)) if isinstance(value, float) and not math.isnan(value) else None
    if isinstance(value, bytes) and len(value) == 2:  # an ambiguous VR in implicit files
        value = int.from_bytes(value, "little")
    return word(value, signed=geometry.signed) if isinstance(value, int) else None


def _reduced(
    plane: Plane, grey: NDArray[Any], factor: int, *, padding: tuple[float, float] | None, tone: Tone
) -> tuple[Frame, NDArray[Any]]:
    factor = min(max(1, factor // plane.reduced), *grey.shape)
    boxes = tuple(slice(side // factor * factor) for side in grey.shape)
    grey, bits = grey[boxes], min(max(plane.bits, 8), grey.dtype.itemsize * 8)
    sample = grey[::factor, ::factor]
    picture = _picture(plane.values[boxes], padding)
    if picture is None:
        values, background = box_mean(grey, factor, bits), None
    else:
        values, background = box_mean_within(grey, picture, factor, bits)
    frame = np.ascontiguousarray(apply_tone(values, tone, background), dtype=np.float32)
    return frame, (sample * 0 if tone.slope == 0 else sample)


def _picture(values: NDArray[Any], padding: tuple[float, float] | None) -> NDArray[np.bool_] | None:
    """Return the mask of stored values that are numbers and not padding; None if that is true of all, or of none."""
    floating = values.dtype.kind == "f"
    if padding is not None:
        low, high = padding
        picture: NDArray[np.bool_] = values < low
        picture |= values > high
        if floating:
            picture &= np.isfinite(values)
    elif floating:
        picture = np.isfinite(values)
    else:
        return None
    return picture if picture.any() and not picture.all() else None
