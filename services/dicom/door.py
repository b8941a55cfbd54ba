"""The door: accepts connections, counts them, and hands each to the receiver that has the fewest.

One process accepts, so the limits are exact and the load is even: of eight connections to two processes on one port
(SO_REUSEPORT), the kernel gave one process six or more in 299 of 1,000 trials, and processes that inherit one
listening socket could only count their own connections. The door parses nothing that a peer sends, so no peer can
block it; a receiver that dies, or no longer answers a C-ECHO, is restarted.
"""

import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.dicom import echo
from services.dicom.channel import Channel, Handed
from services.dicom.metrics import Metrics
from services.dicom.peers import Peers
from shared import process
from shared.config import Dicom
from shared.log import get

log = get("services.dicom")

TICK_S = 1.0
REST_S = 1.0  #: between two rounds of starting missing receivers
WATCH_S = 30.0  #: between two C-ECHOs of the watchdog, and the timeout of each
DRAIN_S = 15.0  #: longer than a receiver's own `DRAIN_S`
#: A-ASSOCIATE-RJ: transient, by the provider (presentation), local limit exceeded (PS3.8 9.3.4)
_LIMIT_EXCEEDED = b"\x03\x00\x00\x00\x00\x04\x00\x02\x03\x02"


@dataclass
class Receiver:
    """One receiver process behind the door."""

    child: subprocess.Popen[bytes]
    channel: Channel
    open: dict[int, str] = field(default_factory=dict)  #: address of each connection it holds
    ready: bool = False
    born: float = field(default_factory=time.monotonic)


class Door:
    """Owns the listening sockets; all methods except `watch` run in the main thread."""

    def __init__(self, settings: Dicom, peers: Peers, listener: socket.socket, check: socket.socket) -> None:
        self.settings, self.peers, self.metrics = settings, peers, Metrics()
        self.receivers: list[Receiver] = []
        self.stopping = False
        self._listeners = {listener: self._accept, check: self._accept_check}
        self._selector = selectors.DefaultSelector()
        self._number = 0
        self._not_before = 0.0

    def run(self, serving: Callable[[], None]) -> None:
        """Serve until INT or TERM, then stop every receiver.

        Args:
            serving: called once, when the first receiver can take connections.
        """
        wake, told = self._signals(), False
        for listener in self._listeners:
            listener.setblocking(False)
        threading.Thread(target=self.watch, daemon=True).start()
        try:
            while not self.stopping:
                self._start_missing()
                for key, _ in self._selector.select(TICK_S):
                    key.data()
                if not told and any(one.ready for one in self.receivers):
                    told = True
                    serving()
        finally:
            self._stop()
            signal.set_wakeup_fd(-1)
            wake.close()

    def watch(self) -> None:
        """Send each receiver a C-ECHO every `WATCH_S`, and kill a receiver that does not answer in time."""
        while True:
            time.sleep(WATCH_S)
            for one in [receiver for receiver in self.receivers if receiver.ready]:
                ours, theirs = socket.socketpair()
                with theirs, suppress(OSError):  # with a full channel the check fails, too
                    one.channel.hand_over(Handed(), theirs)
                good = echo.ask(ours, self.settings.ae_title, WATCH_S)
                self.metrics.checks.labels("answered" if good else "silent").inc()
                if not good and not self.stopping and one in self.receivers:
                    log.error("receiver_silent", pid=one.child.pid)
                    one.child.kill()

    def _signals(self) -> socket.socket:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def end(*_: object) -> None:
            self.stopping = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(64))
        return reader

    def _start_missing(self) -> None:
        now = time.monotonic()
        if len(self.receivers) >= self.settings.processes or now < self._not_before:
            return
        while len(self.receivers) < self.settings.processes:
            self._start()
        self._not_before = now + REST_S

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            argv = [sys.executable, "-P", "-m", "services.dicom.receiver", str(theirs.fileno())]
            # own session, and TERM when the door dies: the receiver still answers the instances it is storing
            child = process.spawn(argv, output=sys.stderr.fileno(), keep=[theirs.fileno()])
        one = Receiver(child, Channel(ours))
        self.receivers.append(one)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(one))

    def _hear(self, one: Receiver) -> None:
        words = one.channel.heard()
        if words is None:
            self._bury(one)
            return
        match words:
            case ["ready"]:
                one.ready = True
                self._listen()
            case ["ended", number]:
                one.open.pop(number, None)
            case ["association", result]:
                self.metrics.associations.labels(result).inc()
            case ["instance", result, count]:
                self.metrics.instances.labels("dicom", result).inc()
                self.metrics.bytes.labels("dicom").inc(count)
        self._show()

    def _bury(self, one: Receiver) -> None:
        """Remove a receiver that has ended, with its connections; the next tick starts another."""
        self._selector.unregister(one.channel.connection)
        one.channel.connection.close()
        self.receivers.remove(one)
        rc = process.stop(one.child, (signal.SIGTERM, 1.0))
        log.error("receiver_ended", rc=rc, count=len(one.open))
        self.metrics.restarts.inc()
        self._listen()
        self._show()

    def _listen(self) -> None:
        """Accept only while a receiver is ready; otherwise connections wait in the kernel's backlog."""
        registered = self._selector.get_map()
        for listener, accept in self._listeners.items():
            if any(one.ready for one in self.receivers):
                if listener not in registered:
                    self._selector.register(listener, selectors.EVENT_READ, accept_from(listener, accept))
            elif listener in registered:
                self._selector.unregister(listener)

    def _accept(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        address, port = peer[0], peer[1]
        counts = Counter(other for one in self.receivers for other in one.open.values())
        if not self.peers.knows(address):
            self.metrics.associations.labels("unknown-address").inc()
            log.info("connection_refused", reason="unknown-address", address=address)
            return
        if counts.total() >= self.settings.associations or counts[address] >= self.settings.associations_per_address:
            self._refuse(connection, "over-limit", address)
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._number += 1
        self._hand_over(Handed(self._number, address, port), connection)

    def _accept_check(self, connection: socket.socket, _: object) -> None:
        self._hand_over(Handed(), connection)

    def _hand_over(self, handed: Handed, connection: socket.socket) -> None:
        one = min((one for one in self.receivers if one.ready), key=lambda one: len(one.open), default=None)
        if one is None:
            return
        try:
            one.channel.hand_over(handed, connection)
        except OSError:  # the receiver has ended, or does not read; the watchdog kills a hung one
            self._refuse(connection, "not-taken", handed.address)
            return
        if not handed.is_check:
            one.open[handed.number] = handed.address
        self._show()

    def _refuse(self, connection: socket.socket, result: str, address: str) -> None:
        """Send an A-ASSOCIATE-RJ without reading the request; with TLS, only close the connection."""
        self.metrics.associations.labels(result).inc()
        log.info("connection_refused", reason=result, address=address)
        if self.settings.tls_certificate is None:
            with suppress(OSError):
                connection.send(_LIMIT_EXCEEDED)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65_536, socket.MSG_DONTWAIT)  # closing with unread data would reset the connection

    def _show(self) -> None:
        self.metrics.open.set(sum(len(one.open) for one in self.receivers))
        self.metrics.receivers.set(sum(one.ready for one in self.receivers))

    def _stop(self) -> None:
        self.stopping = True
        for one in self.receivers:
            one.channel.connection.close()
        for one in self.receivers:
            process.stop(one.child, (signal.SIGTERM, DRAIN_S))


def accept_from(
    listener: socket.socket, accept: Callable[[socket.socket, tuple[str, int]], None]
) -> Callable[[], None]:
    """A callback for a ready listener: accept one connection, pass it to `accept`, and close our descriptor."""

    def take() -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            connection, peer = listener.accept()
            with connection:
                accept(connection, peer)

    return take


def listen_for_checks(path: Path, name: str) -> socket.socket:
    """A listening unix socket that only our own user can reach; replaces the socket of a dead predecessor."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    path.chmod(0o600)
    listener.listen(8)
    return listener
