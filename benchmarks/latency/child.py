"""Runs one job in its own process: `python -m benchmarks.latency.child`, job on stdin, raw lines on stdout.

The parent sets the environment (`environment`) so that numeric libraries use one thread and choose their own kernels.
"""

import importlib
import json
import mmap
import os
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import processes
from benchmarks.latency import engines, measure
from benchmarks.latency.data import Data
from benchmarks.latency.engines.base import FIELDS, Array, Engine
from benchmarks.latency.profiles import Plan

Json = dict[str, Any]
ONE_THREAD: Final = dict.fromkeys([f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")], "1")
CORE: Final = "OPENBLAS_CORETYPE"  #: forces the kernels of another machine on NumPy and FAISS
BUILT: Final = "built"  #: the file that marks a folder as complete


def environment() -> dict[str, str]:
    """The environment in which to start a child."""
    return {name: value for name, value in os.environ.items() if name != CORE} | ONE_THREAD


def blas() -> list[Json]:
    """The numeric libraries that the engines load, each with the kernels that it chose on this machine."""
    import faiss  # noqa: F401 - loads a BLAS of its own
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    names = ("internal_api", "version", "architecture", "num_threads")
    found = [{name: one[name] for name in names if one.get(name)} for one in threadpool_info()]
    return sorted(found, key=str)


def build(engine: Engine, data: Path, folder: Path) -> Json:
    """Build the engine's index in the folder; return times, disk size and peak memory."""
    engine.drop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = np.load(data / "rows.npy")
    with np.load(data / "columns.npz") as held:
        columns = {name: held[name] for name in FIELDS}
    watch, cpu = processes.Stopwatch(), _cpu_s()
    with processes.Peak() as peak:
        engine.build(folder, rows, columns)
    found = {"wall_s": round(watch.wall_s, 3), "cpu_s": round(_cpu_s() - cpu, 3)}
    sync(folder)
    (folder / BUILT).write_text(json.dumps(found), encoding="utf-8")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != BUILT]
    disk = sum(path.stat().st_blocks * 512 for path in files)  # Edge's files are sparse
    found |= {"disk_mib": round(disk / 2**20, 2), "peak_mib": round(peak.mib, 1)}
    return {"what": "build", "settings": dict(engine.settings), "scan": engine.scans(*rows.shape)} | found


def _cpu_s() -> float:
    """Processor seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def evict(folder: Path) -> None:
    """Drop the folder's files from the page cache, but no others: other processes use the machine, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(engine: Engine, job: Json, folder: Path) -> None:
    """Run all pending measurements of one round; write each as soon as it is done."""
    done = {identity(key) for key in job["done"]}
    plan = Plan(**{field.name: _tuple(job["plan"][field.name]) for field in fields(Plan)})
    data = Data.load(Path(job["data"]))  # before memory is measured; rows are memory-mapped and read later
    evict(folder)
    bare = engine.bare() if engine.bare else _library(engine)
    started = time.perf_counter()
    opened = engine.open(folder, data.columns)
    open_ms = (time.perf_counter() - started) * 1000
    try:
        session = measure.Session(engine, opened, data, plan, job["round"])
        for key, measurement in measure.run(session, first=job["round"] == 0):
            if identity(key) in done and key["what"] != "batch":  # batches run again to find the goal's effort
                continue
            found = measure.undisturbed(measurement)
            if key["what"] == "cold":
                found |= {"open_ms": round(open_ms, 3)}
            if identity(key) not in done:
                done.add(identity(key))
                emit(key | found)
        forget(data.rows)
        if pids := opened.pids():
            emit({"what": "memory"} | taken(pids, bare))
    finally:
        opened.close()


def _library(engine: Engine) -> tuple[float, float]:
    """Memory of this process with the engine's library and without rows: (anonymous, PSS) MiB."""
    for name in engine.needs:
        importlib.import_module(name)
    return processes.memory_mib([os.getpid()])


def forget(rows: Array) -> None:
    """Release the pages of rows that computing recall has read, so that they do not count for the engine."""
    if isinstance(rows, np.memmap):
        rows._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # noqa: SLF001 - no public access


def taken(pids: list[int], bare: tuple[float, float]) -> Json:
    """Memory of the engine's processes without its library: anonymous, and PSS with mapped files, MiB."""
    now = processes.memory_mib(pids)
    names = ("anonymous_mib", "pss_mib")
    found = {name: round(n - b, 2) for name, n, b in zip(names, now, bare, strict=True)}
    return found | {"library_mib": round(bare[1], 2)}


def identity(key: Json) -> str:
    """A key that is equal for the same measurement, whatever its result."""
    names = ("what", "effort", "k", "filter", "clients", "rate")
    return json.dumps({name: key[name] for name in names if name in key}, sort_keys=True)


def emit(line: Json) -> None:
    os.write(OUT, json.dumps(line).encode() + b"\n")


def _tuple(value: Any) -> Any:  # noqa: ANN401
    return tuple(value) if isinstance(value, list) else value


def main() -> None:
    job = json.load(sys.stdin)
    if job["step"] == "blas":
        emit({"blas": blas()})
        return
    engine, folder = engines.of(job["module"])[job["engine"]], Path(job["folder"])
    if job["step"] == "build":
        emit(build(engine, Path(job["data"]), folder))
    else:
        run(engine, job, folder)


if __name__ == "__main__":
    OUT: Final = os.dup(1)
    os.dup2(2, 1)  # keeps what an engine prints out of the raw lines
    main()
