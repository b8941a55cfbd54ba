"""Shared by the FAISS engines: index files, filters as bitmaps, and search parameters."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess

#: Makes an empty index from (faiss, dimensions or bits, rows).
Make = Callable[[Any, int, int], Any]
Params = Callable[[Any, Effort, Any], Any]


def flat(faiss: Any, effort: Effort, selector: Any) -> Any:  # noqa: ANN401 - faiss has no types
    del effort
    return faiss.SearchParameters(sel=selector)


def graph(faiss: Any, effort: Effort, selector: Any) -> Any:  # noqa: ANN401
    return faiss.SearchParametersHNSW(efSearch=int(effort["ef"]), sel=selector)


def lists(faiss: Any, effort: Effort, selector: Any) -> Any:  # noqa: ANN401
    return faiss.SearchParametersIVF(nprobe=int(effort["nprobe"]), sel=selector)


class _Index(InProcess):
    def __init__(self, folder: Path, columns: Columns, params: Params | None, *, binary: bool) -> None:
        import faiss

        self._faiss: Any = faiss
        faiss.omp_set_num_threads(1)
        read = self._faiss.read_index_binary if binary else self._faiss.read_index
        self._index, self._columns, self._params = read(str(folder / "index")), columns, params
        self._blas = self._faiss.cvar.distance_compute_blas_threshold

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        if clauses is not None:  # a bitmap applies to one query only
            parts = [self._find(queries[n : n + 1], k, effort, clause) for n, clause in enumerate(clauses)]
            return Found(np.concatenate(parts))
        # by default a batch of up to 64 queries of 1,024 dimensions would not use BLAS, and be eight times as slow
        batch = len(queries) >= 8
        self._faiss.cvar.distance_compute_blas_threshold = 1 if batch else self._blas
        return Found(self._find(queries, k, effort, None))

    def _find(self, queries: Array, k: int, effort: Effort, clause: Clause | None) -> Array:
        bits = None if clause is None else np.packbits(clause.mask(self._columns), bitorder="little")
        selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
        if self._params is None:
            for name, value in effort.items():
                setattr(self._index, name, int(value))
            found: Array = self._index.search(queries, k)[1]
        else:
            params = self._params(self._faiss, effort, selector)
            found = self._index.search(queries, k, params=params)[1]
        return found


def engine(  # noqa: PLR0913 - fields of an engine
    name: str,
    make: Make,
    params: Params | None = flat,
    *,
    efforts: tuple[Effort, ...] = ({},),
    exact: bool = False,
    kind: Literal["vectors", "codes"] = "vectors",
    settings: dict[str, float | str] | None = None,
    most: int = 2**62,
) -> Engine:
    """An engine around one FAISS index.

    Args:
        make: makes an empty index from (faiss, dimensions or bits, rows).
        params: makes search parameters from (faiss, effort, selector); None: the effort is set on the index.
    """
    binary = kind == "codes"

    def build(folder: Path, rows: Array, columns: Columns) -> None:
        import faiss as module

        del columns
        faiss: Any = module
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index = make(faiss, rows.shape[1] * (8 if binary else 1), len(rows))
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
        (faiss.write_index_binary if binary else faiss.write_index)(index, str(folder / "index"))

    def opened(folder: Path, columns: Columns) -> _Index:
        return _Index(folder, columns, params, binary=binary)

    return Engine(
        name=name, build=build, open=opened, kind=kind, exact=exact, efforts=efforts, settings=settings or {},
        filters=params is not None, needs=("faiss",), most=most,
    )  # fmt: skip
