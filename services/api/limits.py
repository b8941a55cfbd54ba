"""What one caller, and all of them together, may ask at once."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Throttled, Unavailable

MOST_KEYS = 4096


class TokenBuckets:
    """A bucket per caller: `burst` at once, `rate_per_s` in the long run.

    Per process: behind N replicas a caller gets N times as much.
    """

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self._filled: OrderedDict[int, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: int, cost: float = 1.0) -> None:
        """Raises: `Throttled` with the time until there is enough again."""
        now = time.monotonic()
        with self._lock:
            tokens, since = self._filled.pop(caller, (float(self.burst), now))
            tokens = min(float(self.burst), tokens + (now - since) * self.rate_per_s)
            enough = tokens >= min(cost, self.burst)
            self._filled[caller] = (tokens - cost if enough else tokens, now)
            while len(self._filled) > MOST_KEYS:
                self._filled.popitem(last=False)
        if not enough:
            wait = (min(cost, self.burst) - tokens) / self.rate_per_s
            raise Throttled("too many requests with this key", retry_after_s=max(1, round(wait + 0.5)))


class Slots:
    """At most `slots` at work and `waiting` in line; the next one is told to come back."""

    def __init__(self, slots: int, waiting: int, patience_s: float = 10.0) -> None:
        self._free = threading.Semaphore(slots)
        self._places = threading.Semaphore(slots + waiting)
        self._patience_s = patience_s

    @contextmanager
    def taken(self, what: str) -> Iterator[None]:
        """Raises: `Unavailable`."""
        if not self._places.acquire(blocking=False):
            raise Unavailable(f"{what} is busy", retry_after_s=2)
        try:
            if not self._free.acquire(timeout=self._patience_s):
                raise Unavailable(f"{what} is busy", retry_after_s=5)
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._places.release()
