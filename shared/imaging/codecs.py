"""Decode codestreams to integer planes. Permissively licensed decoders only, each for the formats it decodes best.

Runs in the sandbox child only. The size that a codestream declares is checked against the header before a decoder
may allocate memory for it.
"""

import io
import struct
import zlib  # noqa: F401 - before gdcm, see child.py
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gdcm
import numpy as np
import openjpeg.utils
from numpy.typing import NDArray
from PIL import Image
from rle.rle import decode_frame as rle_decode_frame

from shared.errors import Rejected
from shared.imaging.geometry import Geometry
from shared.imaging.reasons import Reason, hostile, undecodable

try:
    import jpeg_ls
except ImportError:  # pyjpegls has no wheels for Python 3.14
    jpeg_ls = None

_ROOT = "1.2.840.10008.1.2."
JPEG = frozenset((_ROOT + "4.50", _ROOT + "4.51"))
JPEG_LOSSLESS = frozenset((_ROOT + "4.57", _ROOT + "4.70"))
JPEG_LS = frozenset((_ROOT + "4.80", _ROOT + "4.81"))
JPEG_2000 = frozenset((_ROOT + "4.90", _ROOT + "4.91"))
HTJ2K = frozenset((_ROOT + "4.201", _ROOT + "4.202", _ROOT + "4.203"))
RLE = frozenset((_ROOT + "5",))

Values = NDArray[Any]  #: (rows, cols) or (rows, cols, 3), integers


@dataclass(frozen=True, slots=True)
class Plane:
    values: Values
    rgb: bool  #: three samples are red, green, blue; if False, the first sample is the luma
    reduced: int = 1  #: factor by which the plane is smaller than the header says
    bits: int = 32  #: bits of an integer that may be in use; a stream may use more than the header says


def decode_frame(data: bytes, syntax: str, geometry: Geometry, factor: int) -> Plane:
    """Decode one frame, at a resolution reduced by up to `factor` if the codec supports it.

    Raises: `Rejected`: no permitted decoder, a codestream of another size, damaged data, or out of memory.
    """
    try:
        if syntax in JPEG:
            return _jpeg(data, syntax, geometry, factor)
        if syntax in JPEG_LOSSLESS:
            return _gdcm(data, syntax, geometry, _expect_size(jpeg_size(data), geometry))
        if syntax in JPEG_LS:
            return _jpeg_ls(data, syntax, geometry)
        if syntax in JPEG_2000 or syntax in HTJ2K:
            return _jpeg_2000(data, geometry, factor if syntax in JPEG_2000 else 1)
        if syntax in RLE:
            return _rle(data, geometry)
    except (Rejected, MemoryError):
        raise
    except BaseException as error:  # decoders raise any class (a Rust panic is not an Exception)
        if "MemoryError" in str(error) or "bad_alloc" in str(error) or "allocate" in str(error):
            raise hostile(Reason.MEMORY) from None
        raise undecodable(Reason.CORRUPT) from None
    raise undecodable(Reason.NO_DECODER)


@dataclass(frozen=True, slots=True)
class StreamSize:
    rows: int
    columns: int
    samples: int
    precision: int
    levels: int = 0  #: resolution levels that decoding may skip (JPEG 2000)
    signed: bool = False


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and place of each segment of a JPEG or JPEG-LS stream up to the first scan (ITU-T T.81 B.1.1).

    Raises: `Rejected` if anything else stands between them, or there is no scan.
    """
    pos = 2
    if data[:2] != b"\xff\xd8":
        raise undecodable(Reason.MISMATCH)
    while pos + 10 <= len(data):
        if data[pos] != 0xFF:
            raise undecodable(Reason.CORRUPT)
        marker = data[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        yield marker, pos
        if marker == 0xDA:
            return
        pos += 2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[pos + 2 : pos + 4], "big")
    raise undecodable(Reason.CORRUPT)


def jpeg_size(data: bytes) -> StreamSize:
    """Read the frame header of a JPEG or JPEG-LS stream (ITU-T T.81 B.2.2)."""
    for marker, pos in _segments(data):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", data, pos + 4)
            return StreamSize(rows, columns, samples, precision)
    raise undecodable(Reason.CORRUPT)


def jpeg_2000_size(data: bytes) -> StreamSize:
    """Read SIZ and COD of a JPEG 2000 codestream, bare or in a JP2 wrapper (ITU-T T.800 A.5.1, A.6.1)."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(data) < start + 45:
        raise undecodable(Reason.MISMATCH)
    width, height, left, top = struct.unpack_from(">IIII", data, start + 8)
    samples, depth = struct.unpack_from(">HB", data, start + 40)
    levels, pos = 0, start + 4 + int.from_bytes(data[start + 4 : start + 6], "big")
    while pos + 10 <= len(data) and data[pos] == 0xFF and data[pos + 1] != 0x90:
        if data[pos + 1] == 0x52:
            levels = data[pos + 9]
            break
        pos += 2 + int.from_bytes(data[pos + 2 : pos + 4], "big")
    return StreamSize(height - top, width - left, samples, (depth & 0x7F) + 1, levels, signed=depth & 0x80 != 0)


def _expect_size(size: StreamSize, geometry: Geometry) -> StreamSize:
    if (size.rows, size.columns, size.samples) != (geometry.rows, geometry.columns, geometry.samples):
        raise undecodable(Reason.MISMATCH)
    if size.precision > 8 >= geometry.stored:
        raise undecodable(Reason.MISMATCH)
    return size


def _jpeg(data: bytes, syntax: str, geometry: Geometry, factor: int) -> Plane:
    size = _expect_size(jpeg_size(data), geometry)
    if size.precision != 8:
        if geometry.allocated != 16 or geometry.samples != 1:
            raise undecodable(Reason.NO_DECODER)
        return _gdcm(data, syntax, geometry, size)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        plain_rgb = geometry.photometric == "RGB" and not {"adobe", "jfif"} & image.info.keys()
        full = image.size
        if geometry.samples == 1 or not plain_rgb:
            image.draft("L", (full[0] // factor, full[1] // factor))
            image.load()
            values = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            return Plane(values, rgb=values.ndim == 3, reduced=max(1, round(full[0] / image.size[0])))
        image.draft("YCbCr", full)  # returns the components unconverted
        return Plane(np.asarray(image), rgb=True)


def _jpeg_2000(data: bytes, geometry: Geometry, factor: int) -> Plane:
    size = _expect_size(jpeg_2000_size(data), geometry)
    rgb = geometry.photometric in ("RGB", "YBR_RCT", "YBR_ICT")
    wrapped = geometry.signed and not size.signed  # two's complement in an unsigned stream: its averages are wrong
    steps = 0 if wrapped else min(factor.bit_length() - 1, size.levels)
    if not (size.precision <= 16 if size.samples == 1 else size.precision == 8 and rgb):
        steps = 0
    for fewer in range(steps, 0, -1):
        reduced = _reduced_jpeg_2000(data, fewer, size)
        if reduced is not None:
            return Plane(reduced, rgb=size.samples == 3, reduced=1 << fewer)
    values = openjpeg.utils.decode(io.BytesIO(data))
    return Plane(sign_extended(values, geometry.stored) if wrapped else values, rgb=rgb)


def _reduced_jpeg_2000(data: bytes, steps: int, size: StreamSize) -> Values | None:
    """Decode without the `steps` finest levels; None if Pillow refuses or returns another shape."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as image:
            image.reduce = steps  # type: ignore[method-assign, assignment]
            image.load()
            values = np.asarray(image)
    except MemoryError:
        raise
    except Exception:  # Pillow refuses a size that it rounds otherwise than OpenJPEG; the full decode decides
        return None
    expected = tuple(-(-side // (1 << steps)) for side in (size.rows, size.columns))
    if values.shape[:2] != expected or (values.ndim == 3) != (size.samples == 3):
        return None
    if size.samples == 3:
        return values
    # Pillow scales to 8 or 16 bits and shifts signed values up by half of their range
    unscaled = values >> ((8 if size.precision <= 8 else 16) - size.precision)
    if size.signed:
        return unscaled.astype(np.int32) - (1 << (size.precision - 1))
    return unscaled


def _jpeg_ls(data: bytes, syntax: str, geometry: Geometry) -> Plane:
    size = _expect_size(jpeg_size(data), geometry)
    if b"\xff\xd9" not in data:  # CharLS refuses it too, after four seconds of processor time on a small stream
        raise undecodable(Reason.CORRUPT)
    allocated = 8 if size.precision <= 8 else 16
    if jpeg_ls is not None:
        buffer, info = jpeg_ls.decode_pixel_data(data)
        flat = np.frombuffer(buffer, np.dtype(f"<u{allocated // 8}"))
        values = _shaped(flat, geometry, planar=info["interleave_mode"] == 0)
    elif size.precision >= 8:  # GDCM takes twice as long, and interleaves the samples always
        stream = replace(geometry, allocated=allocated, stored=size.precision, signed=False, planar=False)
        values = _gdcm(data, syntax, stream, size).values
    else:  # GDCM refuses most of these
        raise undecodable(Reason.NO_DECODER)
    return Plane(sign_extended(values, size.precision) if geometry.signed else values, rgb=_is_rgb(geometry))


def _rle(data: bytes, geometry: Geometry) -> Plane:
    if geometry.allocated not in (8, 16, 32):
        raise undecodable(Reason.NO_DECODER)
    raw = rle_decode_frame(data, geometry.pixels, geometry.allocated, "<")
    flat = np.frombuffer(raw, dtype=np.dtype(f"<{'i' if geometry.signed else 'u'}{geometry.allocated // 8}"))
    values = _shaped(cleaned(flat, geometry), geometry, planar=True)
    return Plane(values, rgb=_is_rgb(geometry), bits=geometry.stored)


def _gdcm(data: bytes, syntax: str, geometry: Geometry, size: StreamSize) -> Plane:
    """Decode JPEG lossless, and JPEG extended with 12 bits, which no other permissive decoder reads, and JPEG-LS."""
    if geometry.allocated not in (8, 16) or not 2 <= size.precision <= 16:  # T.81 B.2.2; GDCM crashes on others
        raise undecodable(Reason.MISMATCH)
    deque(_segments(data), maxlen=0)  # GDCM ends the process over stray bytes between segments
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((geometry.columns, geometry.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(geometry.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if geometry.samples > 1:
        image.SetPlanarConfiguration(int(geometry.planar))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    stored, signed = geometry.stored, int(geometry.signed)
    image.SetPixelFormat(gdcm.PixelFormat(geometry.samples, geometry.allocated, stored, stored - 1, signed))
    raw = image.GetBuffer()  # raises or returns None if it cannot read the stream
    if raw is None:
        raise undecodable(Reason.CORRUPT)
    kind = "i" if geometry.signed else "u"
    flat = np.frombuffer(raw.encode("utf-8", "surrogateescape"), dtype=np.dtype(f"<{kind}{geometry.allocated // 8}"))
    return Plane(_shaped(flat, geometry, planar=geometry.planar), rgb=_is_rgb(geometry))


def _shaped(flat: Values, geometry: Geometry, *, planar: bool) -> Values:
    rows, columns, samples = geometry.rows, geometry.columns, geometry.samples
    if flat.size < rows * columns * samples:
        raise undecodable(Reason.SHORT)
    flat = flat[: rows * columns * samples]
    if samples == 1:
        return flat.reshape(rows, columns)
    if planar:
        return np.moveaxis(flat.reshape(samples, rows, columns), 0, -1)
    return flat.reshape(rows, columns, samples)


def cleaned(values: Values, geometry: Geometry) -> Values:
    """Return the stored values without the bits above and below them, where old files keep overlays."""
    if geometry.stored >= geometry.allocated:
        return values
    if geometry.signed:
        half = 1 << (geometry.stored - 1)
        if values.min() >= -half and values.max() < half:
            return values
        return sign_extended(values >> geometry.below, geometry.stored)
    mask = (1 << geometry.stored) - 1
    return values if values.max() <= mask else (values >> geometry.below) & values.dtype.type(mask)


def sign_extended(values: Values, bits: int) -> Values:
    """Read the low `bits` of unsigned integers as two's complement."""
    wide = values.astype(np.int32)
    half = 1 << (bits - 1)
    return ((wide & ((1 << bits) - 1)) ^ half) - half


def _is_rgb(geometry: Geometry) -> bool:
    return geometry.photometric == "RGB"
