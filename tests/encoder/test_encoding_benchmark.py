import json
from pathlib import Path

from benchmarks.ingest.encoding import main


def test_the_encoding_benchmark_reports_what_it_measured(tmp_path: Path) -> None:
    main(["squeezenet1_0", "--rounds", "2", "--threads", "1", "--batches", "1", "3", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "encoding.json").read_text())
    assert [(row["architecture"], row["batch"]) for row in data["rows"]] == [("squeezenet1_0", 1), ("squeezenet1_0", 3)]
    for row in data["rows"]:
        assert row["min_cosine"] > 0.9999
        assert row["onnx_ms"]["low"] <= row["onnx_ms"]["median"] <= row["onnx_ms"]["high"]
        assert 0.1 < row["ratio"]["median"] < 100
        assert 0 < row["roof"] < 3
    text = (tmp_path / "encoding.md").read_text()
    assert "| squeezenet1_0 | 1 | 3 |" in text
    assert data["machine"] in text
