"""Clients that query the API for similar studies and record the latency of each answer."""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.stack import Connection, Stack
from shared.errors import Unavailable

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of latency, in milliseconds."""

    n: int
    p50: float
    p95: float
    p99: float
    worst: float
    failed: int = 0

    @classmethod
    def of(cls, ms: Sequence[float], failed: int = 0) -> "Latency":
        p50, p95, p99, worst = (round(float(v), 2) for v in np.percentile(ms, (50, 95, 99, 100)))
        return cls(len(ms), p50, p95, p99, worst, failed)


@dataclass
class Asked:
    """What a client recorded: for each query the time until the whole answer had arrived, and the answer."""

    ms: list[float] = field(default_factory=list)  #: from when the query was due
    waited: list[float] = field(default_factory=list)  #: the part of `ms` until a client was free to send the query
    bodies: list[bytes] = field(default_factory=list)
    failed: int = 0

    def answers(self) -> Iterator[Json]:
        for body in self.bodies:
            yield json.loads(body)

    def parts(self) -> Iterator[dict[str, float]]:
        """Each latency split into parts, ms: those that the answer reports, and the remainder seen by the client."""
        for ms, waited, answer in zip(self.ms, self.waited, self.answers(), strict=True):
            told = answer["timings_ms"]
            yield {
                "HTTP, key, JSON: client's time without the search": ms - waited - told["total"],
                "before the index: pointer and the study's vectors": told["before_index"],
                "index: protobuf and socket": told["index"] - told["engine"],
                "index: engine (time of the reply)": told["engine"],
                "after the index: rows behind the hits, grouping, counting": told["after_index"],
            }

    def slowest(self) -> dict[str, float]:
        """The parts of the answer that took longest, without the time that its query waited for a client."""
        return max(self.parts(), key=lambda parts: sum(parts.values()))

    @property
    def latency(self) -> Latency:
        return Latency.of(self.ms, self.failed)


def path(uid: str) -> str:
    return f"/v1/studies/{uid}/similar"


@contextmanager
def no_collector() -> Iterator[None]:
    """Disable the client's garbage collector, which would add to the latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def closed(stack: Stack, uids: Sequence[str], **query: object) -> Asked:
    """One client that sends its next query as soon as it has the answer to the last one."""
    asked, connection = Asked(), stack.connect()
    try:
        with no_collector():
            for uid in uids:
                started = time.perf_counter()
                body = connection.fetch(path(uid), **query)
                asked.ms.append((time.perf_counter() - started) * 1000)
                asked.waited.append(0.0)
                asked.bodies.append(body)
    finally:
        connection.close()
    return asked


def opened(
    stack: Stack, uids: Sequence[str], rate: float, clients: int, go_on: Callable[[], bool] | None = None
) -> Asked:
    """Queries sent at fixed times, however long the answers take; latency counts from when a query was due.

    Args:
        rate: questions per second of all clients together.
        clients: the most queries in flight at once.
        go_on: called before every query; the UIDs are repeated as long as it returns true. Without it, each UID once.
    """
    asked, lock, number = Asked(), threading.Lock(), iter(range(10**9))

    def client(connection: Connection) -> None:
        try:
            while True:
                with lock:
                    n = next(number)
                due = began + n / rate
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                if not go_on() if go_on is not None else n >= len(uids):
                    return
                sent = time.perf_counter()
                try:
                    body = connection.fetch(path(uids[n % len(uids)]))
                except Unavailable:
                    with lock:
                        asked.failed += 1
                    continue
                with lock:
                    asked.ms.append((time.perf_counter() - due) * 1000)
                    asked.waited.append((sent - due) * 1000)
                    asked.bodies.append(body)
        finally:
            connection.close()

    with no_collector():  # collects before it connects, so that both are over when the first query is due
        threads = [threading.Thread(target=client, args=(stack.connect(),)) for _ in range(clients)]
        began = time.perf_counter() + 0.01
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return asked
