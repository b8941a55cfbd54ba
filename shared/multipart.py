"""A strict streaming parser for multipart/related with bounded memory, for uploads and downloads.

A malformed body is refused as a whole; the parser never guesses.

Source: RFC 2046 section 5.1, RFC 2387; DICOM PS3.18 section 8.6.1.2.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

from shared.errors import Invalid

TYPE_LETTERS = 1000  #: of a Content-Type; Python's parser takes seconds for 60,000 semicolons in quotes
PREAMBLE_BYTES = 4096  #: before the first boundary
HEADER_BYTES = 8192  #: of one part
HEADERS = 32
PARTS = 20_000  #: of one body

#: RFC 2046 allows 70 characters; Orthanc sends 73
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Begin:
    """A part begins; the names of its headers are in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Data:
    """The next bytes of the part."""

    chunk: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The part is complete."""


Event = Begin | Data | End


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """Return the media type in lower case and its parameters; both are empty for a header that is too long."""
    if len(header) > TYPE_LETTERS:
        return "", {}
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found: list[tuple[str, Any]] = message.get_params() or []
    # an RFC 2231 value is a triple, despite its type hint: character set, language, text
    given = {name.lower(): value if isinstance(value, str) else value[2] for name, value in found[1:]}
    return (found[0][0].lower() if found else ""), given


class Splitter:
    """Splits bytes into part events. `complete` is true once the closing boundary was seen.

    Raises: `Invalid` for a malformed boundary.
    """

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise Invalid("multipart: the boundary is missing or malformed")
        self._mark = b"\r\n--" + boundary.encode("ascii")
        self._buffer = bytearray(b"\r\n")  # so that the first boundary looks like all others
        self._step = self._preamble
        self._parts = self._skipped = 0
        self.complete = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete. Raises: `Invalid` for a malformed body."""
        self._buffer += chunk
        while True:
            events, more = self._step()
            yield from events
            if not more:
                return

    def finish(self) -> None:
        """Check that the body is complete. Raises: `Invalid` if it ended early."""
        if not self.complete:
            raise Invalid("multipart: the body ends before its closing boundary")

    def _preamble(self) -> tuple[list[Event], bool]:
        at = self._buffer.find(self._mark)
        keep = at if at >= 0 else max(0, len(self._buffer) - len(self._mark))
        self._skipped += keep
        if self._skipped > PREAMBLE_BYTES:
            raise Invalid(f"multipart: no boundary in the first {PREAMBLE_BYTES} bytes")
        del self._buffer[:keep]
        if at < 0:
            return [], False
        return self._past_mark()

    def _past_mark(self) -> tuple[list[Event], bool]:
        del self._buffer[: len(self._mark)]
        self._step = self._after_mark
        return [], True

    def _after_mark(self) -> tuple[list[Event], bool]:
        """Parse what follows a boundary: `--` after the closing one, else the end of its line."""
        if self._buffer.startswith(b"--"):
            self.complete, self._step = True, self._epilogue
            return [], True
        line = self._buffer.find(b"\r\n", 0, 128)
        if line < 0:
            if len(self._buffer) >= 128:
                raise Invalid("multipart: the line of a boundary is too long")
            return [], False
        if self._buffer[:line].strip(b" \t"):
            raise Invalid("multipart: unexpected text after a boundary")
        del self._buffer[:line]  # keep the line end: in a part without headers it begins the empty line
        self._parts += 1
        if self._parts > PARTS:
            raise Invalid(f"multipart: there are more than {PARTS} parts")
        self._step = self._headers
        return [], True

    def _headers(self) -> tuple[list[Event], bool]:
        end = self._buffer.find(b"\r\n\r\n", 0, HEADER_BYTES)
        if end < 0:
            if len(self._buffer) >= HEADER_BYTES:
                raise Invalid("multipart: the headers of a part are too large")
            return [], False
        lines = bytes(self._buffer[2:end]).split(b"\r\n") if end else []
        # keep the last line end: in an empty part it begins the next boundary
        del self._buffer[: end + 2]
        self._step = self._body_start
        return [Begin(_parsed(lines))], True

    def _body_start(self) -> tuple[list[Event], bool]:
        if len(self._buffer) < len(self._mark):
            return [], False
        if not self._buffer.startswith(self._mark):
            del self._buffer[:2]
        self._step = self._body
        return [], True

    def _body(self) -> tuple[list[Event], bool]:
        at = self._buffer.find(self._mark)
        size = at if at >= 0 else len(self._buffer) - len(self._mark) + 1
        events: list[Event] = []
        if size > 0:
            events.append(Data(bytes(self._buffer[:size])))
            del self._buffer[:size]
        if at < 0:
            return events, False
        self._past_mark()
        return [*events, End()], True

    def _epilogue(self) -> tuple[list[Event], bool]:
        self._buffer.clear()
        return [], False


def _parsed(lines: list[bytes]) -> dict[str, str]:
    """Parse header lines. Raises: `Invalid` for folded lines, duplicate names and anything that is not a header."""
    if len(lines) > HEADERS:
        raise Invalid("multipart: a part has too many headers")
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        key = name.decode("latin-1").lower()
        if not colon or not _NAME.fullmatch(name) or key in found:
            raise Invalid("multipart: a part has a malformed or repeated header")
        found[key] = value.strip(b" \t").decode("latin-1")
    return found
