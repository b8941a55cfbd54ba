"""The owner's end of the children that hold the shards (`services.vectors.engine`)."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import grpc

from services.vectors.refused import Refused
from services.vectors.translate import Layout

CLOSES_WITHIN_S: Final = 20.0
WRITES: Final = frozenset({"Upsert", "Replay", "Delete", "CreateFieldIndex", "Flush"})
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Gone(Exception):
    """The child has ended, or was closed."""


class Engine:
    """A child that holds one shard; questions wait for questions, writes for writes."""

    def __init__(self, reads: Connection, writes: Connection) -> None:
        self._ends = {False: (reads, threading.Lock()), True: (writes, threading.Lock())}
        try:
            writes.recv_bytes()
        except (EOFError, OSError):
            self.close()
            raise RuntimeError("a shard cannot be loaded; the log says why") from None

    def ask(self, name: str, raw: bytes) -> bytes:
        """The serialised reply. Raises: `Refused`, `Gone`."""
        end, lock = self._ends[name in WRITES]
        with lock:
            try:
                end.send_bytes(name.encode("ascii") + b"\0" + raw)
                answer = end.recv_bytes()
            except (EOFError, OSError):
                raise Gone from None
        if answer[0]:
            raise Refused(CODES[answer[0]], answer[1:].decode("utf-8"))
        return answer[1:]

    def close(self) -> None:
        """What is being asked is answered; the child has flushed, let go of the shard, and ended."""
        for writes, (end, lock) in self._ends.items():
            with lock, end, suppress(EOFError, OSError):
                if writes:
                    with socket.fromfd(end.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as half:
                        half.shutdown(socket.SHUT_WR)
                    if end.poll(CLOSES_WITHIN_S):
                        end.recv_bytes()


class Nursery:
    """Forks an engine for a shard; started again should it end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "services.vectors.engine", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def engine(self, shard: Path, layout: Layout) -> Engine:
        """The shard is loaded in a child of its own. Raises: `RuntimeError` where it cannot be."""
        pairs = [socket.socketpair() for _ in range(2)]
        order = f"{shard}\0{layout.to_text()}".encode()
        with self._lock:
            if self._process.poll() is not None:
                self._orders.close()
                self._start()
            socket.send_fds(self._orders, [order], [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        reads, writes = (Connection(ours.detach()) for ours, _ in pairs)
        return Engine(reads, writes)

    def close(self) -> None:
        self._orders.close()
        self._process.wait()
