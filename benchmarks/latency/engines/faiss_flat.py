"""FAISS without a graph: a scan over float32 vectors, or over one byte per dimension."""

from typing import Any

from benchmarks.latency.engines import _faiss


def _sq8(faiss: Any, dim: int, rows: int) -> Any:  # noqa: ANN401
    del rows
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)


ENGINES = (
    _faiss.engine("faiss-flat-ip", lambda faiss, dim, _: faiss.IndexFlatIP(dim), exact=True),
    _faiss.engine("faiss-flat-l2", lambda faiss, dim, _: faiss.IndexFlatL2(dim), exact=True),
    _faiss.engine("faiss-sq8", _sq8, settings={"bits per dimension": 8}),
)
