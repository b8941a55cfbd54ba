"""NumPy: the oracle's own arithmetic, timed like an engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess

FAR = 1 << 30


class _Scan(InProcess):
    def __init__(self, folder: Path, columns: Columns) -> None:
        self._rows = np.load(folder / "rows.npy")
        self._columns = columns
        self._codes = self._rows.dtype == np.uint8
        if self._codes:
            self._rows = self._rows.view(np.uint64)

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        del effort
        far = self._distances(queries)
        for row, clause in enumerate(clauses or ()):
            far[row, ~clause.mask(self._columns)] = FAR
        k = min(k, far.shape[1])
        nearest = np.argpartition(far, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(far, nearest, 1), axis=1, kind="stable")
        ids = np.take_along_axis(nearest, order, 1)
        return Found(np.where(np.take_along_axis(far, ids, 1) >= FAR, -1, ids))

    def _distances(self, queries: Array) -> Array:
        if not self._codes:
            return np.asarray(-(queries @ self._rows.T))
        words = queries.view(np.uint64)
        return np.stack([np.bitwise_count(self._rows ^ word).sum(axis=1, dtype=np.int32) for word in words])


def _build(folder: Path, rows: Array, columns: Columns) -> None:
    del columns
    np.save(folder / "rows.npy", rows)


ENGINES = (
    Engine(name="numpy", build=_build, open=_Scan, exact=True),
    Engine(name="numpy-codes", build=_build, open=_Scan, exact=True, kind="codes"),
)
