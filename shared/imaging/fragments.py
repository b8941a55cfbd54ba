"""Encapsulated pixel data (PS3.5 A.4): from fragments to the bytes of one frame, without copying the others."""

import struct

from pydicom.dataset import Dataset

from shared.imaging.limits import Limits
from shared.imaging.read import attribute
from shared.imaging.reasons import Reason, hostile, undecodable
from shared.imaging.scan import ITEM, SEQUENCE_END, PixelElement

Span = tuple[int, int]
#: start of a JPEG, JPEG-LS or JPEG 2000 codestream
_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")


class Encapsulated:
    """The frames of encapsulated pixel data, found by walking the items once.

    Raises:
        Rejected: there are no fragments, another element precedes the first fragment, or there are more fragments
            than the limit. A missing sequence delimiter and a truncated last fragment are left to the decoder.
    """

    def __init__(
        self, buffer: memoryview, element: PixelElement, dataset: Dataset, frames: int, limits: Limits
    ) -> None:
        self._buffer = buffer
        spans = _walk(buffer, element.offset, limits)
        if len(spans) < 2:
            raise undecodable(Reason.FRAGMENTATION)
        table = _offsets(buffer, spans[0]) or _extended(dataset)
        self._frames = _assemble(buffer, spans[1:], table, frames)

    def frame(self, number: int) -> bytes:
        """Return the codestream of a 1-based frame.

        Raises: `Rejected` if there is no such frame.
        """
        if number > len(self._frames):
            raise undecodable(Reason.SHORT)
        return b"".join(self._buffer[start:end] for start, end in self._frames[number - 1])


def _walk(buffer: memoryview, pos: int, limits: Limits) -> list[Span]:
    spans: list[Span] = []
    while pos + 8 <= len(buffer):
        group, element, length = struct.unpack_from("<HHI", buffer, pos)
        if (group, element) == SEQUENCE_END:
            break
        if (group, element) != ITEM:
            if len(spans) < 2:
                raise undecodable(Reason.FRAGMENTATION)
            break  # the delimiter is missing and other elements follow
        spans.append((pos + 8, min(pos + 8 + length, len(buffer))))
        if len(spans) > limits.fragments:
            raise hostile(Reason.FRAGMENTS)
        pos += 8 + length
    return spans


def _offsets(buffer: memoryview, span: Span) -> list[int]:
    count = (span[1] - span[0]) // 4
    return list(struct.unpack_from(f"<{count}I", buffer, span[0])) if count else []


def _extended(dataset: Dataset) -> list[int]:
    data = attribute(dataset, "ExtendedOffsetTable")
    return list(struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])) if isinstance(data, bytes) else []


def _assemble(buffer: memoryview, spans: list[Span], table: list[int], frames: int) -> list[list[Span]]:
    """Group fragments into frames: one fragment each, or by the offset table, or by the starts of codestreams."""
    if frames == 1:
        return [spans]
    if len(spans) == frames:
        return [[span] for span in spans]
    base = spans[0][0] - 8
    starts = {offset + base + 8 for offset in table}
    if len(starts) != frames or not starts <= {start for start, _ in spans}:
        starts = {start for start, end in spans if bytes(buffer[start : min(end, start + 6)]).startswith(_STARTS)}
    grouped: list[list[Span]] = []
    for span in spans:
        if span[0] in starts or not grouped:
            grouped.append([])
        grouped[-1].append(span)
    if len(grouped) != frames:
        raise undecodable(Reason.FRAGMENTATION)
    return grouped
