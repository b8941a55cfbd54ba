"""FAISS over packed codes: a scan, a graph, and multi-index hashing."""

from typing import Any

from benchmarks.latency.engines import _faiss
from benchmarks.latency.engines.base import efforts
from benchmarks.latency.engines.faiss_hnsw import EF, EF_CONSTRUCT, M


def _graph(faiss: Any, bits: int, rows: int) -> Any:  # noqa: ANN401
    del rows
    index = faiss.IndexBinaryHNSW(bits, M)
    index.hnsw.efConstruction = EF_CONSTRUCT
    return index


def _tables(faiss: Any, bits: int, rows: int) -> Any:  # noqa: ANN401
    """Four hash tables, each with about as many buckets as there are rows."""
    return faiss.IndexBinaryMultiHash(bits, 4, min(max(rows.bit_length() - 1, 8), bits // 4))


ENGINES = (
    _faiss.engine("faiss-binary", lambda faiss, bits, _: faiss.IndexBinaryFlat(bits), exact=True, kind="codes"),
    _faiss.engine(
        "faiss-binary-hnsw", _graph, _faiss.graph, efforts=efforts("ef", *EF), kind="codes", most=200_000,
        settings={"m": M, "ef_construct": EF_CONSTRUCT},
    ),
    _faiss.engine(
        "faiss-binary-multihash", _tables, None, efforts=efforts("nflip", 0, 1, 2, 3), kind="codes",
        settings={"tables": 4},
    ),
)  # fmt: skip
