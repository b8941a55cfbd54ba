"""FAISS's inverted lists: plain, and with product quantisation re-ranked by the float32 rows."""

import math
from typing import Any

from benchmarks.latency.engines import _faiss
from benchmarks.latency.engines.base import Effort, efforts

NPROBE = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PART = 16  #: dimensions per byte
LISTS = "4 sqrt(n), at most n / 39"
ENOUGH = 64  #: training rows per centroid: with FAISS's default of 256, training takes minutes


def _lists(rows: int) -> int:
    """The largest power of two up to 4 sqrt(n), but at least 39 rows per list, the minimum for training."""
    lists = 1 << (4 * math.isqrt(rows)).bit_length() - 1
    return max(1, min(lists, rows // 39))


def _parts(dim: int) -> int:
    """The number of bytes per vector; it divides the dimensions evenly."""
    return next(parts for parts in range(max(1, dim // PART), 0, -1) if dim % parts == 0)


def _flat(faiss: Any, dim: int, rows: int) -> Any:  # noqa: ANN401
    return faiss.index_factory(dim, f"IVF{_lists(rows)},Flat", faiss.METRIC_INNER_PRODUCT)


def _quantised(faiss: Any, dim: int, rows: int) -> Any:  # noqa: ANN401
    bits = 8 if rows >= 39 * 256 else 6
    text = f"IVF{_lists(rows)},PQ{_parts(dim)}x{bits},RFlat"
    index = faiss.index_factory(dim, text, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    inner.cp.max_points_per_centroid = inner.pq.cp.max_points_per_centroid = ENOUGH
    return index


def _reranked(faiss: Any, effort: Effort, selector: Any) -> Any:  # noqa: ANN401
    """Search parameters; product quantisation proposes `factor` times k candidates."""
    inner = _faiss.lists(faiss, effort, selector)
    return faiss.IndexRefineSearchParameters(k_factor=effort["factor"], base_index_params=inner)


ENGINES = (
    _faiss.engine("faiss-ivf", _flat, _faiss.lists, efforts=efforts("nprobe", *NPROBE), settings={"lists": LISTS}),
    _faiss.engine(
        "faiss-ivfpq", _quantised, _reranked, efforts=efforts("nprobe", *NPROBE, factor=8),
        settings={"lists": LISTS, "dimensions per byte": PART},
    ),
)  # fmt: skip
