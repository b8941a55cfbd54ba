"""The platform's own vectors process behind gRPC over a UNIX socket: an engine's latency as served."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import processes
from benchmarks.latency.engines import _grpc
from benchmarks.latency.engines.base import Array, Columns, Engine, efforts
from benchmarks.latency.engines.edge_dense import scans
from benchmarks.latency.vectors import KEY, VectorsProcess
from shared.index.qdrant import QdrantStore

NAME = "bench"


class _Served(_grpc.Collection):
    def __init__(self, folder: Path, columns: Columns) -> None:
        del columns
        self._process = VectorsProcess(folder / "data")
        store = QdrantStore(self._process.url, KEY, timeout_s=120)
        super().__init__(store, NAME, [])

    def close(self) -> None:
        super().close()
        self._process.stop()

    def pids(self) -> list[int]:
        return _family(self._process)


def _family(process: VectorsProcess) -> list[int]:
    return [process.pid, *processes.tree(process.pid, processes.children())]


def _bare() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        process = VectorsProcess(Path(folder) / "data")
        try:
            return processes.memory_mib(_family(process))
        finally:
            process.stop()


def _build(scale: str) -> Callable[[Path, Array, Columns], None]:
    def build(folder: Path, rows: Array, columns: Columns) -> None:
        process = VectorsProcess(folder / "data")
        try:
            store = QdrantStore(process.url, KEY, timeout_s=600)
            _grpc.fill(store, NAME, rows, columns, scale)
            store.close()
        finally:
            process.stop()

    return build


ENGINES = (
    Engine(name="similis-exact", build=_build("exact"), open=_Served, exact=True, most=20_000, bare=_bare),
    Engine(
        name="similis-int8", build=_build("hnsw-int8"), open=_Served, efforts=efforts("target", *_grpc.TARGETS),
        settings={"m": 16, "ef_construct": 100, "copies": "int8"}, scans=scans, bare=_bare,
    ),
    Engine(
        name="similis-codes", build=_build("exact"), open=_Served, exact=True, kind="codes", most=200_000, bare=_bare
    ),
)  # fmt: skip
