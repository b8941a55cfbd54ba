"""The exact in-memory twin, a matrix and a loop. It ships, and tests use it as the oracle of every other engine."""

import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import Conflict, NotFound
from shared.index import checks
from shared.index.base import Answer, Ball, CodeQuery, Filter, Index, Info, Metric, Point, Query, Spec
from shared.index.codes import Scan
from shared.index.grouping import cut
from shared.index.rows import Rows

CHUNK: Final = 8192  # rows at a time: differences of a whole collection would double its memory


class LocalIndex(ABC):
    """A collection in the memory of this process; a subclass writes to it and searches it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._rows = Rows(spec)
        self._lock = threading.Lock()

    def delete(self, ids: Sequence[uuid.UUID]) -> None:
        with self._lock:
            self._rows.delete(ids)

    def near(self, queries: Sequence[CodeQuery]) -> list[Ball]:
        for query in queries:
            checks.check_code_query(self.spec, query)
        with self._lock:
            return [self._ball(query) for query in queries]

    @abstractmethod
    def _ball(self, query: CodeQuery) -> Ball:
        """The ball of one checked query; the lock is held."""

    def get(self, ids: Sequence[uuid.UUID]) -> list[Point]:
        with self._lock:
            return self._rows.points(ids)

    def scan(self, batch: int = 1000) -> Iterator[Sequence[tuple[uuid.UUID, int]]]:
        return self._rows.scan(batch)

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002 - the seam's word
        if filter is None:
            return len(self._rows)
        checks.check_filter(filter)
        with self._lock:
            return int(self._rows.mask(filter).sum())


class MemoryIndex(LocalIndex):
    def write(self, points: Sequence[Point]) -> None:
        with self._lock:
            self._rows.write(points)

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        for query in queries:
            checks.check_query(query)
        vectors = checks.prepare(self.spec, [query.vector for query in queries])
        with self._lock:
            return [self._answer(query, vector) for query, vector in zip(queries, vectors, strict=True)]

    def _answer(self, query: Query, vector: NDArray[np.float32]) -> Answer:
        started = time.perf_counter()
        rows = np.flatnonzero(self._rows.mask(query.filter))
        scores = score(self.spec.metric, self._rows.vectors, rows, vector)
        wanted = query.limit if query.group_by is None else len(rows)
        hits = cut(self._rows.best(rows, scores, wanted), query) if wanted else []
        return Answer(hits=tuple(hits), exact=True, engine_ms=(time.perf_counter() - started) * 1000)

    def _ball(self, query: CodeQuery) -> Ball:
        """The ball by every distance, counted bit by bit: the reference for the scans of the other engines."""
        started = time.perf_counter()
        rows = np.flatnonzero(self._rows.mask(query.filter))
        differing = self._rows.codes[rows, : self.spec.bits // 8] ^ query.code
        distances = np.unpackbits(differing, axis=1).sum(axis=1, dtype=np.int32)
        nearest = np.sort(distances)[: query.k]
        radius = query.radius if query.radius is not None else int(nearest[-1]) if len(nearest) else 0
        kept = distances <= radius
        return self._rows.ball(query, Scan(rows[kept], distances[kept], radius), started)

    def info(self) -> Info:
        return Info(points=len(self._rows), indexed=len(self._rows))

    def optimize(self, goes_on: Callable[[], bool] = lambda: True) -> bool:  # noqa: ARG002 - nothing to wait for
        """Forget the tombstones; there is nothing to link."""
        with self._lock:
            if self._rows.size > len(self._rows):
                self._rows = self._rows.compacted()
        return False


def score(
    metric: Metric, vectors: NDArray[np.float32], rows: NDArray[np.intp], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Score of each of these rows, higher is better; equal rows score equally, which BLAS does not guarantee."""
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), CHUNK):
        part = vectors[rows[start : start + CHUNK]]
        if metric is Metric.L2:
            scores[start : start + CHUNK] = -np.linalg.norm(part - query, axis=1)
        else:
            scores[start : start + CHUNK] = np.einsum("ij,j->i", part, query)
    return scores


class LocalStore:
    """Collections in the memory of this process; they end with it. `make` builds one."""

    def __init__(self, make: Callable[[Spec], Index]) -> None:
        self._make = make
        self._collections: dict[str, Index] = {}
        self._lock = threading.Lock()

    def create(self, name: str, spec: Spec) -> Index:
        checks.check_name(name)
        checks.check_spec(spec)
        with self._lock:
            if name not in self._collections:
                self._collections[name] = self._make(spec)
            if self._collections[name].spec != spec:
                raise Conflict(f"collection {name} exists with another spec")
            return self._collections[name]

    def open(self, name: str) -> Index:
        checks.check_name(name)
        if name not in self._collections:
            raise NotFound(f"there is no collection {name}")
        return self._collections[name]

    def drop(self, name: str) -> None:
        checks.check_name(name)
        self._collections.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self._collections)

    def ping(self) -> None:
        """Never raises: the collections are in this process."""

    def close(self) -> None:
        self._collections.clear()


class MemoryStore(LocalStore):
    def __init__(self) -> None:
        super().__init__(MemoryIndex)
