"""usearch over float32, for comparison. Its Python interface has no filters."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess, efforts
from benchmarks.latency.engines.faiss_hnsw import EF, EF_CONSTRUCT, M


class _Graph(InProcess):
    def __init__(self, folder: Path, columns: Columns) -> None:
        from usearch.index import Index

        del columns
        self._index: Any = Index.restore(str(folder / "index"))

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        assert clauses is None  # noqa: S101 - the engine declares no filters
        self._index.expansion_search = int(effort["ef"])
        keys = self._index.search(queries, k, threads=1).keys
        return Found(np.asarray(keys, np.int64).reshape(len(queries), -1))


def _build(folder: Path, rows: Array, columns: Columns) -> None:
    from usearch.index import Index

    del columns
    index: Any = Index(ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCT)
    index.add(np.arange(len(rows)), rows, threads=os.cpu_count() or 1)
    index.save(str(folder / "index"))


ENGINES = (
    Engine(
        name="usearch", build=_build, open=_Graph, filters=False, efforts=efforts("ef", *EF), needs=("usearch",),
        settings={"m": M, "ef_construct": EF_CONSTRUCT},
    ),
)  # fmt: skip
