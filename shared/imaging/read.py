"""Read a data set from bytes, within limits: this module measures it before a library parses it."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from shared.errors import Rejected
from shared.imaging.limits import Limits
from shared.imaging.reasons import Reason, empty, failed, hostile
from shared.imaging.scan import Layout, PixelElement, Scanner, looks_explicit

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
NATIVE = frozenset((IMPLICIT_LE, EXPLICIT_LE, DEFLATED, EXPLICIT_BE))

_KEYWORDS = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate Modality PresentationIntentType "
    "Manufacturer BodyPartExamined ViewPosition PatientID IssuerOfPatientID StudyInstanceUID SeriesInstanceUID "
    "Laterality ImageLaterality PatientOrientation SamplesPerPixel PhotometricInterpretation PlanarConfiguration "
    "NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "FloatPixelPaddingValue FloatPixelPaddingRangeLimit DoubleFloatPixelPaddingValue DoubleFloatPixelPaddingRangeLimit "
    "PixelPaddingRangeLimit BurnedInAnnotation BreastImplantPresent RescaleIntercept RescaleSlope ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape RedPaletteColorLookupTableDescriptor "
    "GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData "
    "GreenPaletteColorLookupTableData BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData ViewCodeSequence "
    "ViewModifierCodeSequence SeriesDescription SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "ExtendedOffsetTable ExtendedOffsetTableLengths DirectoryRecordSequence "
)
#: All attributes that are ever read from a file. The patient's name and birth date are not among them.
TAGS: list[BaseTag | int] = sorted(tag for word in _KEYWORDS.split() if (tag := tag_for_keyword(word)) is not None)

_DICOMDIR = "1.2.840.10008.1.3.10"
#: SOP classes below these roots are valid objects that hold no picture to compare.
_NO_IMAGE = tuple(
    f"1.2.840.10008.5.1.4.{tail}"
    for tail in (
        "1.1.9.", "1.1.11.", "1.1.66.", "1.1.66", "1.1.67", "1.1.68.", "1.1.88.", "1.1.104.", "1.1.90.",
        "1.1.481.2", "1.1.481.3", "1.1.481.4", "1.1.481.5", "1.1.481.6", "1.1.481.7", "1.1.481.8", "1.1.481.9",
        "1.1.481.1.", "1.1.481.10", "34.", "38.", "39.", "43.", "44.", "45.", "1.1.200.", "1.1.201.", "1.1.79.",
        "1.1.78.", "1.1.131",
    )
)  # fmt: skip


def quiet_pydicom() -> None:
    """Turn off pydicom's validation of values: its warnings may quote a patient; bad values are checked where used."""
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE


@dataclass(frozen=True, slots=True)
class Opened:
    """A data set's allow-listed attributes, and the place of its pixels in `buffer`."""

    dataset: Dataset
    transfer_syntax: str
    little: bool
    buffer: memoryview
    pixels: PixelElement | None


def attribute(dataset: Dataset, keyword: str) -> Any:  # noqa: ANN401 - DICOM values have many types
    """Return the value, or None if it is absent, empty or not convertible. OW bytes are returned in little endian."""
    try:
        raw: Any = dataset.get_item(keyword)
        swapped = isinstance(raw, RawDataElement) and raw.VR == "OW" and not raw.is_little_endian
        # pydicom returns OW words in the byte order of the file
        value: Any = unswapped(raw.value or b"") if swapped else dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # pydicom converts on access: struct, value, attribute, recursion and other errors occur
        return None
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def unswapped(words: bytes | memoryview) -> bytes:
    """Return 16-bit words in the other byte order (PS3.5 7.3); an odd last byte is dropped."""
    return np.frombuffer(words, np.uint16, count=len(words) // 2).byteswap().tobytes()


def text(dataset: Dataset, keyword: str, limit: int = 64) -> str:
    """Return the first value, printable, trimmed and capped; an empty text if there is none."""
    value = attribute(dataset, keyword)
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else ""
    return clean("" if value is None else str(value), limit)


def clean(value: str, limit: int = 64) -> str:
    return "".join(c for c in value[: 4 * limit] if c.isprintable()).strip()[:limit]


def number(dataset: Dataset, keyword: str) -> int | None:
    value = attribute(dataset, keyword)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def word(value: int, *, signed: bool) -> int:
    """Return the low 16 bits of a value as a signed or unsigned number, however they were read before."""
    bits = value % 65536
    return bits - 65536 if signed and bits > 32767 else bits


def _meta(buffer: memoryview, start: int, limits: Limits) -> tuple[int, str, str]:
    """Walk group 0002 (always explicit little endian); return its end, transfer syntax and media storage class."""
    pos, syntax, storage = start, "", ""
    while len(buffer) - pos >= 8 and struct.unpack_from("<H", buffer, pos)[0] == 2:
        element = struct.unpack_from("<H", buffer, pos + 2)[0]
        if bytes(buffer[pos + 4 : pos + 6]) in (b"OB", b"UN", b"OW", b"UT", b"SQ"):
            if len(buffer) - pos < 12:
                raise failed(Reason.TRUNCATED)
            offset, length = pos + 12, struct.unpack_from("<I", buffer, pos + 8)[0]
        else:
            offset, length = pos + 8, struct.unpack_from("<H", buffer, pos + 6)[0]
        pos = offset + length
        if pos - start > limits.meta_bytes:
            raise hostile(Reason.META_SIZE)
        if pos > len(buffer):
            raise failed(Reason.TRUNCATED)
        value = bytes(buffer[offset:pos]).decode("ascii", "replace").rstrip("\0 ") if length <= 64 else ""
        if element == 0x0010:
            syntax = value
        elif element == 0x0002:
            storage = value
    return pos, syntax, storage


def _locate(buffer: memoryview) -> tuple[int, bool]:
    """Return the start of the meta information or the bare data set, and whether it is little endian."""
    if len(buffer) >= 132 and bytes(buffer[128:132]) == b"DICM":
        return 132, True
    if len(buffer) >= 4 and bytes(buffer[:4]) == b"DICM":
        return 4, True
    if len(buffer) < 16:
        raise failed(Reason.NOT_A_STUDY_OBJECT)
    for little in (True, False):
        group, element = struct.unpack_from("<HH" if little else ">HH", buffer, 0)
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        length = struct.unpack_from("<I" if little else ">I", buffer, 4)[0]
        if looks_explicit(buffer, 0) or length <= 64:
            return 0, little
    raise failed(Reason.NOT_A_STUDY_OBJECT)


def inflate(data: memoryview, limits: Limits) -> memoryview:
    """Inflate a raw deflate stream without ever holding more than the limit.

    Raises: `Rejected`: hostile over size or ratio, failed for a broken stream.
    """
    room = min(limits.deflated_bytes, limits.deflate_ratio * max(len(data), 1024))
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = decompressor.decompress(data, room + 1)
    except zlib.error:
        raise failed(Reason.MALFORMED) from None
    if len(out) > room:
        raise hostile(Reason.DEFLATE_SIZE if room == limits.deflated_bytes else Reason.DEFLATE_RATIO)
    if not decompressor.eof:
        raise failed(Reason.TRUNCATED)
    return memoryview(out)


def open_dataset(buffer: memoryview, limits: Limits) -> Opened:
    """Read the allow-listed attributes of a DICOM file, with or without its Part 10 header.

    Raises: `Rejected`: hostile over a limit, failed if it cannot be parsed, or empty if the object is not an image.
    """
    if len(buffer) > limits.file_bytes:
        raise hostile(Reason.FILE_SIZE)
    start, little = _locate(buffer)
    start, syntax, storage = _meta(buffer, start, limits) if little else (start, "", "")
    if storage == _DICOMDIR:
        raise empty(Reason.DICOMDIR)
    if syntax == DEFLATED:
        buffer, start = inflate(buffer[start:], limits), 0
    if len(buffer) - start < 8:
        raise failed(Reason.TRUNCATED)
    little = little and syntax != EXPLICIT_BE
    explicit = looks_explicit(buffer, start)
    syntax = syntax or ((EXPLICIT_LE if explicit else IMPLICIT_LE) if little else EXPLICIT_BE)
    layout = Scanner(buffer, limits, explicit=explicit, little=little).scan(start)
    dataset = _parse(buffer, start, layout, explicit=explicit, little=little)
    _refuse_what_is_no_image(dataset, storage)
    return Opened(dataset, syntax, little, buffer, layout.pixels)


def _parse(buffer: memoryview, start: int, layout: Layout, *, explicit: bool, little: bool) -> Dataset:
    stream = io.BytesIO(buffer[start : layout.header_end])
    try:
        return read_dataset(stream, not explicit, little, specific_tags=TAGS)
    except (MemoryError, Rejected):
        raise
    except Exception:  # fuzzing found ten exception classes, without a common base class
        raise failed(Reason.MALFORMED) from None


def _refuse_what_is_no_image(dataset: Dataset, storage: str) -> None:
    sop_class = text(dataset, "SOPClassUID") or storage
    if sop_class == _DICOMDIR or (not sop_class and "DirectoryRecordSequence" in dataset):
        raise empty(Reason.DICOMDIR)
    if sop_class.startswith(_NO_IMAGE) or text(dataset, "Modality") in ("SEG", "SR", "KO", "PR", "RTSTRUCT", "RTPLAN"):
        raise empty(Reason.NOT_AN_IMAGE)
