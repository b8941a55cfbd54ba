"""The points of one collection in memory, for the exact twin and FAISS.

A row is written once. A newer revision tombstones the old row and appends a new one, because FAISS can only append;
`compacted` frees the space.
"""

import time
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.index import checks, codes
from shared.index.base import Ball, Between, CodeQuery, Condition, Filter, Hit, Near, Payload, Point, Spec
from shared.index.codes import Scan
from shared.index.columns import Chosen, Columns, Mask
from shared.types import Codes


class Rows:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.size = 0  #: rows in use, tombstones included
        self._vectors = np.empty((0, spec.dim), np.float32)
        self._codes = codes.padded(np.empty((0, spec.bits // 8), np.uint8))
        self._alive = np.empty(0, bool)
        self._columns = Columns()
        self._ids: list[uuid.UUID] = []
        self._payloads: list[Payload] = []
        self._at: dict[uuid.UUID, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    @property
    def vectors(self) -> NDArray[np.float32]:
        return self._vectors[: self.size]

    @property
    def codes(self) -> Codes:
        """(size, bytes), `codes.padded`."""
        return self._codes[: self.size]

    def write(self, points: Sequence[Point]) -> int:
        """Append the points that are not older than the stored ones; returns the first new row."""
        checks.check_codes(self.spec, points)
        fresh = checks.newest(points)
        vectors = checks.prepare(self.spec, [point.vector for point in fresh])
        first = self.size
        for point, vector in zip(fresh, vectors, strict=True):
            held = self._at.get(point.id)
            if held is not None:
                if int(self._payloads[held]["revision"]) > checks.revision(point):
                    continue
                self._alive[held] = False
            self._append(point, vector)
        return first

    def _append(self, point: Point, vector: NDArray[np.float32]) -> None:
        if self.size == len(self._alive):
            self._grow(max(1024, 2 * self.size))
        row = self.size
        self._vectors[row], self._alive[row] = vector, True
        if point.code is not None:
            self._codes[row, : len(point.code)] = point.code
        self._columns.put(row, point.payload)
        self._ids.append(point.id)
        self._payloads.append(dict(point.payload))
        self._at[point.id] = row
        self.size += 1

    def _grow(self, capacity: int) -> None:
        more = capacity - len(self._alive)
        self._vectors = np.concatenate([self._vectors, np.empty((more, self.spec.dim), np.float32)])
        self._codes = np.concatenate([self._codes, np.zeros((more, self._codes.shape[1]), np.uint8)])
        self._alive = np.concatenate([self._alive, np.zeros(more, bool)])
        self._columns.grow(capacity)

    def delete(self, ids: Sequence[uuid.UUID]) -> None:
        for id_ in ids:
            row = self._at.pop(id_, None)
            if row is not None:
                self._alive[row] = False

    def mask(self, filter_: Filter, rows: NDArray[np.int64] | None = None) -> Mask:
        """Which of all rows, or of these, are alive and match the filter."""
        chosen = slice(self.size) if rows is None else rows
        mask = self._alive[chosen].copy()
        for condition in filter_.must:
            mask &= self._fulfil(condition, chosen)
        for condition in filter_.must_not:
            mask &= ~self._fulfil(condition, chosen)
        return mask

    def _fulfil(self, condition: Condition, chosen: Chosen) -> Mask:
        if isinstance(condition, Between):
            return self._columns.within(condition.field, {"gte": condition.low, "lte": condition.high}, chosen)
        return self._columns.equals_any(condition.field, condition.values, chosen)

    def best(self, rows: NDArray[np.intp], scores: NDArray[np.float32], limit: int) -> list[Hit]:
        """The `limit` best of these rows by falling score, equal scores by id, also at the limit."""
        if len(rows) > limit:
            cut = -np.partition(-scores, limit - 1)[limit - 1]
            kept = scores >= cut
            rows, scores = rows[kept], scores[kept]
        order = sorted(range(len(rows)), key=lambda i: (-scores[i], self._ids[rows[i]].int))[:limit]
        return [Hit(self._ids[rows[i]], float(scores[i]), self._payloads[rows[i]]) for i in order]

    def ball(self, query: CodeQuery, scan: Scan, started: float) -> Ball:
        """The answer to a query whose ball has been scanned."""
        listed, cut = codes.ordered(scan, lambda row: self._ids[row].int, query.most)
        hits = tuple(Near(self._ids[row], distance, self._payloads[row]) for _, distance, row in listed)
        return Ball(hits=hits, radius=scan.radius, cut=cut, engine_ms=(time.perf_counter() - started) * 1000)

    def points(self, ids: Sequence[uuid.UUID]) -> list[Point]:
        rows = [(id_, self._at[id_]) for id_ in ids if id_ in self._at]
        return [self._point(id_, row) for id_, row in rows]

    def _point(self, id_: uuid.UUID, row: int) -> Point:
        code = self._codes[row, : self.spec.bits // 8].copy() if self.spec.bits else None
        return Point(id=id_, vector=self._vectors[row].copy(), payload=self._payloads[row], code=code)

    def scan(self, batch: int) -> Iterator[Sequence[tuple[uuid.UUID, int]]]:
        ids = sorted(self._at)
        for start in range(0, len(ids), batch):
            part = [id_ for id_ in ids[start : start + batch] if id_ in self._at]
            yield [(id_, int(self._payloads[self._at[id_]]["revision"])) for id_ in part]

    def compacted(self) -> "Rows":
        """The same points without tombstones."""
        fresh = Rows(self.spec)
        for id_, row in self._at.items():
            fresh._append(self._point(id_, row), self._vectors[row])
        return fresh
