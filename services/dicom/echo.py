"""A minimal C-ECHO client over an open connection, without a library: for watchdogs and health checks.

Source: PS3.8 9.3 (PDUs), PS3.7 9.3.5 (C-ECHO).
"""

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

VERIFICATION = b"1.2.840.10008.1.1"
_IMPLICIT = b"1.2.840.10008.1.2"
_APPLICATION = b"1.2.840.10008.3.1.1.1"
IMPLEMENTATION = "2.25.71467130950248888588603640801109631252"  #: implementation class UID of Similis
_ACCEPT, _DATA, _RELEASED = 2, 4, 6
_STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"  #: tag (0000,0900) and value length, implicit VR little endian
RELEASE = struct.pack(">BxII", 5, 4, 0)


def request(called: str, calling: str, abstract: bytes = VERIFICATION) -> bytes:
    """An A-ASSOCIATE-RQ for one context."""
    context = b"\x01\x00\x00\x00" + _item(0x30, abstract) + _item(0x40, _IMPLICIT)
    user = _item(0x51, struct.pack(">I", 16_384)) + _item(0x52, IMPLEMENTATION.encode())
    titles = called.encode("ascii").ljust(16) + calling.encode("ascii").ljust(16)
    body = struct.pack(">Hxx", 1) + titles + bytes(32)
    body += _item(0x10, _APPLICATION) + _item(0x20, context) + _item(0x50, user)
    return struct.pack(">BxI", 1, len(body)) + body


def echo() -> bytes:
    """A P-DATA-TF with a C-ECHO-RQ."""
    uid = VERIFICATION + b"\x00" * (len(VERIFICATION) % 2)
    elements = struct.pack("<HHI", 0, 2, len(uid)) + uid
    for element, value in ((0x0100, 0x0030), (0x0110, 1), (0x0800, 0x0101)):
        elements += struct.pack("<HHIH", 0, element, 2, value)
    command = struct.pack("<HHII", 0, 0, 4, len(elements)) + elements
    item = struct.pack(">IBB", len(command) + 2, 1, 3) + command
    return struct.pack(">BxI", _DATA, len(item)) + item


def ask(connection: socket.socket, called: str, timeout_s: float, calling: str = "SIMILIS-CHECK") -> bool:
    """Whether the receiver accepts an association and answers a C-ECHO in time; closes the connection."""
    deadline = time.monotonic() + timeout_s
    with connection, suppress(OSError, struct.error):
        connection.sendall(request(called, calling))
        if _reply(connection, deadline)[0] != _ACCEPT:
            return False
        connection.sendall(echo())
        kind, body = _reply(connection, deadline)
        if kind != _DATA or body.partition(_STATUS)[2][:2] != b"\x00\x00":
            return False
        connection.sendall(RELEASE)
        return _reply(connection, deadline)[0] == _RELEASED
    return False


def answers(home: Path, called: str, timeout_s: float = 10.0) -> bool:
    """Whether this home's receiver answers on its local socket (`socket_of`), which needs neither peers nor TLS."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection, short(socket_of(home)) as name:
        connection.settimeout(timeout_s)
        connection.connect(name)
        return ask(connection, called, timeout_s)
    return False


def socket_of(home: Path) -> Path:
    return home / "run" / "dicom.sock"


class short:  # noqa: N801 - reads as a verb: `with short(path) as name`
    """A path to the socket, valid inside the block, that fits into the 107 bytes of a unix socket address."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _reply(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxI", _read(connection, 6, deadline))
    return kind, _read(connection, min(length, 65_536), deadline)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    read = b""
    while len(read) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(count - len(read))
        if not chunk:
            raise ConnectionResetError
        read += chunk
    return read
