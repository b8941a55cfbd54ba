"""Uncompressed pixel data: a view into the file, one frame at a time, copied only where necessary."""

import numpy as np

from shared.imaging.codecs import Plane, Values, cleaned
from shared.imaging.geometry import Geometry
from shared.imaging.read import Opened, unswapped
from shared.imaging.reasons import Reason, undecodable
from shared.imaging.scan import PixelElement


def native_frame(opened: Opened, pixels: PixelElement, geometry: Geometry, number: int) -> Plane:
    """Return a 1-based frame; floating point numbers as float32, infinite where they are beyond its range.

    Raises: `Rejected` if there is less pixel data than the header describes.
    """
    if geometry.allocated == 1:
        return Plane(_bits(opened, pixels, geometry, number), rgb=False)
    size = geometry.frame_bytes
    data = _stored(opened, pixels, geometry, (number - 1) * size, size)
    values = np.frombuffer(data, dtype=_dtype(opened, geometry), count=size * 8 // geometry.allocated)
    values = _arranged(_numbers(values, geometry), geometry)
    return Plane(values, rgb=geometry.photometric == "RGB", bits=geometry.stored)


def _stored(opened: Opened, pixels: PixelElement, geometry: Geometry, start: int, size: int) -> memoryview | bytes:
    """Return `size` bytes of pixel data from `start`; swapped words (PS3.5 A.3) of 1- or 8-bit pixels are reordered.

    Raises: `Rejected` if the element or the file holds fewer bytes.
    """
    first = pixels.offset + start
    if first + size > min(pixels.offset + pixels.length, len(opened.buffer)):
        raise undecodable(Reason.SHORT)
    if opened.little or geometry.allocated > 8 or pixels.vr != b"OW":
        return opened.buffer[first : first + size]
    odd = start % 2  # the bytes may begin, and end, within a word
    words = unswapped(opened.buffer[first - odd : first + size + (odd + size) % 2])
    if len(words) < odd + size:  # the file ends within a word
        raise undecodable(Reason.SHORT)
    return words[odd : odd + size]


def _dtype(opened: Opened, geometry: Geometry) -> np.dtype[np.generic]:
    kind = "f" if geometry.floating else "i" if geometry.signed else "u"
    return np.dtype(f"{'<' if opened.little else '>'}{kind}{geometry.allocated // 8}")


def _numbers(values: Values, geometry: Geometry) -> Values:
    if geometry.floating:
        return single(values)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return cleaned(values, geometry)


def single(numbers: Values | float) -> Values:
    """Return float32; numbers beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(numbers).astype(np.float32)


def _arranged(values: Values, geometry: Geometry) -> Values:
    rows, columns = geometry.rows, geometry.columns
    if geometry.subsampled:  # Y1 Y2 Cb Cr: only the luma is needed
        return values.reshape(-1, 4)[:, :2].reshape(rows, columns)
    if geometry.samples == 1:
        return values.reshape(rows, columns)
    if geometry.planar:
        return np.moveaxis(values.reshape(3, rows, columns), 0, -1)
    return values.reshape(rows, columns, 3)


def _bits(opened: Opened, pixels: PixelElement, geometry: Geometry, number: int) -> Values:
    first = (number - 1) * geometry.pixels
    start, end = first // 8, -(-(first + geometry.pixels) // 8)
    data = _stored(opened, pixels, geometry, start, end - start)
    unpacked = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    return unpacked[first % 8 : first % 8 + geometry.pixels].reshape(geometry.rows, geometry.columns)
