"""Walk a data set element by element without keeping anything, so that no parser meets an unbounded file.

The walk bounds the number of elements, their nesting depth and their claimed lengths, and finds the pixel data. It
is iterative, so that depth needs no stack.
"""

import struct
from dataclasses import dataclass

from shared.imaging.limits import Limits
from shared.imaging.reasons import Reason, failed, hostile

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
PIXEL_DATA = {(0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009)}
EXTENDED_OFFSETS = (0x7FE0, 0x0001)
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


@dataclass(frozen=True, slots=True)
class PixelElement:
    keyword: str  #: PixelData, FloatPixelData or DoubleFloatPixelData
    offset: int  #: of the value
    length: int  #: as claimed; `UNDEFINED` for encapsulated data
    vr: bytes = b""  #: empty in implicit VR


@dataclass(frozen=True, slots=True)
class Layout:
    header_end: int  #: where the pixel data element begins, or the end of the data set
    pixels: PixelElement | None


_KEYWORDS = {0x0010: "PixelData", 0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData"}


def looks_explicit(buffer: memoryview, start: int) -> bool:
    """Return whether the first element has an explicit VR: files often state the wrong transfer syntax."""
    vr = bytes(buffer[start + 4 : start + 6])
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


class _Level:
    """An open sequence or item: its end (None: at its delimiter) and the encoding of its elements."""

    __slots__ = ("end", "explicit", "items")

    def __init__(self, end: int | None, *, explicit: bool, items: bool) -> None:
        self.end, self.explicit, self.items = end, explicit, items


class Scanner:
    def __init__(self, buffer: memoryview, limits: Limits, *, explicit: bool, little: bool) -> None:
        self._buffer, self._limits, self._explicit = buffer, limits, explicit
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH")
        self._short = struct.Struct(order + "H")
        self._long = struct.Struct(order + "I")
        self._little = little
        self._elements = 0
        self._bytes = 0

    def scan(self, start: int) -> Layout:
        """Return the layout from `start` to the pixel data or the end.

        Raises:
            Rejected: over a limit (hostile), or the data set cannot be parsed (failed).
        """
        buffer, size = self._buffer, len(self._buffer)
        levels = [_Level(size, explicit=self._explicit, items=False)]
        pos = start
        while levels:
            level = levels[-1]
            if level.end is not None and pos >= level.end:
                levels.pop()
                continue
            if size - pos < 8:
                if len(levels) == 1:  # padding at the end of a file is harmless
                    return Layout(pos, None)
                raise failed(Reason.TRUNCATED)
            self._count()
            tag: tuple[int, int] = self._tag.unpack_from(buffer, pos)
            if tag[0] == 0xFFFE:
                pos = self._delimiter(tag, pos, levels)
                continue
            if level.items:
                raise failed(Reason.MALFORMED)
            if len(levels) == 1 and tag in PIXEL_DATA:
                return Layout(pos, self._pixels(tag, pos, explicit=level.explicit))
            if tag == (0, 0) and len(levels) == 1 and not any(buffer[pos : pos + 4096]):
                return Layout(pos, None)  # zero padding
            pos = self._element(tag, pos, levels)
        return Layout(pos, None)

    def _count(self) -> None:
        self._elements += 1
        if self._elements > self._limits.elements:
            raise hostile(Reason.ELEMENTS)

    def _value(self, pos: int, *, explicit: bool) -> tuple[bytes, int, int]:
        """Return VR (empty if implicit), offset and claimed length of the value."""
        vr = bytes(self._buffer[pos + 4 : pos + 6]) if explicit else b""
        if not explicit or not (vr.isalpha() and vr.isupper()):  # explicit data sets can contain implicit elements
            return b"", pos + 8, int(self._long.unpack_from(self._buffer, pos + 4)[0])
        if vr in LONG_VRS:
            if pos + 12 > len(self._buffer):
                raise failed(Reason.TRUNCATED)
            return vr, pos + 12, int(self._long.unpack_from(self._buffer, pos + 8)[0])
        return vr, pos + 8, int(self._short.unpack_from(self._buffer, pos + 6)[0])

    def _pixels(self, tag: tuple[int, int], pos: int, *, explicit: bool) -> PixelElement:
        vr, offset, length = self._value(pos, explicit=explicit)
        return PixelElement(_KEYWORDS[tag[1]], offset, length, vr)

    def _element(self, tag: tuple[int, int], pos: int, levels: list[_Level]) -> int:
        level = levels[-1]
        vr, offset, length = self._value(pos, explicit=level.explicit)
        if length == UNDEFINED:
            if tag[0] == 0x7FE0 and vr in (b"OB", b"OW"):  # an icon's compressed pixels
                return self._fragments(offset)
            # PS3.5 6.2.2: a UN of undefined length is a sequence in implicit VR
            self._open(levels, _Level(None, explicit=level.explicit and vr != b"UN", items=True))
            return offset
        room = (level.end if level.end is not None else len(self._buffer)) - offset
        if length > self._limits.element_bytes and not (vr == b"SQ" or tag == EXTENDED_OFFSETS):
            raise hostile(Reason.ELEMENT_SIZE)
        if length > room:
            raise failed(Reason.TRUNCATED)
        self._bytes += length
        if self._bytes > self._limits.header_bytes * len(levels):
            raise hostile(Reason.HEADER_SIZE)
        item = b"\xfe\xff\x00\xe0" if self._little else b"\xff\xfe\xe0\x00"
        if length >= 8 and (vr == b"SQ" or vr in (b"", b"UN")) and bytes(self._buffer[offset : offset + 4]) == item:
            explicit = level.explicit and vr != b"UN"
            self._open(levels, _Level(offset + length, explicit=explicit, items=True))
            return offset
        return offset + length

    def _open(self, levels: list[_Level], level: _Level) -> None:
        levels.append(level)
        if len(levels) > 2 * self._limits.depth + 1:  # a sequence and its item count as two levels
            raise hostile(Reason.DEPTH)

    def _delimiter(self, tag: tuple[int, int], pos: int, levels: list[_Level]) -> int:
        length = int(self._long.unpack_from(self._buffer, pos + 4)[0])
        level = levels[-1]
        if tag == ITEM and level.items:
            end = None if length == UNDEFINED else pos + 8 + length
            if end is not None and end > len(self._buffer):
                raise failed(Reason.TRUNCATED)
            self._open(levels, _Level(end, explicit=level.explicit, items=False))
            return pos + 8
        if tag == ITEM_END and len(levels) > 1 and not level.items:
            levels.pop()
            return pos + 8
        if tag == SEQUENCE_END and len(levels) > 1:
            if not level.items:  # an item without its own delimiter
                levels.pop()
            if len(levels) > 1:
                levels.pop()
            return pos + 8
        if len(levels) == 1 and (tag in (ITEM_END, SEQUENCE_END) or length <= len(self._buffer) - pos):
            # stray items and delimiters of a sequence without its element: skipped, as parsers do
            return pos + 8 + (length if tag == ITEM else 0)
        raise failed(Reason.MALFORMED)

    def _fragments(self, pos: int) -> int:
        while True:
            if pos + 8 > len(self._buffer):
                raise failed(Reason.TRUNCATED)
            self._count()
            tag = self._tag.unpack_from(self._buffer, pos)
            length = int(self._long.unpack_from(self._buffer, pos + 4)[0])
            pos += 8
            if tag == SEQUENCE_END:
                return pos
            if tag != ITEM:
                raise failed(Reason.MALFORMED)
            pos += length
