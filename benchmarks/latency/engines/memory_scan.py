"""A lower bound for exact scans: one thread reads every byte of the rows once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess


class _Read(InProcess):
    def __init__(self, folder: Path, columns: Columns) -> None:
        del columns
        rows = np.load(folder / "rows.npy").reshape(-1)
        self._bytes = rows.view(np.float32) if rows.dtype == np.float32 else rows.view(np.uint64)

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        """A dot product of the rows with themselves: one stream, wide loads, hardly any arithmetic."""
        del k, effort, clauses
        for _ in queries:
            if self._bytes.dtype == np.float32:
                np.dot(self._bytes, self._bytes)
            else:
                np.bitwise_or.reduce(self._bytes)
        return Found(np.full((len(queries), 0), -1, np.int64))


def _build(folder: Path, rows: Array, columns: Columns) -> None:
    del columns
    np.save(folder / "rows.npy", rows)


ENGINES = (
    Engine(name="memory-scan", build=_build, open=_Read, limit=True, filters=False),
    Engine(name="memory-scan-codes", build=_build, open=_Read, limit=True, filters=False, kind="codes"),
)
