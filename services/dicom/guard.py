"""Limits on the size and time of PDUs. Without them, six connections and 600 bytes block pynetdicom's listener.

pynetdicom 3.0.4 reads a PDU of whatever length its header claims, up to 4 GiB, and waits for it without limit: its
timeouts do not cover a read that has begun. A few connections that announce long PDUs and then stall occupy every
association, and one that keeps sending grows the process without bound. Its TLS handshake runs in the accept loop,
where one silent client blocks all others.

`Guard.recv` therefore replaces the one method that reads, for each association: a PDU, with any handshake, must
arrive within its deadline and stay below the limit of its kind. A violation ends the connection.
"""

import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pynetdicom.transport import AssociationSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association

HEADER = 6  #: bytes: type, reserved, length (PS3.8 9.3.1)
REQUEST_BYTES = 256 * 1024  #: A-ASSOCIATE-RQ: 128 contexts of every transfer syntax fit ten times
PDU_BYTES = 1024 * 1024  #: any other PDU; the maximum length that we negotiate is smaller
_CHUNK = 65_536
_NOT_ASKED = ("Sta1", "Sta2")  #: PS3.8 9.2.1: states before the A-ASSOCIATE-RQ; pynetdicom may read in either


class TooLong(OSError):
    """A PDU whose header announces more than the limit."""


class Guard:
    """Reads the PDUs of one association."""

    def __init__(
        self,
        association: "Association",
        transport: AssociationSocket,
        pdu_s: float,
        tls_failed: Callable[[ssl.SSLError], None],
    ) -> None:
        self._association, self._transport, self._pdu_s = association, transport, pdu_s
        self._tls_failed = tls_failed
        self._deadline = 0.0
        self._handshake_due = True

    def recv(self, nr_bytes: int) -> bytearray:
        """The next bytes, fewer where the peer has closed; replaces `AssociationSocket.recv`.

        Raises: `TooLong`, `TimeoutError`, `ssl.SSLError`; all are an OSError, which ends the connection.
        """
        read = bytearray()
        try:
            read = self._read(nr_bytes)
            return read
        finally:
            if len(read) < nr_bytes and self._not_asked:
                # else the association would wait for a request, and occupy its place, until its timeout
                self._association.dul.to_user_queue.put(None)  # type: ignore[arg-type]  # None: no request came

    def _read(self, nr_bytes: int) -> bytearray:
        connection = self._transport.socket
        if connection is None:
            raise ConnectionResetError
        if nr_bytes == HEADER:  # a body of six bytes restarts the deadline, too, and gets twice the time
            self._deadline = time.monotonic() + self._pdu_s
        if nr_bytes > self._limit:
            raise TooLong(f"a PDU of {nr_bytes} bytes")
        if isinstance(connection, ssl.SSLSocket) and self._handshake_due:
            self._handshake_due = False  # pynetdicom may read again after a failure
            connection.settimeout(self._left())
            try:
                connection.do_handshake()
            except ssl.SSLEOFError:  # such as a load balancer's probe
                raise
            except ssl.SSLError as error:
                self._tls_failed(error)
                raise
        read = bytearray()
        while len(read) < nr_bytes:
            connection.settimeout(self._left())
            chunk = connection.recv(min(nr_bytes - len(read), _CHUNK))
            if not chunk:
                break
            read += chunk
        connection.settimeout(self._pdu_s)  # for writes, so that a peer that does not read cannot block us
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
