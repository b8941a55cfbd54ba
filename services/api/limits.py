"""Rate and concurrency limits, per caller and for all callers together."""

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Throttled, Unavailable

MOST_KEYS = 4096


class TokenBuckets:
    """A token bucket per caller: `burst` requests at once, `rate_per_s` in the long run.

    The buckets are per process: behind N replicas a caller gets N times the rate.
    """

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self._filled: OrderedDict[int, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: int) -> None:
        """Take one token. Raises: `Throttled`, with the time until a whole token is available."""
        left = self.charge(caller, 1.0, only_if_enough=True)
        if left < 0:
            raise Throttled("too many requests with this key", retry_after_s=max(1, math.ceil(-left / self.rate_per_s)))

    def charge(self, caller: int, cost: float, *, only_if_enough: bool = False) -> float:
        """Subtract the cost and return the balance, which may go below 0: the caller's later requests then wait.

        With `only_if_enough` a bucket that cannot pay is left unchanged.
        """
        now = time.monotonic()
        with self._lock:
            tokens, since = self._filled.pop(caller, (float(self.burst), now))
            tokens = min(float(self.burst), tokens + (now - since) * self.rate_per_s)
            left = tokens - cost
            self._filled[caller] = (tokens if only_if_enough and left < 0 else left, now)
            while len(self._filled) > MOST_KEYS:
                self._filled.popitem(last=False)
        return left


class Slots:
    """At most `slots` requests run and `waiting` more wait, for up to `patience_s`; further requests are refused.

    One caller holds at most `each` of these places, so that others find one; caller 0 (no key) is not limited.
    """

    def __init__(self, slots: int, waiting: int, patience_s: float = 10.0, *, each: float = math.inf) -> None:
        self._free = threading.Semaphore(slots)
        self._places = threading.Semaphore(slots + waiting)
        self._patience_s = patience_s
        self._each = each
        self._held: Counter[int] = Counter()  #: by caller
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, what: str, caller: int = 0) -> Iterator[None]:
        """Hold a slot. Raises: `Throttled` for a caller with `each` places, `Unavailable` when none comes free."""
        with self._counted(what, caller):
            if not self._places.acquire(blocking=False):
                raise Unavailable(f"all places for {what} are taken", retry_after_s=2)
            try:
                if not self._free.acquire(timeout=self._patience_s):
                    raise Unavailable(f"all places for {what} are taken", retry_after_s=5)
                try:
                    yield
                finally:
                    self._free.release()
            finally:
                self._places.release()

    @contextmanager
    def _counted(self, what: str, caller: int) -> Iterator[None]:
        with self._lock:
            if caller and self._held[caller] >= self._each:
                raise Throttled(f"{what}: one key may have at most {self._each:g} requests at once", retry_after_s=2)
            self._held[caller] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[caller] -= 1
                if not self._held[caller]:
                    del self._held[caller]
