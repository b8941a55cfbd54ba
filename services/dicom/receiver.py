"""A receiver process: gets connections from the door, and answers a C-STORE once `arrive` has returned.

Run as `python -m services.dicom.receiver CHANNEL`, with the descriptor of an inherited `services.dicom.channel`.
"""

import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AssociationServer, RequestHandler

from services.dicom import contexts, peers, statuses, tls
from services.dicom.channel import Channel, Handed
from services.dicom.guard import Guard
from services.dicom.statuses import Status
from services.dicom.stream import IMPLEMENTATION, VERSION, Incoming, Streaming
from shared.config import Settings
from shared.errors import SimilisError
from shared.imaging.limits import Limits
from shared.imaging.read import quiet_pydicom
from shared.log import configure, get
from shared.pipeline.arrive import arrive
from shared.runtime import Runtime, producer
from shared.store.arrivals import Origin
from shared.store.blobs import MIB

log = get("services.dicom")

MAXIMUM_LENGTH = 128 * 1024  #: maximum PDU length that we negotiate, in bytes
POLL_S = 0.05
WEDGED_S = 60.0  #: how long an association may take to end after its connection was shut down
DRAIN_S = 10.0  #: at shutdown, time for instances that are being stored to be answered
COLLECT_EVERY = 100  #: ended associations between two garbage collections: each leaves reference cycles
_PERMANENT, _USER = 1, 1  #: PS3.8 9.3.4: result and source
_CALLING, _CALLED = 3, 7  #: PS3.8 9.3.4: reasons


class Receiver:
    """Handles the requests of all associations of this process."""

    def __init__(self, rt: Runtime, channel: Channel) -> None:
        self.rt, self.channel, self.settings = rt, channel, rt.settings.dicom
        self.peers = peers.known(self.settings.peers, self.settings.host)
        self.tls = tls.context(self.settings)
        self.limit = min(self.settings.max_instance_mb * MIB, Limits().file_bytes)
        self.busy = 0
        self._lock = threading.Lock()

    @property
    def handlers(self) -> list[evt.EventHandlerType]:
        return [
            (evt.EVT_REQUESTED, self.on_requested),
            (evt.EVT_ACCEPTED, lambda _: self.channel.tell("association", "accepted")),
            (evt.EVT_C_STORE, self.on_store),
        ]

    def on_requested(self, event: Event) -> None:
        """Reject an association with an unknown calling, or a wrong called, AE title."""
        association = event.assoc
        request = association.requestor.primitive
        if not isinstance(request, A_ASSOCIATE) or _handed(association).is_check:
            return
        calling, called = (str(title or "").strip() for title in (request.calling_ae_title, request.called_ae_title))
        if not self.peers.admits(calling, _handed(association).address):
            reason, result = _CALLING, "unknown-calling-ae"
        elif called != self.settings.ae_title:
            reason, result = _CALLED, "unknown-called-ae"
        else:
            return
        self.channel.tell("association", result)
        log.info("association_rejected", reason=result, address=_handed(association).address)
        association.acse.send_reject(_PERMANENT, _USER, reason)
        association.kill()

    def on_store(self, event: Event) -> Dataset:
        """Store the instance durably, or return a failure status with a reason."""
        began = time.monotonic()
        with self._working(), _data_of(event) as data:
            size = data.count
            try:
                outcome, reason, status = self._take(event, data)
            except SimilisError as error:
                reason = str(error) if isinstance(error, statuses.Refusal) else type(error).__name__
                outcome, status = "failed", statuses.of_error(error)
                log.info("instance_refused", exc_info=True)
            except Exception:  # the sender must get a response whatever fails
                outcome, reason, status = "failed", "error", Status.PROCESSING_FAILURE
                log.exception("instance_failed")
        self.channel.tell("instance", outcome, size if status is Status.SUCCESS else 0)
        spent_ms = round((time.monotonic() - began) * 1000, 1)
        event.assoc.dul._idle_timer.restart()  # noqa: SLF001 - else our own time would count as the sender's silence
        say = log.debug if status is Status.SUCCESS else log.info
        say("instance", outcome=outcome, reason=reason, status=f"{status:04X}", bytes=size, duration_ms=spent_ms)
        return statuses.answer(status, reason if status is not Status.SUCCESS else "")

    def _take(self, event: Event, data: Incoming) -> tuple[str, str, Status]:
        """The instance's outcome, reason and status. Raises: `SimilisError`."""
        if _handed(event.assoc).is_check:
            return "refused", "own-check", Status.NOT_AUTHORIZED
        if data.refusal is not None:
            raise data.refusal
        if data.part is None:
            raise statuses.Refusal("no-data-set")
        origin = Origin(source="dicom", sender=event.assoc.requestor.ae_title.strip(), called=self.settings.ae_title)
        rt = self.rt
        (answer,) = arrive(rt.transaction, rt.sandbox, rt.blobs, [data.part], origin, rt.rules)
        return answer.outcome, answer.reason or "", statuses.of_arrived(answer)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1


def _handed(association: Association) -> Handed:
    """What the door said of the association's connection. A check can only come over our own unix socket."""
    found: Handed = association.handed  # type: ignore[attr-defined] # set by Request
    return found


def _data_of(event: Event) -> Incoming:
    data = getattr(event.request, "DataSet", None)
    if not isinstance(data, Incoming):
        raise TypeError("a C-STORE without what stands for its data set")  # `Streaming` sets it on each message
    return data


class Request(RequestHandler):
    """Sets up one connection: pynetdicom's association with `Guard`, `Streaming`, and TLS that cannot stall others."""

    server: "Server"

    def handle(self) -> None:
        receiver, settings, handed = self.server.receiver, self.server.receiver.settings, self.server.handed
        self.request.settimeout(settings.pdu_s)
        if receiver.tls is not None and not handed.is_check:
            # `Guard` does the handshake, in the association's own thread
            self.request = receiver.tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        association = self._create_association()
        transport = association.dul.socket
        if transport is None:
            return

        def tls_failed(error: ssl.SSLError) -> None:
            receiver.channel.tell("association", "tls-failed")
            log.info("association_rejected", reason="tls-failed", address=handed.address, error=error.reason)

        transport.recv = Guard(association, transport, settings.pdu_s, tls_failed).recv  # type: ignore[method-assign]
        association.dimse = Streaming(association, receiver.rt.blobs, receiver.limit)
        association.handed = handed  # type: ignore[attr-defined]
        association.daemon = association.dul.daemon = True
        self.server.held.append(Held(handed.number, association, self.request))
        association.start()


@dataclass
class Held:
    """An association, until both of its threads have ended."""

    number: int
    association: Association
    connection: socket.socket
    born: float = field(default_factory=time.monotonic)
    shut: bool = False

    @property
    def lives(self) -> bool:
        return self.association.is_alive() or self.association.dul.is_alive()

    def shut_down(self) -> None:
        if not self.shut:
            self.shut = True
            with suppress(OSError):
                socket.socket.shutdown(self.connection, socket.SHUT_RDWR)  # skips the TLS close_notify

    def close(self) -> None:
        dimse = self.association.dimse
        if isinstance(dimse, Streaming):
            dimse.close()
        with suppress(OSError):
            self.connection.close()


class Server(AssociationServer):
    """pynetdicom's server without a listening socket: connections come over the channel, one at a time."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver, self.channel = receiver, receiver.channel
        self.held: list[Held] = []
        self.handed = Handed()
        self.ended = False
        self._gone = 0
        ae = AE(ae_title=receiver.settings.ae_title)
        ae.acse_timeout, ae.network_timeout = receiver.settings.pdu_s, receiver.settings.idle_s
        ae.maximum_pdu_size = MAXIMUM_LENGTH
        ae.maximum_associations = 1_000_000  # the door enforces the limits
        ae.implementation_class_uid, ae.implementation_version_name = IMPLEMENTATION, VERSION
        here = ("127.0.0.1", receiver.settings.port)
        super().__init__(ae, here, ae.ae_title, contexts.supported(), None, receiver.handlers, Request)

    def server_bind(self) -> None:
        """Do nothing, and close the unused socket: the door listens."""
        if self.socket is not None:
            self.socket.close()

    def server_activate(self) -> None:
        """Do nothing: the door listens."""

    def run(self) -> None:
        """Serve until the door closes the channel or TERM comes; then drain."""
        self.channel.tell("ready")
        while not self.ended:
            if self.channel.wait(POLL_S):
                found = self.channel.receive()
                if found is None:
                    break
                self._begin(*found)
            self._reap()
        self._drain()

    def _drain(self) -> None:
        """Wait until stored instances are answered, then close every connection and delete incomplete data sets."""
        deadline = time.monotonic() + DRAIN_S
        while self.receiver.busy and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)
        for one in self.held:
            one.shut_down()
        while any(one.lives for one in self.held) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for one in self.held:
            one.close()

    def _begin(self, handed: Handed, connection: socket.socket) -> None:
        self.handed = handed
        try:
            self.finish_request(connection, (handed.address, handed.port))
        except Exception:  # such as a closed connection; the other connections go on
            log.warning("connection_not_served", exc_info=True)
            connection.close()
            self.channel.tell("ended", handed.number)

    def _reap(self) -> None:
        """Remove ended associations and report them to the door; shut down those over their deadline."""
        allowed_s, now = self.receiver.settings.association_s, time.monotonic()
        for one in [held for held in self.held if not held.lives]:
            self.held.remove(one)
            one.close()
            self.channel.tell("ended", one.number)
            self._gone += 1
            if self._gone % COLLECT_EVERY == 0:
                gc.collect()
        for one in self.held:
            if now - one.born > allowed_s:
                one.shut_down()
            if now - one.born > allowed_s + WEDGED_S:
                log.error("association_wedged")
                os._exit(1)  # the door starts another


def main(channel: int) -> int:
    settings = Settings()
    configure("dicom", json=settings.log_json, level=settings.log_level)
    _config.LOG_HANDLER_LEVEL = "none"
    quiet_pydicom()
    warnings.simplefilter("ignore")  # warnings quote data that a peer sent, and so do pynetdicom's logs
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    threading.excepthook = _thread_ended
    rt = Runtime(settings, producer(settings))
    rt.blobs.forget_parts()  # left by a killed receiver
    server = Server(Receiver(rt, Channel(socket.socket(fileno=channel))))

    def end(*_: object) -> None:
        server.ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    server.run()
    rt.close()
    return 0


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """Log only the exception's type, and release the association's other thread, which would wait for this one."""
    log.warning("thread_ended", exception_type=args.exc_type.__name__)
    if isinstance(args.thread, DULServiceProvider):
        args.thread.to_user_queue.put(None)  # type: ignore[arg-type]  # None: no request came
    if isinstance(args.thread, Association):
        args.thread.abort()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
