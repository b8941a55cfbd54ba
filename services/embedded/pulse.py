"""Detects a child that hangs, by the absence of its heartbeats.

The supervisor never blocks on a child. It adds up a child's silence over its own looks, at most two intervals for
each, so that time in which the machine slept or the supervisor did not run hardly counts, and no wall clock is used.
"""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared import process

LOOK_S = 5.0  #: between two looks at a child
ASK_AGAIN = 6  #: looks after which a request to /livez counts as lost
BUSY = 0.01  #: share of a processor above which a child counts as computing, not as hung
CROWDED = 4.0  #: load per processor above which silence is not counted


class Sign(Protocol):
    """A child's heartbeat."""

    def seen(self) -> bool:
        """Whether there was a heartbeat since the last call; does not wait."""

    def forget(self) -> None:
        """Reset, for a new child."""


class Touched:
    """A file that the child touches. Any change of its time is a heartbeat, so a clock that is set does no harm."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: int | None = None

    def seen(self) -> bool:
        try:
            now = self.path.stat().st_mtime_ns
        except OSError:
            return False
        before, self._last = self._last, now
        return now != before

    def forget(self) -> None:
        self._last = None


class Answered:
    """The API's answers to /livez: one request at a time, repeated after its answer or after `ASK_AGAIN` looks."""

    def __init__(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._address = (host, port)
        self._question = f"GET /livez HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\n\r\n".encode()
        self._asked: socket.socket | None = None
        self._looks = 0

    def seen(self) -> bool:
        if self._asked is None:
            self._ask()
            return False
        self._looks += 1
        try:
            answer = self._asked.recv(64)
        except BlockingIOError:
            if self._looks >= ASK_AGAIN:
                self.forget()
            return False
        except OSError:
            answer = b""
        self.forget()
        return answer.startswith(b"HTTP/1.1 200")

    def _ask(self) -> None:
        """Send a request. The listening socket is the supervisor's, so the kernel accepts even while the API hangs."""
        try:
            self._asked = socket.create_connection(self._address, timeout=1)
            self._asked.sendall(self._question)
            self._asked.setblocking(False)
        except OSError:
            self.forget()

    def forget(self) -> None:
        if self._asked is not None:
            self._asked.close()
        self._asked, self._looks = None, 0


@dataclass
class Pulse:
    """Counts how long a child has been silent.

    Args:
        patience_s: silence after which the child is hung; longer than any of its steps without a heartbeat.
        computes: CPU use counts as a heartbeat. False for a process that must answer at any time.
    """

    sign: Sign
    patience_s: float
    computes: bool = True
    look_s: float = LOOK_S
    silent_s: float = field(default=0.0, init=False)
    _looked: float = field(default=0.0, init=False)
    _used_s: float | None = field(default=None, init=False)

    def begin(self, now: float) -> None:
        """Reset the count, for a new child or the same one."""
        self.sign.forget()
        self.silent_s, self._looked, self._used_s = 0.0, now, None

    def stopped(self, pid: int, now: float) -> bool:
        """Whether the child has been silent for longer than `patience_s`.

        Args:
            now: time of the monotonic clock.
        """
        passed_s = now - self._looked
        if passed_s < self.look_s:
            return False
        self._looked = now
        if self.sign.seen():
            self.silent_s, self._used_s = 0.0, None
        elif self.computes and self._has_computed(pid, passed_s):
            self.silent_s = 0.0
        elif not crowded():
            self.silent_s += min(passed_s, 2 * self.look_s)
        return self.silent_s > self.patience_s

    def _has_computed(self, pid: int, passed_s: float) -> bool:
        before, self._used_s = self._used_s, process.used_s(pid)
        # the sum falls when one of the process's children ends, which is a sign of life, too
        return before is not None and (self._used_s < before or self._used_s - before > BUSY * passed_s)


def crowded() -> bool:
    return os.getloadavg()[0] > CROWDED * (os.cpu_count() or 1)
