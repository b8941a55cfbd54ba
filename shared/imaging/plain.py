"""PNG and JPEG files: they have no DICOM tags, so the header is made from their bytes."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from shared.errors import Rejected
from shared.imaging.frames import Canonical, luma
from shared.imaging.header import plain_header
from shared.imaging.limits import Limits
from shared.imaging.preprocess import box_mean, reduction
from shared.imaging.reasons import Reason, failed, hostile, undecodable
from shared.imaging.recipe import Recipe
from shared.imaging.tone import Tone, apply_tone
from shared.types import Header

#: What turns a picture's pixels upright, by the orientation in its Exif part. Source: TIFF 6.0, tag 274. All are views:
#: a copy would count towards the child's memory.
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


def plain_kind(buffer: memoryview) -> str | None:
    start = bytes(buffer[:8])
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


@dataclass(frozen=True, slots=True)
class Picture:
    image: Image.Image
    kind: str
    header: Header  #: of the upright picture
    turn: Callable[[NDArray[Any]], NDArray[Any]]


def open_picture(buffer: memoryview, kind: str, digest: bytes, limits: Limits) -> Picture:
    """Read the header of a PNG or JPEG; no pixels yet.

    Raises: `Rejected`: hostile if over a limit, failed if it cannot be read.
    """
    if len(buffer) > limits.file_bytes:
        raise hostile(Reason.FILE_SIZE)
    Image.MAX_IMAGE_PIXELS = limits.frame_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(buffer), formats=(kind.upper(),))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise hostile(Reason.SIDE) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise failed(Reason.NOT_A_STUDY_OBJECT) from None
    if max(image.size) > limits.side:
        raise hostile(Reason.SIDE)
    orientation = _orientation(image)
    columns, rows = image.size if orientation < 5 else image.size[::-1]
    deep = image.mode.startswith("I")
    photometric = "MONOCHROME2" if deep or image.mode in ("1", "L", "LA") else "RGB"
    bits = 16 if deep else 1 if image.mode == "1" else 8
    return Picture(
        image,
        kind,
        plain_header(digest, kind=kind, rows=rows, columns=columns, bits=bits, photometric=photometric),
        _TURNS[orientation],
    )


def _orientation(image: Image.Image) -> int:
    """Return the Exif orientation, 1 to 8; 1 also if the part that stands before the pixels is damaged or has none."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # not `getexif`: it decodes a PNG to look behind the pixels too
        value = exif.get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # as for pixels: Pillow raises errors of many classes
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def canonical_picture(picture: Picture, recipe: Recipe) -> Canonical:
    """Decode, turn upright, reduce and scale to [0, 1].

    8-bit values are scaled by 255, 16-bit values by their minimum and maximum.

    Raises: `Rejected` (undecodable) for damaged data.
    """
    image, header = picture.image, picture.header
    factor = reduction(header.rows, header.columns, recipe)
    full = image.size
    try:
        if picture.kind == "jpeg":
            image.draft("L", (full[0] // factor, full[1] // factor))
        image.load()
        reduced = max(1, round(full[0] / image.size[0]))
        if image.mode in ("1", "P", "LA", "PA", "CMYK", "YCbCr", "La"):
            image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        values = picture.turn(np.asarray(image))
    except (Rejected, MemoryError):
        raise
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct and zlib errors
        raise undecodable(Reason.CORRUPT) from None
    if values.ndim == 3:
        values = luma(values[..., :3])
    left = min(max(1, factor // reduced), *values.shape)
    grey = box_mean(values, left, 8 * values.dtype.itemsize)
    tone = Tone(1.0, 0.0, None, None, inverse=False, full=(0.0, 255.0) if values.dtype == np.uint8 else None)
    sample = values[::left, ::left][: grey.shape[0], : grey.shape[1]]
    return Canonical(1, apply_tone(grey, tone, None), sample, tone.kind, reduced)
