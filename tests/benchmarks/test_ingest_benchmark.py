"""The table of runtimes has every runtime, and each agrees with eager float32 as far as its precision allows."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.ingest import encoding, runtimes


@pytest.mark.parametrize("model", ["squeezenet1_0", str(runtimes.SHIPPED)], ids=["squeezenet", "similis-base"])
def test_every_runtime_is_measured_and_compared(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MEASURE_S", 0.02)
    runtimes.main([model, "--rounds", "2", "--batches", "1", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "runtimes.json").read_text())
    rows = {row["runtime"]: row for row in data["rows"]}
    expected = {runtimes.BASE, "torch, channels last", "torch, bfloat16", "torch, channels last, bfloat16"}
    optional = {"OpenVINO, float32", "OpenVINO, own choice"} if importlib.util.find_spec("openvino") else set()
    assert set(rows) == expected | {"ONNX Runtime"} | optional
    assert rows[runtimes.BASE]["difference_max"] == 0
    assert rows[runtimes.BASE]["times_eager"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    for name, row in rows.items():
        assert row["cosine_min"] > (0.98 if "bfloat16" in name or "own choice" in name else 0.9999), name
        assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
    assert all(rows[name]["difference_max"] > 0 for name in rows if "bfloat16" in name)
    assert f"| {Path(model).name} | ONNX Runtime | 1 |" in (tmp_path / "runtimes.md").read_text()
