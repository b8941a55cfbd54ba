"""hnswlib, for comparison. Its filters are a Python callback per row, so none is measured."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess, efforts
from benchmarks.latency.engines.faiss_hnsw import EF, EF_CONSTRUCT, M


class _Graph(InProcess):
    def __init__(self, folder: Path, columns: Columns) -> None:
        import hnswlib

        del columns
        dim = int((folder / "dim").read_text())
        self._index: Any = hnswlib.Index(space="ip", dim=dim)
        self._index.load_index(str(folder / "index"))
        self._index.set_num_threads(1)

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        assert clauses is None  # noqa: S101 - the engine declares no filters
        self._index.set_ef(max(int(effort["ef"]), k))
        return Found(self._index.knn_query(queries, k)[0].astype(np.int64))


def _build(folder: Path, rows: Array, columns: Columns) -> None:
    import hnswlib

    del columns
    index: Any = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCT, random_seed=0)
    index.set_num_threads(os.cpu_count() or 1)
    index.add_items(rows)
    index.save_index(str(folder / "index"))
    (folder / "dim").write_text(str(rows.shape[1]))


ENGINES = (
    Engine(
        name="hnswlib", build=_build, open=_Graph, filters=False, efforts=efforts("ef", *EF), needs=("hnswlib",),
        settings={"m": M, "ef_construct": EF_CONSTRUCT},
    ),
)  # fmt: skip
