import csv
import json
import sys

import pytest

from benchmarks.retrieval import frozen
from shared.training.protocols import PROTOCOLS

NETS = (frozen.Net("one", "null", "random:0", 64), frozen.Net("few", "null", "random:1", 64, share=0.5))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The benchmark on a synthetic archive with null encoders; the second one sees half of the women."""
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "PROFILES", {"quick": NETS, "full": NETS[:1]})
        patch.setattr(frozen, "SETS", (frozen.Set("phantoms:24:1", large=True),))
        patch.setattr(sys, "argv", ["frozen", "--out", str(folder / "out"), "--scratch", str(folder / "scratch")])
        frozen.main()
        frozen.main()  # a second run measures nothing and writes the same tables
        words = sys.argv
        for more in (["--profile", "full"], ["--search"]):
            patch.setattr(sys, "argv", [*words, *more])
            frozen.main()
    return folder / "out"


def raw(out):
    return [json.loads(line) for line in (out / "phantoms:24:1.jsonl").read_text().splitlines()]


def test_every_network_is_measured_under_every_protocol_and_distance(out):
    found = {(r["net"], r["distance"], r["protocol"]) for r in raw(out) if r["kind"] == "figures"}
    assert found == {(n.name, d, p) for n in NETS for d in ("cosine", "l2") for p in PROTOCOLS}
    assert {"machine", "date", "commit", "command", "seeds"} <= raw(out)[0].keys()


def test_a_network_with_a_share_saw_whole_patients_and_fewer_images(out):
    images = {r["net"]: r["images"] for r in raw(out) if r["kind"] == "figures"}
    assert 0.1 * images["one"] < images["few"] < 0.7 * images["one"]


def test_the_full_profile_is_measured_although_the_quick_one_was_and_stands_apart(out):
    full, quick = raw(out / "full"), raw(out)
    assert {r["net"] for r in full[1:]} == {"one"}
    assert {r["net"] for r in quick[1:]} == {"one", "few"}
    assert full[0]["command"].endswith("--profile full")
    assert "random weights (no others are at hand)" in (out / "tables.md").read_text()
    assert "random weights" not in (out / "full" / "tables.md").read_text()


def test_the_engine_agrees_with_our_ranking(out):
    timed = [r for r in raw(out) if r["kind"] == "timing"]
    assert len(timed) == 2
    for line in timed:
        assert line["FlatL2"]["same first ten"] == line["FlatIP"]["same first ten"] == 1.0
        assert 0 < line["FlatL2"]["p50_ms"] <= line["FlatL2"]["p95_ms"]


def test_searches_are_timed_again_by_what_was_measured_and_their_times_are_the_tables(out):
    about, *again = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    first = [r for r in raw(out) if r["kind"] == "timing"]
    assert about["command"].endswith("--search")
    assert [(r["net"], r["index size"], r["dim"]) for r in again] == [
        (r["net"], r["index size"], r["dim"]) for r in first
    ]
    for line in again:
        assert line["FlatL2"]["same first ten"] == line["FlatIP"]["same first ten"] == 1.0
        assert 0 < line["FlatL2"]["p50_ms"] <= line["FlatL2"]["p95_ms"]
    shown = (out / "tables.md").read_text().split("## Search time")[1].split("##")[0]
    assert f"| {again[0]['FlatL2']['p50_ms']:.3f} / {again[0]['FlatL2']['p95_ms']:.3f} |" in shown
    assert about["machine"] in shown
    assert "random vectors" in shown
    assert "random vectors" not in (out / "full" / "tables.md").read_text()


def test_the_tables_hold_what_the_lines_say(out):
    text = (out / "tables.md").read_text()
    line = next(r for r in raw(out)[1:] if (r["net"], r["distance"], r["protocol"]) == ("one", "cosine", "lopo"))
    mean, low, high = line["figures"]["mAP"]["micro"]
    assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "paper1-compat (leaks)" in text
    with (out / "figures.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["net"], r["figure"], r["protocol"]) == ("one", "mAP", "lopo")]
    assert {float(r["micro"]) for r in rows if r["distance"] == "cosine" and r["part"] == "all"} == {mean}


def test_pictures_are_drawn(out):
    for name in ("pca", "tsne"):
        assert (out / "phantoms:24:1" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
