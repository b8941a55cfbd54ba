"""Whether a child that served still lives: a death is seen by itself, a hang only by what does not come any more.

A child is asked, or gives a sign by itself, and is never waited for. Its silence is counted as we live through it: a
machine that slept, or was too busy to let us look, has counted nothing, and no clock is trusted that could be set.
"""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared import process

LOOK_S = 5.0  #: between two looks
ASK_AGAIN = 6  #: looks, after which a question counts as lost
BUSY = 0.01  #: of a processor: who uses more of it computes, and has not hung
CROWDED = 4.0  #: processes that want to run, for each processor: then nobody's silence says anything


class Sign(Protocol):
    """What a child shows life by."""

    def seen(self) -> bool:
        """Whether it has since the last call; answers at once."""

    def forget(self) -> None:
        """Another child has taken its place."""


class Touched:
    """A file that the child touches. Only whether its time has changed counts: a clock that was set does no harm."""

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
    """The API's answer to /livez: one question at a time, and a new one when it has come or was waited for too long."""

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
        """The socket that listens is the supervisor's own: the kernel takes the question while the API hangs, too."""
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
    """How long a child has shown no life.

    Args:
        patience_s: longer than anything it may do without a sign.
        computes: what uses a processor is busy, however silent it is. Not for who has to answer at any time.
    """

    sign: Sign
    patience_s: float
    computes: bool = True
    look_s: float = LOOK_S
    silent_s: float = field(default=0.0, init=False)
    _looked: float = field(default=0.0, init=False)
    _used_s: float | None = field(default=None, init=False)

    def begin(self, now: float) -> None:
        """From now on another child is watched, or the same one from the start."""
        self.sign.forget()
        self.silent_s, self._looked, self._used_s = 0.0, now, None

    def stopped(self, pid: int, now: float) -> bool:
        """Whether it has been silent for longer than its patience.

        Args:
            now: by the monotonic clock.
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
        # less than before: a child of it has ended, which is a sign, too
        return before is not None and (self._used_s < before or self._used_s - before > BUSY * passed_s)


def crowded() -> bool:
    return os.getloadavg()[0] > CROWDED * (os.cpu_count() or 1)
