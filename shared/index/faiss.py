"""FAISS behind the seam: flat for `exact`, an HNSW graph otherwise. In the memory of one process.

Native: the distances, the graph, and exclusion by a bitmap over rows. Ours: ids, payloads, filters (masks over
columns), deletes (tombstones; FAISS cannot take a node out of its graph), the revision guard, grouping.
`hnsw-int8` keeps float32 vectors: FAISS's int8 graph does not re-score, and stays below the requested recall.
Persistence: none; an index is written again from the stored encodings.

Hundreds of copies of one vector divide its graph into islands, and searches find less than they ask for: 0.74 instead
of 0.9 with 1,000 copies among 12,000 vectors. Such a collection should be `exact`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from shared.index import checks, codes
from shared.index.base import Answer, Ball, CodeQuery, Exact, Hit, Info, Metric, Point, Query, Spec
from shared.index.effort import effort
from shared.index.grouping import emulate
from shared.index.memory import LocalIndex, LocalStore

faiss: Any = _faiss  # its stubs are incomplete
#: (recall to reach, efSearch), measured on 100,000 clustered vectors; the graph alone, no filter.
EF: Final = ((0.90, 64), (0.965, 128), (0.99, 256), (1.0, 512))
#: Below this share of matching rows a graph search loses recall (0.91 at 10 %, 0.68 at 1 %), and a scan is as fast.
WALK_ABOVE: Final = 0.3


class FaissIndex(LocalIndex):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._engine = build(spec)

    def write(self, points: Sequence[Point]) -> None:
        with self._lock:
            first = self._rows.write(points)
            if self._rows.size > first:
                self._engine.add(np.ascontiguousarray(self._rows.vectors[first:]))

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        for query in queries:
            checks.check_query(query)
        vectors = checks.prepare(self.spec, [query.vector for query in queries])
        return [
            self._answer(query, vector) if query.group_by is None else emulate(self.search, [query])[0]
            for query, vector in zip(queries, vectors, strict=True)
        ]

    def _answer(self, query: Query, vector: NDArray[np.float32]) -> Answer:
        started = time.perf_counter()
        with self._lock:
            mask = self._rows.mask(query.filter)
            matching = int(mask.sum())
            walk = self._walks(query, matching)
            hits = self._hits(query, vector, mask, walk)
            if walk and len(hits) < min(query.limit, matching):  # the graph search found too few
                walk = False
                hits = self._hits(query, vector, mask, walk)
        return Answer(hits=tuple(hits), exact=not walk, engine_ms=(time.perf_counter() - started) * 1000)

    def _walks(self, query: Query, matching: int) -> bool:
        if self.spec.scale == "exact" or isinstance(query.accuracy, Exact):
            return False
        return matching > WALK_ABOVE * self._rows.size and query.limit * 10 < matching

    def _hits(self, query: Query, vector: NDArray[np.float32], mask: NDArray[np.bool_], walk: bool) -> list[Hit]:
        found, scores = self._find(query, vector, mask, walk, query.limit)
        return self._rows.best(found, scores, query.limit)

    def _find(
        self, query: Query, vector: NDArray[np.float32], mask: NDArray[np.bool_], walk: bool, limit: int
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        limit = min(limit, self._rows.size)
        if not limit:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        if walk:
            target = 1.0 if isinstance(query.accuracy, Exact) else query.accuracy.target
            ef = max(effort(EF, target, self._rows.size), 2 * limit)
            params = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
            distances, rows = self._engine.search(vector[None], limit, params=params)
        else:
            flat = self._engine if self.spec.scale == "exact" else faiss.downcast_index(self._engine.storage)
            distances, rows = flat.search(vector[None], limit, params=faiss.SearchParameters(sel=selector))
        kept = rows[0] >= 0
        return rows[0][kept], _scores(self.spec.metric, distances[0][kept])

    def _ball(self, query: CodeQuery) -> Ball:
        started = time.perf_counter()
        code = codes.padded(query.code[None])[0]
        scan = codes.ball(
            self._rows.codes, code, lambda rows: self._rows.mask(query.filter, rows), k=query.k, radius=query.radius
        )
        return self._rows.ball(query, scan, started)

    def info(self) -> Info:
        return Info(points=len(self._rows), indexed=0 if self.spec.scale == "exact" else len(self._rows))

    def optimize(self, goes_on: Callable[[], bool] = lambda: True) -> bool:  # noqa: ARG002 - nothing to wait for
        """Rebuild the graph without tombstones, beside the old one; points are linked as they are written."""
        with self._lock:
            if self._rows.size == len(self._rows):
                return False
            rows, size = self._rows.compacted(), self._rows.size
        engine = build(self.spec)
        if rows.size:
            engine.add(np.ascontiguousarray(rows.vectors))
        with self._lock:
            if self._rows.size != size or len(self._rows) != len(rows):
                return False  # rows were written meanwhile: the next call rebuilds
            self._rows, self._engine = rows, engine
            return True


def build(spec: Spec) -> Any:  # noqa: ANN401 - faiss has no types
    metric = faiss.METRIC_L2 if spec.metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    if spec.scale == "exact":
        return faiss.IndexFlat(spec.dim, metric)
    graph = faiss.IndexHNSWFlat(spec.dim, spec.m, metric)
    graph.hnsw.efConstruction = spec.ef_construct
    return graph


def _scores(metric: Metric, distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores from FAISS's distances, which are squared for L2 and inner products otherwise."""
    if metric is Metric.L2:
        return np.asarray(-np.sqrt(np.maximum(distances, 0)), np.float32)
    return distances


class FaissStore(LocalStore):
    def __init__(self) -> None:
        super().__init__(FaissIndex)
