"""The platform's adapter for Qdrant's gRPC as an engine: the latency of a search including its transport.

The columns are stored in payload fields of the platform (`FIELD`).
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Found
from shared.index.base import CodeQuery, Exact, Filter, Index, Match, Point, Query, Recall, Spec
from shared.index.qdrant import QdrantStore

BATCH: Final = 4096
FIELD: Final = {"patient": "patient", "modality": "modality", "hundredth": "birads", "thousandth": "study_date"}
TARGETS: Final = (0.9, 0.97, 0.985, 0.995)
TINY: Final = 4  #: dimensions of the vector that a collection of codes must also have


def fill(store: QdrantStore, name: str, rows: Array, columns: Columns, scale: str) -> None:
    """Create the collection and fill it with the linked rows."""
    codes = rows.dtype == np.uint8
    dim, bits = (TINY, 8 * rows.shape[1]) if codes else (rows.shape[1], 0)
    index = store.create(name, Spec(dim=dim, bits=bits, scale=scale))  # type: ignore[arg-type]  # one of three
    for part in _points(rows, columns):
        index.write(part)
    index.optimize()


def _points(rows: Array, columns: Columns) -> Iterator[list[Point]]:
    coded = rows.dtype == np.uint8
    unit = np.full(TINY, 0.5, np.float32)
    for start in range(0, len(rows), BATCH):
        part = []
        for n, row in enumerate(rows[start : start + BATCH], start):
            payload = {FIELD[name]: _value(name, int(column[n])) for name, column in columns.items()}
            payload |= {"image": n, "revision": 1}
            vector, code = (unit, row) if coded else (row, None)
            part.append(Point(id=uuid.UUID(int=n), vector=vector, payload=payload, code=code))
        yield part


def _value(name: str, value: int) -> int | str:
    return str(value) if name == "modality" else value


class Collection:
    """One collection of a store."""

    def __init__(self, store: QdrantStore, name: str, pids: Sequence[int]) -> None:
        self._store, self._index = store, _wait_for(store, name)
        self._pids = list(pids)

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        filters = [_filter(clause) for clause in clauses] if clauses else [Filter()] * len(queries)
        if queries.dtype == np.uint8:
            return self._near(queries, k, filters)
        accuracy = Recall(effort["target"]) if effort else Exact()
        answers = self._index.search(
            [
                Query(vector=query, limit=k, filter=own, accuracy=accuracy, fields=("image",))
                for query, own in zip(queries, filters, strict=True)
            ]
        )
        ids = _ids([[hit.id.int for hit in answer.hits] for answer in answers], k)
        return Found(ids, answers[0].engine_ms)

    def _near(self, queries: Array, k: int, filters: list[Filter]) -> Found:
        asked = zip(queries, filters, strict=True)
        balls = self._index.near([CodeQuery(code=code, k=k, filter=own, fields=("image",)) for code, own in asked])
        return Found(_ids([[hit.id.int for hit in ball.hits[:k]] for ball in balls], k), balls[0].engine_ms)

    def close(self) -> None:
        self._store.close()

    def pids(self) -> list[int]:
        return self._pids


def _wait_for(store: QdrantStore, name: str) -> Index:
    index = store.open(name)
    for _ in range(600):
        info = index.info()
        if index.spec.scale == "exact" or info.indexed >= info.points:
            break
        time.sleep(0.1)
    return index


def _filter(clause: Clause) -> Filter:
    match = Match(field=FIELD[clause.field], values=(_value(clause.field, clause.value),))
    return Filter(must_not=(match,)) if clause.exclude else Filter(must=(match,))


def _ids(found: list[list[int]], k: int) -> Array:
    ids = np.full((len(found), k), -1, np.int64)
    for row, hits in enumerate(found):
        ids[row, : len(hits)] = hits
    return ids
