"""Shared by the Qdrant Edge engines: filling a shard and searching it, in the measuring process without gRPC.

Edge holds the GIL in every call, so only one engine runs in this process. One search thread; the payload indexes are
of the platform's kinds: that of the patient adds no links to the graph, the others do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Found, InProcess

VECTOR = "v"
STEP = 1000
Convert = Callable[[Array], Any]


def build(folder: Path, rows: Array, columns: Columns, params: Any, convert: Convert) -> None:  # noqa: ANN401
    """Build a flushed, optimised shard of one segment.

    Args:
        params: Edge's parameters of the vector.
        convert: turns a row into the float32 vector that Edge stores.
    """
    import qdrant_edge as edge

    config = edge.EdgeConfig(
        vectors={VECTOR: params},
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
        max_search_threads=1,
        payload_memory=edge.Memory.Cached,
        wal_enabled=False,
    )
    shard = edge.EdgeShard.create(str(folder / "shard"), config)
    for field in columns:
        linked = field != "patient"
        schema = edge.IntegerIndexParams(lookup=True, range=False, enable_hnsw=linked)
        shard.update(edge.UpdateOperation.create_field_index(field, schema))
    names = list(columns)
    values = np.stack([columns[name] for name in names], axis=1) if names else np.empty((len(rows), 0), np.int64)
    for start in range(0, len(rows), STEP):
        points = [
            edge.Point(
                id=start + n,
                vector={VECTOR: memoryview(convert(row))},  # type: ignore[dict-item]  # Edge's stubs require a list
                payload=dict(zip(names, values[start + n].tolist(), strict=True)),
            )
            for n, row in enumerate(rows[start : start + STEP])
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    shard.flush()
    shard.close()


class Shard(InProcess):
    def __init__(self, folder: Path, params: Callable[[Effort], Any], convert: Convert) -> None:
        import qdrant_edge

        self._edge: Any = qdrant_edge
        self._shard = self._edge.EdgeShard.load(str(folder / "shard"))
        self._params, self._convert = params, convert

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        params = self._params(effort)
        wanted: Sequence[Clause | None] = clauses or [None] * len(queries)
        asked = [self._request(query, k, params, clause) for query, clause in zip(queries, wanted, strict=True)]
        if len(asked) == 1:
            return Found(_rows([self._shard.query(asked[0])], k))
        return Found(_rows(self._shard.query_batch(self._edge.QueryBatchRequest(asked)), k))

    def _request(self, query: Array, k: int, params: Any, clause: Clause | None) -> Any:  # noqa: ANN401
        edge = self._edge
        nearest = edge.Query.Nearest(memoryview(self._convert(query)), using=VECTOR)
        return edge.QueryRequest(limit=k, query=nearest, params=params, filter=_filter(edge, clause))

    def close(self) -> None:
        self._shard.close()


def _filter(edge: Any, clause: Clause | None) -> Any:  # noqa: ANN401
    if clause is None:
        return None
    condition = edge.FieldCondition(key=clause.field, match=edge.MatchValue(clause.value))
    return edge.Filter(must_not=[condition]) if clause.exclude else edge.Filter(must=[condition])


def _rows(answers: list[Any], k: int) -> Array:
    ids = np.full((len(answers), k), -1, np.int64)
    for row, hits in enumerate(answers):
        ids[row, : len(hits)] = [hit.id for hit in hits]
    return ids
