"""Transform stored values to [0, 1] with bright meaning dense: modality transform, value of interest, polarity.

Source: PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation).
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from shared.errors import Invalid
from shared.imaging import views
from shared.imaging.geometry import Geometry
from shared.imaging.read import attribute, text, word
from shared.imaging.reasons import Reason, undecodable
from shared.types import Frame

_LEAST, _MOST = 1e-9, 1e9  #: bounds of a rescale or a window: values beyond them make no picture, and float32 overflows


@dataclass(frozen=True, slots=True)
class Lut:
    first: int  #: the stored value that the first entry maps
    entries: NDArray[np.float32]
    top: float  #: the largest value that an entry may take

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Map values; values outside the table take its first or last entry."""
        index = np.rint(values).astype(np.int64) - self.first
        mapped: NDArray[np.float32] = self.entries[np.clip(index, 0, len(self.entries) - 1)]
        return mapped


@dataclass(frozen=True, slots=True)
class Window:
    center: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True, slots=True)
class Tone:
    """The transforms from one frame's values to brightness."""

    slope: float
    intercept: float
    modality: Lut | None
    voi: Lut | Window | None
    inverse: bool
    full: tuple[float, float] | None  #: range of values without a VOI transform; None: the picture's own range

    @property
    def kind(self) -> str:
        return "none" if self.voi is None else "lut" if isinstance(self.voi, Lut) else "window"

    @property
    def measured(self) -> bool:
        """Whether the range is the picture's minimum and maximum."""
        return self.voi is None and self.full is None


def tone_of(dataset: Dataset, geometry: Geometry, frame: int, *, voi: bool) -> Tone:
    """Read the transforms of a 1-based frame: from its functional groups, else the shared ones, else the top level.

    Raises: `Rejected` for a rescale that is not finite or too large.
    """
    slope, intercept = 1.0, 0.0
    for source in (*views.groups(dataset, "PixelValueTransformationSequence", frame), dataset):
        if (found := _decimal(source, "RescaleSlope")) is not None:
            slope, intercept = found, _decimal(source, "RescaleIntercept") or 0.0
            break
    if not (math.isfinite(slope) and math.isfinite(intercept)) or max(abs(slope), abs(intercept)) > _MOST:
        raise undecodable(Reason.GEOMETRY)
    modality = _first_lut(dataset, "ModalityLUTSequence", signed=geometry.signed)
    inverse = geometry.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape").upper() == "INVERSE"
    plain = geometry.stored == 8 and not geometry.signed and (slope, intercept) == (1.0, 0.0) and modality is None
    below_zero = modality is None and min(slope * end for end in geometry.span) + intercept < 0
    # PS3.3 C.11.2: a VOI transform is defined for grey images only
    chosen = _voi(dataset, frame, signed=below_zero) if voi and geometry.photometric.startswith("MONO") else None
    return Tone(slope, intercept, modality, chosen, inverse, (0.0, 255.0) if plain else None)


def _voi(dataset: Dataset, frame: int, *, signed: bool) -> Lut | Window | None:
    """Read a frame's first VOI LUT or window; `signed` says whether its input may be below zero."""
    for source in (*views.groups(dataset, "FrameVOILUTSequence", frame), dataset):
        if lut := _first_lut(source, "VOILUTSequence", signed=signed):
            return lut
        center, width = _decimal(source, "WindowCenter"), _decimal(source, "WindowWidth")
        function = text(source, "VOILUTFunction").upper()
        function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
        if center is None or width is None:
            continue
        if abs(center) <= _MOST and (1 if function == "LINEAR" else _LEAST) <= width <= _MOST:  # NaN is neither
            return Window(center, width, function)
    return None


def _decimal(dataset: Dataset, keyword: str) -> float | None:
    """Return the number, or the first of several (windows often come in pairs)."""
    value = attribute(dataset, keyword)
    if value is not None and not isinstance(value, (str, int, float)) and hasattr(value, "__getitem__"):
        value = value[0]
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _first_lut(dataset: Dataset, keyword: str, *, signed: bool) -> Lut | None:
    for item in views.items(dataset, keyword):
        lut = lut_of(attribute(item, "LUTDescriptor"), attribute(item, "LUTData"), signed=signed)
        if lut is not None:
            return lut
    return None


def lut_of(descriptor: Any, data: Any, *, signed: bool) -> Lut | None:  # noqa: ANN401 - as pydicom has them
    """Build a table; None if descriptor and data do not fit together.

    Args:
        signed: whether looked-up values are signed; the VR (US or SS) of the file or its reader may differ from it.

    Source: PS3.3 C.11.1.1, C.11.2.1.1: number of entries (0 means 65,536), first value mapped, bits per entry.
    """
    if isinstance(descriptor, bytes) and len(descriptor) == 6:  # an ambiguous VR in implicit files
        descriptor = struct.unpack("<HHH", descriptor)
    if descriptor is None or isinstance(descriptor, (bytes, str)) or len(descriptor) != 3:
        return None
    count, bits = word(int(descriptor[0]), signed=False) or 65536, int(descriptor[2])
    first = word(int(descriptor[1]), signed=signed)
    if isinstance(data, bytes):
        bits = min(bits, 8) if len(data) == count + count % 2 else bits  # one byte each, whatever the descriptor says
        packed = bits <= 8 and len(data) < 2 * count
        data = np.frombuffer(data[: len(data) // 2 * 2], dtype=np.uint8 if packed else np.dtype("<u2"))
    entries = np.atleast_1d(np.asarray(data if data is not None else (), dtype=np.float32))[:count]
    if not 1 <= bits <= 16 or len(entries) < min(count, 2):
        return None
    return Lut(first, entries, max(float((1 << bits) - 1), float(entries.max())))


def apply_window(values: Frame, window: Window) -> Frame:
    """Map the window to [0, 1]; values outside are clipped (LINEAR, LINEAR_EXACT) or approach 0 and 1 (SIGMOID).

    Raises: `Invalid` for a width that the function does not allow.

    Source: PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT).
    """
    center, width = window.center, window.width
    out: Frame
    if window.function == "SIGMOID" and width > 0:
        out = (1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -60, 60)))).astype(np.float32)
        return out
    if window.function == "LINEAR_EXACT" and width > 0:
        low, span = center - width / 2, width
    elif window.function != "SIGMOID" and width >= 1:
        low, span = center - 0.5 - (width - 1) / 2, width - 1
    else:
        raise Invalid("the window width is too small for its function")
    if span == 0:
        return (values > low).astype(np.float32)
    out = np.clip((values - np.float32(low)) * np.float32(1 / span), 0, 1)
    return out


def apply_tone(values: Frame, tone: Tone, background: NDArray[np.bool_] | None) -> Frame:
    """Turn stored values (after the modality LUT, if there is one) into brightness.

    Args:
        values: (rows, cols) float32.
        background: mask of the file's padding (PixelPaddingValue), which becomes 0.
    """
    if tone.modality is None and (tone.slope, tone.intercept) != (1.0, 0.0):
        values = values * np.float32(tone.slope) + np.float32(tone.intercept)
    out: Frame
    if isinstance(tone.voi, Lut):
        out = tone.voi(values) / np.float32(tone.voi.top)
    elif isinstance(tone.voi, Window):
        out = apply_window(values, tone.voi)
    else:
        out = _full_range(values, tone.full, background)
    if tone.inverse:
        out = np.float32(1) - out
    if background is not None:
        out[background] = 0
    return out


def _full_range(values: Frame, full: tuple[float, float] | None, background: NDArray[np.bool_] | None) -> Frame:
    if full is None:
        picture = values if background is None else values[~background]
        full = (float(picture.min()), float(picture.max()))
    low, high = full
    if high <= low:
        return np.zeros_like(values)
    out: Frame = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return out
