"""One job in its own process, and what it measures of itself."""

import json
import os
import subprocess
import sys

import numpy as np

from benchmarks import processes
from benchmarks.latency import child
from benchmarks.latency.data import prepare

HOLDS = "import numpy as np; held = np.ones({mib} << 17); "


def _build(tmp_path, engine: str, module: str) -> dict:
    data = prepare("clustered:16:300", tmp_path / "data", 10, 7)
    job = {"step": "build", "engine": engine, "module": module, "data": str(data), "folder": str(tmp_path / "built")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.latency.child"], input=json.dumps(job).encode(), capture_output=True,
        check=True, env=child.environment(),
    )  # fmt: skip
    (line,) = map(json.loads, done.stdout.splitlines())
    return line


def test_the_peak_of_a_build_is_not_the_memory_of_who_started_it(tmp_path) -> None:
    held = np.ones(150 << 20, np.uint8)  # memory of this process, as the runner holds its data
    peak = _build(tmp_path, "numpy", "numpy_exact")["peak_mib"]
    assert peak < processes.peak_mib(os.getpid()) - 50
    assert 20 < peak < 150
    del held


def test_the_peak_of_a_served_engine_holds_its_server(tmp_path) -> None:
    alone = _build(tmp_path / "a", "numpy", "numpy_exact")["peak_mib"]
    assert _build(tmp_path / "b", "similis-exact", "similis_vectors")["peak_mib"] > alone + 120  # 150: server and shard


def test_a_peak_counts_the_processes_below() -> None:
    with processes.Peak() as peak:
        subprocess.run([sys.executable, "-c", HOLDS.format(mib=200) + "import time; time.sleep(1)"], check=True)
    assert peak.mib > processes.peak_mib(os.getpid()) + 190


def test_memory_is_read_at_the_end_of_a_round_less_the_library_and_less_the_rows_of_the_oracle(tmp_path) -> None:
    data = prepare("clustered:256:20000", tmp_path / "data", 30, 7)  # 20 MiB
    plan = {"queries": 30, "seconds": 0.05, "checked": 2, "ks": [], "filters": ["all"], "clients": []} | {
        "common_per_s": 20.0
    }
    for engine, module, least, most in (("numpy", "numpy_exact", 18, 40), ("faiss-flat-ip", "faiss_flat", 18, 40)):
        job = {"engine": engine, "module": module, "data": str(data), "folder": str(tmp_path / engine)}
        for step in ({"step": "build"}, {"step": "measure", "round": 0, "done": [], "plan": plan}):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.latency.child"], input=json.dumps(job | step).encode(),
                capture_output=True, check=True, env=child.environment(),
            )  # fmt: skip
        *_, last = map(json.loads, done.stdout.splitlines())
        assert last["what"] == "memory"
        assert least < last["pss_mib"] < most, engine
        assert last["library_mib"] > 5


def test_rows_that_are_only_mapped_are_forgotten(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((20 << 10, 256), np.float32))  # 20 MiB
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    before = processes.pss_mib(os.getpid())
    assert rows.sum() > 0
    assert processes.pss_mib(os.getpid()) > before + 10
    child.forget(rows)
    assert processes.pss_mib(os.getpid()) < before + 5


def test_a_child_runs_the_kernels_of_this_machine(monkeypatch) -> None:
    monkeypatch.setenv(child.CORE, "Prescott")
    assert child.CORE not in child.environment()
    assert child.environment()["OPENBLAS_NUM_THREADS"] == "1"
