"""FAISS's HNSW graph, with the parameters of the platform's own FAISS index."""

from typing import Any, Final

from benchmarks.latency.engines import _faiss
from benchmarks.latency.engines.base import Engine, efforts

M: Final = 16
EF_CONSTRUCT: Final = 100
EF: Final = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def engine(m: int, ef_construct: int) -> Engine:
    """A graph over float32 rows."""

    def make(faiss: Any, dim: int, rows: int) -> Any:  # noqa: ANN401 - faiss has no types
        del rows
        index = faiss.IndexHNSWFlat(dim, m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = ef_construct
        return index

    settings: dict[str, float | str] = {"m": m, "ef_construct": ef_construct}
    return _faiss.engine("faiss-hnsw", make, _faiss.graph, efforts=efforts("ef", *EF), settings=settings)


ENGINES = (engine(M, EF_CONSTRUCT),)
