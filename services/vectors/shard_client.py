"""The owner's client of the processes that hold the shards (`services.vectors.shard_process`)."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import grpc

from services.vectors.refused import Refused
from services.vectors.translate import Layout

STARTS_WITHIN_S: Final = 120.0  #: the fork server, too, a second on an idle machine
CLOSES_WITHIN_S: Final = 20.0
#: Timeout of one request, without its wait for earlier ones. The longest known requests take a few seconds: an exact
#: search of a million vectors, a payload index of a full shard, a flush to a slow disk.
ANSWERS_WITHIN_S: Final = 60.0
LOADS_WITHIN_S: Final = 600.0
WRITES: Final = frozenset({"Upsert", "Replay", "Delete", "CreateFieldIndex", "Flush"})
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Gone(Exception):
    """The child has ended, or this client was closed."""


class Hung(Gone):
    """The child did not answer in time, and was killed."""


class ShardClient:
    """Sends requests to the child that holds a shard; reads run one at a time, and so do writes.

    Raises: `Refused` (DATA_LOSS) where the shard cannot be loaded.
    """

    def __init__(
        self,
        reads: Connection,
        writes: Connection,
        *,
        answers_within_s: float = ANSWERS_WITHIN_S,
        loads_within_s: float = LOADS_WITHIN_S,
    ) -> None:
        self._ends = {False: (reads, threading.Lock()), True: (writes, threading.Lock())}
        self._asked: dict[bool, float] = {}
        self._pid: int | None = None
        limit(writes, STARTS_WITHIN_S)
        try:
            pid = int(writes.recv_bytes())
            self._pid = os.pidfd_open(pid)
            limit(writes, loads_within_s)
            writes.recv_bytes()
        except (EOFError, OSError):
            self._kill(CLOSES_WITHIN_S)  # it must not write into a folder that may be dropped next
            self.close()
            raise Refused(grpc.StatusCode.DATA_LOSS, "a shard cannot be loaded; the log says why") from None
        for end in (reads, writes):
            limit(end, answers_within_s)

    def ask(self, name: str, raw: bytes) -> bytes:
        """The serialised reply. Raises: `Refused`, `Gone`, `Hung`."""
        end, lock = self._ends[name in WRITES]
        with lock, self._timed(name in WRITES):
            try:
                end.send_bytes(name.encode("ascii") + b"\0" + raw)
                answer = end.recv_bytes()
            except BlockingIOError:  # killed, because a late reply would be taken for that of the next request
                self._kill()
                raise Hung from None
            except (EOFError, OSError):
                raise Gone from None
        if answer[0]:
            raise Refused(CODES[answer[0]], answer[1:].decode("utf-8"))
        return answer[1:]

    def silent_s(self) -> float:
        """Seconds for which the oldest request in progress has been unanswered; 0 without one."""
        return time.monotonic() - min(self._asked.copy().values(), default=time.monotonic())

    @contextmanager
    def _timed(self, writes: bool) -> Iterator[None]:
        self._asked[writes] = time.monotonic()
        try:
            yield
        finally:
            del self._asked[writes]

    def _kill(self, wait_s: float = 0) -> None:
        """Kill the child, and wait so long for its end."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid, signal.SIGKILL)
            ended = select.poll()
            ended.register(self._pid, select.POLLIN)
            ended.poll(wait_s * 1000)

    def close(self) -> None:
        """Wait for requests in progress, then for the child to flush, close the shard and end."""
        for writes, (end, lock) in self._ends.items():
            with lock, end, suppress(EOFError, OSError):
                if writes:
                    with socket.fromfd(end.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as half:
                        half.shutdown(socket.SHUT_WR)
                    if end.poll(CLOSES_WITHIN_S):
                        end.recv_bytes()
        if self._pid is not None:
            os.close(self._pid)
            self._pid = None


def limit(end: Connection, seconds: float) -> None:
    """Set the socket's timeout: a read or write without progress for this long raises `BlockingIOError`."""
    moment = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(end.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, moment)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, moment)


class ForkServer:
    """Forks a process for each shard; is restarted if it has ended."""

    def __init__(self, *, answers_within_s: float = ANSWERS_WITHIN_S, loads_within_s: float = LOADS_WITHIN_S) -> None:
        self._limits = {"answers_within_s": answers_within_s, "loads_within_s": loads_within_s}
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "services.vectors.shard_process", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def load(self, shard: Path, layout: Layout) -> ShardClient:
        """The shard is loaded in a child of its own. Raises: `Refused` where it cannot be."""
        pairs = [socket.socketpair() for _ in range(2)]
        order = f"{shard}\0{layout.to_text()}".encode()
        handles = [theirs.fileno() for _, theirs in pairs]
        with self._lock:
            try:
                socket.send_fds(self._orders, [order], handles)
            except ConnectionError:  # it has ended
                self.close()
                self._start()
                socket.send_fds(self._orders, [order], handles)
        for _, theirs in pairs:
            theirs.close()
        reads, writes = (Connection(ours.detach()) for ours, _ in pairs)
        return ShardClient(reads, writes, **self._limits)

    def close(self) -> None:
        self._orders.close()
        self._process.wait()
