"""A storage SCU with next to no cost: it sends prepared bytes over a plain socket.

A pynetdicom sender takes as much of a core as the receiver, so the benchmark would measure the sender.
"""

import socket
import struct
from dataclasses import dataclass, field
from io import BytesIO
from types import TracebackType
from typing import Self

import numpy as np
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from services.dicom import echo

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.1.2"
_PREFIX = "1.2.826.0.1.3680043.10.3"
_DIGITS = 12
_TIMEOUT_S = 120.0
_ACCEPT, _DATA = 2, 4  #: PDU types
_STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"


def uid_of(number: int, kind: int = 1) -> str:
    """A UID whose length is the same for every number."""
    return f"{_PREFIX}.{kind}.1{number:0{_DIGITS}d}"


@dataclass
class Template:
    """A mammogram, encoded once (implicit little endian); each instance replaces only its UIDs."""

    side: int
    data: bytes = field(init=False)

    def __post_init__(self) -> None:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = SOP_CLASS, uid_of(0)
        image.StudyInstanceUID, image.SeriesInstanceUID = uid_of(0, 2), uid_of(0, 3)
        image.PatientID, image.Modality = "BENCHMARK", "MG"
        image.Rows = image.Columns = self.side
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation, image.SamplesPerPixel = 0, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        pixels = np.random.default_rng(1).integers(0, 4096, (self.side, self.side), np.uint16)
        image.PixelData = pixels.tobytes()
        encoded = encode(image, is_implicit_vr=True, is_little_endian=True)
        assert encoded is not None  # noqa: S101 - a plain data set always encodes
        self.data = encoded

    def instance(self, number: int, per_study: int = 4) -> bytes:
        data = self.data.replace(uid_of(0).encode(), uid_of(number).encode())
        for kind in (2, 3):
            data = data.replace(uid_of(0, kind).encode(), uid_of(number // per_study, kind).encode())
        return data


class Sender:
    """One association. Raises: `ConnectionError` if the association is not accepted or ends early."""

    def __init__(self, port: int, calling: str, called: str = "SIMILIS", source: str = "127.0.0.1") -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S, (source, 0))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connection.sendall(echo.request(called, calling, SOP_CLASS.encode()))
            kind, body = self._reply()
            if kind != _ACCEPT:
                raise ConnectionRefusedError
        except OSError:
            self._connection.close()
            raise
        self._maximum = struct.unpack(">I", body.partition(b"\x51\x00\x00\x04")[2][:4])[0]

    def store(self, uid: str, data: bytes) -> int:
        """Send one instance; return the status of the C-STORE response."""
        parts = BytesIO(data)
        message = [value_pdu(store_command(uid), 3)]
        while chunk := parts.read(self._maximum - 6):
            message.append(value_pdu(chunk, 2 if parts.tell() == len(data) else 0))
        self._connection.sendall(b"".join(message))
        kind, body = self._reply()
        if kind != _DATA:
            raise ConnectionAbortedError
        return int(struct.unpack("<H", body.partition(_STATUS)[2][:2])[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._connection:
            if error is None:
                self._connection.sendall(echo.RELEASE)
                self._reply()

    def _reply(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxI", self._read(6))
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        read = self._connection.recv(count, socket.MSG_WAITALL)
        if len(read) < count:
            raise ConnectionResetError
        return read


def store_command(uid: str, sop_class: str = SOP_CLASS) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    names = [(0x0002, sop_class), (0x1000, uid)]
    values = [(element, name.encode() + b"\0" * (len(name) % 2)) for element, name in names]
    numbers = ((0x0100, 1), (0x0110, 1), (0x0700, 0), (0x0800, 0))
    values += [(element, struct.pack("<H", number)) for element, number in numbers]
    elements = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in sorted(values))
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def value_pdu(data: bytes, header: int) -> bytes:
    """A P-DATA-TF with one value; header 3 is a command, 0 a data set, 2 its last part (PS3.8 E.2)."""
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, 1, header) + data
