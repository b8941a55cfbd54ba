"""Start the sandbox child so that it dies with this process, and not earlier.

The kernel sends the death signal when the *thread* that started a child ends, so one thread that lives as long as
the process starts all children.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from shared.imaging.limits import Limits

_lock = threading.Lock()
_starter: ThreadPoolExecutor | None = None


def start(limits: Limits) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a child; return its process and the socket for jobs. The child answers on its standard output."""
    return _thread().submit(_start, limits).result()


def _thread() -> ThreadPoolExecutor:
    global _starter  # noqa: PLW0603 - one per process; a fork gets its own
    with _lock:
        if _starter is None:
            _starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        return _starter


def _start(limits: Limits) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",  # nothing from the working folder, the home or PYTHON* variables
                "-m",
                "shared.priority",
                str(os.nice(0)),  # the niceness of this process, for the child's own session too
                "shared.imaging.child",
                json.dumps(asdict(limits)),
                str(os.getpid()),
            ],
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},  # no secrets
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
    return process, ours


def _after_fork() -> None:
    global _starter, _lock  # a fork copies neither the thread nor a thread that holds the lock
    _starter, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
