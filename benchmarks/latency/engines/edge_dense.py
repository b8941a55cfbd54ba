"""Qdrant Edge over float32 vectors: exact, a graph, and a graph over quantised copies, re-scored in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.latency.engines import _edge
from benchmarks.latency.engines.base import Array, Columns, Effort, Engine, efforts, never
from benchmarks.latency.engines.faiss_hnsw import EF, EF_CONSTRUCT, M

FULL_SCAN_KB = 10_000  #: Qdrant's default: smaller filtered sets and smaller segments are scanned


def _float32(row: Array) -> Array:
    return row


def _quantisation(edge: Any, kind: str) -> Any:  # noqa: ANN401
    pinned = {"memory": edge.Memory.Pinned}
    match kind:
        case "int8":
            return edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, quantile=0.99, **pinned)
        case "binary":
            return edge.BinaryQuantizationConfig(**pinned)
        case "turbo4":
            return edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4, **pinned)
        case "turbo8":
            return edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits8, **pinned)
    return None


def _build(kind: str, m: int, ef_construct: int) -> Callable[[Path, Array, Columns], None]:
    def build(folder: Path, rows: Array, columns: Columns) -> None:
        import qdrant_edge as edge

        params = edge.EdgeVectorParams(
            size=rows.shape[1],
            distance=edge.Distance.Dot,  # rows have unit length
            hnsw_config=edge.HnswIndexConfig(m=m, ef_construct=ef_construct, full_scan_threshold=FULL_SCAN_KB),
            quantization_config=_quantisation(edge, kind),
        )
        _edge.build(folder, rows, columns, params, _float32)

    return build


def _params(effort: Effort) -> Any:  # noqa: ANN401
    import qdrant_edge as edge

    if not effort:
        return edge.SearchParams(exact=True)
    factor = effort.get("oversampling")
    quantised = edge.QuantizationSearchParams(rescore=True, oversampling=factor) if factor else None
    return edge.SearchParams(hnsw_ef=int(effort["ef"]), quantization=quantised)


def scans(rows: int, dim: int) -> bool:
    """Whether Qdrant scans instead of searching its graph: it does below this size."""
    return rows * dim * 4 < FULL_SCAN_KB * 1024


def _open(folder: Path, columns: Columns) -> _edge.Shard:
    del columns
    return _edge.Shard(folder, _params, _float32)


def _engine(
    name: str,
    kind: str = "",
    m: int = M,
    ef_construct: int = EF_CONSTRUCT,
    tried: tuple[Effort, ...] = efforts("ef", *EF),
) -> Engine:
    settings: dict[str, float | str] = {"m": m, "ef_construct": ef_construct} if m else {}
    return Engine(
        name=name, build=_build(kind, m, ef_construct), open=_open, exact=not m, efforts=tried, needs=("qdrant_edge",),
        scans=scans if m else never, settings=settings | ({"copies": kind} if kind else {}),
    )  # fmt: skip


def int8(m: int, ef_construct: int) -> Engine:
    return _engine("edge-int8", "int8", m, ef_construct, efforts("ef", *EF, oversampling=1.5))


ENGINES = (
    _engine("edge-exact", m=0, tried=({},)),
    _engine("edge-hnsw"),
    int8(M, EF_CONSTRUCT),
    _engine("edge-turbo8", "turbo8", tried=efforts("ef", *EF, oversampling=1.5)),
    _engine("edge-turbo4", "turbo4", tried=efforts("ef", *EF, oversampling=2)),
    _engine("edge-binary", "binary", tried=efforts("ef", *EF, oversampling=4)),
)
