"""Hash codes in Qdrant Edge: -1 and +1 under Dot with binary quantisation; a score is bits - 2 * distance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.latency.engines import _edge
from benchmarks.latency.engines.base import Array, Columns, Effort, Engine, efforts
from benchmarks.latency.engines.faiss_hnsw import EF, EF_CONSTRUCT, M
from shared.index.codes import signs


def _signs(code: Array) -> Array:
    return signs(code, 8 * len(code))


def _build(m: int) -> Callable[[Path, Array, Columns], None]:
    def build(folder: Path, rows: Array, columns: Columns) -> None:
        import qdrant_edge as edge

        params = edge.EdgeVectorParams(
            size=8 * rows.shape[1],
            distance=edge.Distance.Dot,
            datatype=edge.VectorStorageDatatype.Float16,
            memory=edge.Memory.Cold,
            hnsw_config=edge.HnswIndexConfig(m=m, ef_construct=EF_CONSTRUCT, full_scan_threshold=10),
            quantization_config=edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned),
        )
        _edge.build(folder, rows, columns, params, _signs)

    return build


def _params(effort: Effort) -> Any:  # noqa: ANN401
    """Search parameters without `exact`, which would bypass the quantised copies, although their scores are exact."""
    import qdrant_edge as edge

    plain = edge.QuantizationSearchParams(rescore=False)
    return edge.SearchParams(hnsw_ef=int(effort["ef"]) if effort else None, quantization=plain)


def _open(folder: Path, columns: Columns) -> _edge.Shard:
    del columns
    return _edge.Shard(folder, _params, _signs)


ENGINES = (
    Engine(
        name="edge-codes", build=_build(0), open=_open, kind="codes", exact=True, needs=("qdrant_edge",),
        settings={"copies": "binary"},
    ),
    Engine(
        name="edge-codes-hnsw", build=_build(M), open=_open, kind="codes", efforts=efforts("ef", *EF), most=200_000,
        needs=("qdrant_edge",), settings={"m": M, "ef_construct": EF_CONSTRUCT, "copies": "binary"},
    ),
)  # fmt: skip
