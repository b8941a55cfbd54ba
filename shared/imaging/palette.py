"""Palette colour to luma, before any averaging: the mean of two palette indices has no meaning.

Source: PS3.3 C.7.6.3.1.5 (descriptor), C.7.6.3.1.6 (data), C.7.9.2 (segmented data).
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from shared.imaging.read import attribute
from shared.imaging.reasons import Reason, undecodable
from shared.imaging.tone import Lut, lut_of

_WEIGHTS = {"Red": 0.299, "Green": 0.587, "Blue": 0.114}  # ITU-R BT.601


def palette_luma(values: NDArray[Any], dataset: Dataset, *, signed: bool) -> NDArray[np.uint8]:
    """Return (rows, cols) luma in 0..255.

    Raises: `Rejected` if a palette is missing or malformed.
    """
    tables = {colour: _table(dataset, colour, signed=signed) for colour in _WEIGHTS}
    size = max(len(table.entries) for table in tables.values())
    mixed = np.zeros(size, dtype=np.float32)
    for colour, table in tables.items():
        padded = np.pad(table.entries, (0, size - len(table.entries)), mode="edge")
        mixed += np.float32(_WEIGHTS[colour] * 255 / table.top) * padded
    first = tables["Red"].first
    index = np.clip(values.astype(np.int32) - first, 0, size - 1)
    return np.rint(mixed).astype(np.uint8)[index]


def _table(dataset: Dataset, colour: str, *, signed: bool) -> Lut:
    descriptor = attribute(dataset, f"{colour}PaletteColorLookupTableDescriptor")
    data = attribute(dataset, f"{colour}PaletteColorLookupTableData")
    if data is None:
        segmented = attribute(dataset, f"Segmented{colour}PaletteColorLookupTableData")
        data = expand_segments(segmented) if isinstance(segmented, bytes) else None
    lut = lut_of(descriptor, data, signed=signed)
    if lut is None:
        raise undecodable(Reason.GEOMETRY)
    return lut


def expand_segments(data: bytes) -> bytes | None:
    """Expand discrete and linear 16-bit segments to at most 65,536 entries; None for indirect or malformed segments."""
    words = struct.unpack(f"<{len(data) // 2}H", data[: len(data) // 2 * 2])
    out: list[int] = []
    pos = 0
    while pos + 2 < len(words) + 1 and pos + 1 < len(words) and len(out) <= 65536:
        kind, length = words[pos], words[pos + 1]
        pos += 2
        if kind == 0 and pos + length <= len(words):
            out.extend(words[pos : pos + length])
            pos += length
        elif kind == 1 and pos < len(words) and out:
            start, end = out[-1], words[pos]
            out.extend(round(start + (end - start) * (i + 1) / length) for i in range(length))
            pos += 1
        else:
            return None
    return struct.pack(f"<{len(out[:65536])}H", *out[:65536])
