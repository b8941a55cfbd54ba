"""FAISS's graph, linked as the platform's own FAISS index is."""

from typing import Any, Final

from benchmarks.latency.engines import _faiss
from benchmarks.latency.engines.base import efforts

M: Final = 16
EF_CONSTRUCT: Final = 100
EF: Final = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def _make(faiss: Any, dim: int, rows: int) -> Any:  # noqa: ANN401
    del rows
    index = faiss.IndexHNSWFlat(dim, M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCT
    return index


ENGINES = (
    _faiss.engine(
        "faiss-hnsw", _make, _faiss.graph, efforts=efforts("ef", *EF), settings={"m": M, "ef_construct": EF_CONSTRUCT}
    ),
)
