"""Why we do not let pynetdicom read its sockets: six of them and 600 bytes lock its listener out.

pynetdicom 3.0.4 reads a PDU of whatever length its header claims, up to 4 GiB, and waits for it without limit: its
timeouts do not cover a read that has begun. A few connections that claim much and then stall hold every association,
and one that does not stall grows the process by as much as it likes. Its TLS handshake stands in the accept loop,
where one silent client stops everybody.

So the one method that reads is replaced, for each association: a PDU must be there within its deadline, handshake
included, and must not be larger than what its kind may need. What breaks this ends the connection.
"""

import ssl
import time
from typing import TYPE_CHECKING

from pynetdicom.transport import AssociationSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association

HEADER = 6  #: bytes: type, reserved, length (PS3.8 9.3.1)
REQUEST_BYTES = 256 * 1024  #: A-ASSOCIATE-RQ: 128 contexts of every transfer syntax fit ten times
PDU_BYTES = 1024 * 1024  #: any other; senders keep to the maximum length that we state, which is smaller
_CHUNK = 65_536
_NOT_ASKED = ("Sta1", "Sta2")  #: PS3.8 9.2.1: a connection without a request; pynetdicom may read in either


class TooLong(OSError):
    """A PDU that claims to be larger than any we take."""


class Guard:
    """Reads the PDUs of one association."""

    def __init__(self, association: "Association", transport: AssociationSocket, pdu_s: float) -> None:
        self._association, self._transport, self._pdu_s = association, transport, pdu_s
        self._deadline = 0.0
        self._shaken = False

    def recv(self, nr_bytes: int) -> bytearray:
        """The next bytes, fewer where the peer has closed: in the place of `AssociationSocket.recv`.

        Raises: `TooLong`, `TimeoutError`, `ssl.SSLError`; all are an OSError, which ends the connection.
        """
        read = bytearray()
        try:
            read = self._read(nr_bytes)
            return read
        finally:
            if len(read) < nr_bytes and self._not_asked:
                # its association would go on waiting for a request, and hold its place, until it has timed out
                self._association.dul.to_user_queue.put(None)  # type: ignore[arg-type]  # as where nothing comes

    def _read(self, nr_bytes: int) -> bytearray:
        connection = self._transport.socket
        if connection is None:
            raise ConnectionResetError
        if nr_bytes == HEADER:  # a body of six bytes begins anew, too: then it has twice the time
            self._deadline = time.monotonic() + self._pdu_s
        if nr_bytes > self._limit:
            raise TooLong(f"a PDU of {nr_bytes} bytes")
        if isinstance(connection, ssl.SSLSocket) and not self._shaken:
            connection.settimeout(self._left())
            connection.do_handshake()
            self._shaken = True
        read = bytearray()
        while len(read) < nr_bytes:
            connection.settimeout(self._left())
            chunk = connection.recv(min(nr_bytes - len(read), _CHUNK))
            if not chunk:
                break
            read += chunk
        connection.settimeout(self._pdu_s)  # for answers: a peer that reads nothing must not hold us either
        return read

    @property
    def _limit(self) -> int:
        return REQUEST_BYTES if self._not_asked else PDU_BYTES

    @property
    def _not_asked(self) -> bool:
        return self._association.dul.state_machine.current_state in _NOT_ASKED

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("a PDU that does not end")
        return left
