"""One shard in a process of its own: what holds it up, loading above all, holds up nobody else.

Edge holds the GIL in every call. So a shard is loaded, searched and written to in a child, and the process that answers
gRPC (`services.vectors.server`) passes requests on, as the bytes they are. A child has one thread for questions and one
for writes, each at the end of a socket; between two steps of a write a question gets its turn.

Children are forked by a server that has imported everything: 10 ms instead of a second. The fork server is this module:
`python -m services.vectors.shard_process FD PARENT_PID`. It and its children end when their sockets do.
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

REST_S: Final = 0.0005  # between two steps of catching up, which take 0.3 ms: most of a processor is left to others
WAIT_S: Final = 10.0  # for the child of a killed process to let go of the shard
_log = log.get(__name__)


def serve(path: Path, layout: Layout, reads: Connection, writes: Connection) -> None:
    """The shard at this path was served until both sockets ended; then it is flushed and closed."""
    writes.send_bytes(str(os.getpid()).encode("ascii"))  # who to kill, should loading never end
    with held(path):
        service = ShardService(path, layout)
        gc.collect()
        gc.freeze()  # what is loaded stays: looking through it again and again cost 0.2 ms a search
        gc.set_threshold(50_000)
        sys.setswitchinterval(0.001)  # a question does not wait long for the Python parts of a write
        writes.send_bytes(b"\0")
        reader = threading.Thread(target=_answer, args=(service, reads, service.behind), name="reads")
        reader.start()
        _answer(service, writes)
        reader.join()
        service.close()


def _answer(service: ShardService, peer: Connection, behind: Callable[[], bool] = lambda: False) -> None:
    """Every request is answered, until there come no more. What the service is behind with is done while none waits."""
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
    """The folder is locked: a child that outlives its owner for a moment and its successor never share a shard.

    Raises: `BlockingIOError` where the other does not let go.
    """
    until = time.monotonic() + WAIT_S
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle, until)
        if (path / "wal").is_dir():  # Edge's own lock; the two of a process that was killed are freed one by one
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
    """The fork server: a child for each message, which holds a path and brings its two sockets along."""
    die_with_parent(int(arguments[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the owner tells us by closing the socket
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
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
