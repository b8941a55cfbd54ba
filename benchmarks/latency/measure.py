"""The measurements of one opened engine: raw numbers, one dictionary each.

Latency is that of the call, as a Python client sees it. Closed loops ask one question after the other; the open loop
asks at fixed times, however long the answers take, and counts from when a question was due.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.data import NEAR, Data
from benchmarks.latency.engines.base import Clause, Effort, Engine, Found, Opened
from benchmarks.latency.profiles import Plan

Json = dict[str, Any]
Measurement = tuple[Json, Callable[[], Json]]  #: its key, and the function that measures it

K: Final = 10
GOAL: Final = 0.95  #: recall@10 of the effort that capacity, open loop and k = 1 use
LEAST: Final = 20  #: least number of questions
WARM: Final = 30
ENOUGH: Final = 0.999  #: no further effort is tried above this recall@10
COARSE: Final = 3  #: under a filter, and for k above ten, every third effort is measured
LOAD: Final = 0.5  #: rate of the open loop, as a share of the capacity in a closed loop
FASTEST: Final = 2000.0  #: questions per second: beyond, the wake-up of a thread dominates


def quantiles(ms: list[float]) -> list[float]:
    """The 0th to the 100th percentile, ms with four digits: a compact form of the distribution."""
    return [round(float(value), 4) for value in np.percentile(ms, range(101))]


def recalls(data: Data, name: str, rows: list[int], ids: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """For each query, the share of its k true neighbours; rows as near as the k-th count, repeated rows count once.

    NaN if nothing passes the filter.
    """
    shares, allowed = [], data.clauses(name)
    for row, found in zip(rows, ids, strict=True):
        truth = data.truth[name][row, :k]
        truth = truth[np.isfinite(truth)]
        if not len(truth):
            shares.append(np.nan)
            continue
        unique = np.unique(found[found >= 0])
        if allowed is not None:
            unique = unique[[bool(_passes(data, allowed[row], int(one))) for one in unique]]
        near = data.similarities(row, unique) >= truth[-1] - NEAR
        shares.append(min(int(np.count_nonzero(near)), len(truth)) / len(truth))
    return np.asarray(shares)


def _passes(data: Data, clause: Clause, row: int) -> bool:
    return bool((data.columns[clause.field][row] == clause.value) != clause.exclude)


@dataclass
class Session:
    """One opened engine over one data set."""

    engine: Engine
    opened: Opened
    data: Data
    plan: Plan
    seed: int

    def __post_init__(self) -> None:
        self.most: dict[int, float] = {}  #: answers per second, by number of clients
        self.order = np.random.default_rng(self.seed).permutation(len(self.data.queries)).tolist()

    def ask(self, row: int, k: int, effort: Effort, name: str) -> Found:
        clauses = self.data.clauses(name)
        own = None if clauses is None else clauses[row : row + 1]
        return self.opened.search(self.data.queries[row : row + 1], k, effort, own)

    def cold(self) -> Json:
        """The first questions of a fresh process."""
        ms = []
        for row in self.order[:11]:
            started = time.perf_counter()
            self.ask(row, K, self.engine.efforts[-1], "all")
            ms.append((time.perf_counter() - started) * 1000)
        return {"first_ms": round(ms[0], 4), "next_ms": round(float(np.median(ms[1:])), 4)}

    def batch(self, effort: Effort) -> Json:
        """All queries in one call."""
        started = time.perf_counter()
        found = self.opened.search(self.data.queries, K, effort, None)
        spent = time.perf_counter() - started
        more = {} if self.engine.limit else self._recall("all", list(range(len(found.ids))), found.ids, K)
        return {"n": len(self.data.queries), "per_s": round(len(self.data.queries) / spent, 1)} | more

    def single(self, effort: Effort, k: int, name: str) -> Json:
        """One question after the other, until the plan's time or its questions are over."""
        clauses = self.data.clauses(name)
        rows, ids, ms, engine_ms = [], [], [], []
        until, cpu = time.perf_counter() + self.plan.seconds, time.process_time()
        for row in self.order[: self.plan.queries]:
            own = None if clauses is None else clauses[row : row + 1]
            query = self.data.queries[row : row + 1]
            started = time.perf_counter()
            found = self.opened.search(query, k, effort, own)
            ended = time.perf_counter()
            ms.append((ended - started) * 1000)
            rows.append(row)
            ids.append(found.ids[0])
            if found.engine_ms is not None:
                engine_ms.append(found.engine_ms)
            if ended > until and len(ms) >= LEAST:
                break
        cpu = (time.process_time() - cpu) * 1000 / len(ms)
        result: Json = {"n": len(ms), "ms": quantiles(ms), "cpu_ms": round(cpu, 4)}
        if engine_ms:
            result["engine_ms"] = round(float(np.median(engine_ms)), 4)
        return result if self.engine.limit else result | self._recall(name, rows, np.stack(ids), k)

    def _recall(self, name: str, rows: list[int], ids: NDArray[np.int64], k: int) -> Json:
        shares = recalls(self.data, name, rows, ids, k)
        known = shares[np.isfinite(shares)]
        if not len(known):
            return {}
        error = float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else 0.0
        return {"recall": round(float(known.mean()), 5), "recall_error": round(float(error), 5)}

    def capacity(self, effort: Effort, clients: int) -> Json:
        """Answers per second with `clients` threads asking as fast as they can."""
        self.most[clients], ms = self._many(effort, clients, None, self.ask)
        return {"per_s": round(self.most[clients], 1), "n": len(ms)}

    def open_loop(self, effort: Effort, clients: int, rate: float | None) -> Json:
        """Questions at fixed times; `floor_ms` is the median latency of the loop without an engine.

        Args:
            rate: questions per second; None: `LOAD` of the measured capacity.
        """
        if rate is None:
            if clients not in self.most:  # measured before a resume
                self.capacity(effort, clients)
            rate = min(LOAD * self.most[clients], FASTEST)
        _, ms = self._many(effort, clients, rate, self.ask)
        _, floor = self._many(effort, clients, rate, lambda *_: None, short=True)
        return {"rate_per_s": round(rate, 1), "n": len(ms), "ms": quantiles(ms), "floor_ms": quantiles(floor)[50]}

    def _many(
        self, effort: Effort, clients: int, rate: float | None, ask: Callable[..., object], *, short: bool = False
    ) -> tuple[float, list[float]]:
        """Answers per second, and the latencies in ms from when a question was due (without a rate: asked)."""
        seconds = self.plan.seconds / 4 if short else self.plan.seconds
        ms, lock, number = list[float](), threading.Lock(), iter(range(10**9))
        began = time.perf_counter() + 0.02
        most = None if rate is None else max(LEAST, int(rate * seconds))

        def client() -> None:
            while True:
                with lock:
                    n = next(number)
                now = time.perf_counter()
                if (n >= most) if most is not None else (now > began + seconds and n >= LEAST):
                    return
                due = now if rate is None else began + n / rate
                if due > now:
                    time.sleep(due - now)
                ask(self.order[n % len(self.order)], K, effort, "all")
                took = (time.perf_counter() - due) * 1000
                with lock:
                    ms.append(took)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(ms) / (time.perf_counter() - started), ms

    def parity(self) -> Json:
        """Compare the similarities of the answers with those of the oracle, place by place, under every filter.

        Rows of equal similarity are interchangeable; `worst` is the largest difference at any place.
        """
        worst, wrong = 0.0, 0
        names = [name for name in self.plan.filters if name == "all" or self.engine.filters]
        rows = self.order[: self.plan.checked]
        for name in names:
            for row in rows:
                ids = self.ask(row, K, self.engine.efforts[-1], name).ids[0]
                truth = self.data.truth[name][row, :K]
                found = np.full(K, -np.inf)
                unique = np.unique(ids[ids >= 0])
                found[: len(unique)] = np.sort(self.data.similarities(row, unique))[::-1]
                finite = np.isfinite(truth)
                same = np.array_equal(finite, np.isfinite(found))
                gap = float(np.abs(truth[finite] - found[finite]).max(initial=0)) if same else np.inf
                clauses = self.data.clauses(name)
                passed = clauses is None or all(_passes(self.data, clauses[row], int(one)) for one in unique)
                wrong += not (passed and gap <= NEAR)
                worst = max(worst, gap if np.isfinite(gap) else 2.0)
        return {"checked": len(rows) * len(names), "wrong": wrong, "worst": worst}

    def goal(self, reached: dict[int, float]) -> Effort:
        """The least effort whose recall reaches the goal, or else the greatest effort."""
        efforts = self.engine.efforts
        return next((effort for n, effort in enumerate(efforts) if reached.get(n, 0) >= GOAL), efforts[-1])


def run(session: Session, *, first: bool) -> Iterator[Measurement]:
    """The measurements of one round, in order; `first` adds those that are the same in every round."""
    engine = session.engine
    yield {"what": "cold"}, session.cold
    if engine.exact and first:
        yield {"what": "parity"}, session.parity
    for row in session.order[:WARM]:
        session.ask(row, K, engine.efforts[-1], "all")
    reached: dict[int, float] = {}
    for place, effort in enumerate(engine.efforts):
        yield {"what": "batch", "effort": dict(effort)}, partial(_noted, session, place, reached)
        if reached.get(place, 0.0) >= ENOUGH:
            break
    for place in np.random.default_rng(session.seed).permutation(len(reached)).tolist():
        yield _single(session, engine.efforts[place], K, "all")
    if not engine.limit:
        yield from _elsewhere(session, session.goal(reached))
        yield from _at_once(session, session.goal(reached))


def _noted(session: Session, place: int, reached: dict[int, float]) -> Json:
    found = session.batch(session.engine.efforts[place])
    reached[place] = found.get("recall", 1.0)
    return found


def coarse(efforts: Sequence[Effort], goal: Effort) -> list[Effort]:
    """Every third effort, the greatest, and `goal`; in ascending order."""
    last = len(efforts) - 1
    return [one for n, one in enumerate(efforts) if n % COARSE == 0 or n == last or one == goal]


def _elsewhere(session: Session, goal: Effort) -> Iterator[Measurement]:
    """Single questions for other k and under filters, at several efforts: these may need more effort than the goal."""
    tried = coarse(session.engine.efforts, goal)
    for k in session.plan.ks:
        for effort in tried if k > K else [goal]:
            yield _single(session, effort, k, "all")
    for name in session.plan.filters:
        if name != "all" and session.engine.filters:
            for effort in tried:
                yield _single(session, effort, K, name)


def _at_once(session: Session, effort: Effort) -> Iterator[Measurement]:
    """Capacity and open loop by number of clients; the largest number also at the rate common to all engines."""
    plan = session.plan
    for clients in plan.clients:
        key = {"effort": dict(effort), "clients": clients}
        yield {"what": "capacity"} | key, partial(session.capacity, effort, clients)
        yield {"what": "open", "rate": "own"} | key, partial(session.open_loop, effort, clients, None)
        if clients == max(plan.clients):
            common = partial(session.open_loop, effort, clients, plan.common_per_s)
            yield {"what": "open", "rate": "common"} | key, common


def _single(session: Session, effort: Effort, k: int, name: str) -> Measurement:
    key = {"what": "single", "effort": dict(effort), "k": k, "filter": name}
    return key, partial(session.single, effort, k, name)


def undisturbed(measurement: Callable[[], Json]) -> Json:
    """Run the measurement without garbage collection; add the machine's load average."""
    gc.collect()
    gc.disable()
    try:
        return measurement() | {"load": round(os.getloadavg()[0], 2)}
    finally:
        gc.enable()
