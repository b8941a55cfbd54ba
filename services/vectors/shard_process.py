"""Runs each shard in a process of its own, so that a busy shard, above all one that is loading, blocks no other.

Edge holds the GIL in every call. So a child loads, searches and writes a shard, and the gRPC process
(`services.vectors.server`) forwards requests as bytes. A child has one thread for reads and one for writes, each on
its own socket; a read may run between two steps of a write.

A fork server that has imported everything forks the children, in 10 ms instead of a second. It is this module:
`python -m services.vectors.shard_process FD PARENT_PID`. It and its children end when their sockets close.
"""

import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from services.vectors.shard_service import ShardService
from services.vectors.translate import Layout
from shared import log
from shared.process import die_with_parent

REST_S: Final = 0.0005  # pause between two steps of catching up, of 0.3 ms each, to leave CPU time to others
WAIT_S: Final = 10.0  # for the child of a killed process to release the shard
_log = log.get(__name__)


def serve(path: Path, layout: Layout, reads: Connection, writes: Connection) -> None:
    """Load the shard at this path and serve it until both sockets close; then flush and close it."""
    writes.send_bytes(str(os.getpid()).encode("ascii"))  # for the owner to kill, should loading never end
    with held(path):
        service = ShardService(path, layout)
        gc.collect()
        gc.freeze()  # collections over all loaded objects cost 0.2 ms a search
        gc.set_threshold(50_000)
        sys.setswitchinterval(0.001)  # so that a read waits less for the Python parts of a write
        writes.send_bytes(b"\0")
        reader = threading.Thread(target=_answer, args=(service, reads, service.behind), name="reads")
        reader.start()
        _answer(service, writes)
        reader.join()
        service.close()


def _answer(service: ShardService, peer: Connection, behind: Callable[[], bool] = lambda: False) -> None:
    """Answer requests until the socket closes; while none waits and `behind` holds, let the service catch up."""
    try:
        while True:
            while behind() and not peer.poll(REST_S):
                service.catch_up()
            name, _, raw = peer.recv_bytes().partition(b"\0")
            peer.send_bytes(service.answer(name.decode("ascii"), raw))
    except (EOFError, OSError):
        return


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the folder's lock: a child that outlives its owner for a moment never shares a shard with its successor.

    Raises: `BlockingIOError` where another process holds the lock for longer than `WAIT_S`.
    """
    until = time.monotonic() + WAIT_S
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle, until)
        if (path / "wal").is_dir():  # Edge's own lock: a killed process's two locks are not released together
            log_handle = os.open(path / "wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _lock(log_handle, until)
            finally:
                os.close(log_handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def main(arguments: Sequence[str]) -> int:
    """The fork server: forks a child for each message, which holds a path, a layout and two sockets."""
    die_with_parent(int(arguments[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the owner stops us by closing the socket
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    log.configure("vectors")
    gc.freeze()
    with socket.socket(fileno=int(arguments[0])) as orders:
        while True:
            order, handles, _, _ = socket.recv_fds(orders, 1 << 16, 2)
            if not order:
                return 0
            pid = os.getpid()
            if os.fork() == 0:
                orders.close()
                os._exit(_child(order, handles, pid))
            for handle in handles:
                os.close(handle)


def _child(order: bytes, handles: Sequence[int], parent: int) -> int:
    die_with_parent(parent)
    path, layout = order.decode("utf-8").split("\0")
    try:
        serve(Path(path), Layout.from_text(layout), Connection(handles[0]), Connection(handles[1]))
    except Exception as error:
        _log.exception("shard_process_ended", exception_type=type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
