"""From raw lines to figures, by hand."""

import json

import pytest

from benchmarks.latency import raw
from benchmarks.latency.compare import compared
from benchmarks.latency.summary import at_recall, growth, pick, results
from shared.errors import Invalid, NotFound

DATA = {"what": "data", "data": "clustered:8:1000", "rows": 1000, "dim": 8, "kind": "vectors", "queries": 9,
        "intrinsic_dimension": 3.0, "source": "made"}  # fmt: skip
ABOUT = {"what": "environment", "run": "r", "date": "d", "commit": "c", "machine": "m"}


def single(engine: str, ms: float, recall: float, *, effort: int = 0, name: str = "all", number: int = 0) -> dict:
    return {
        "what": "single", "data": DATA["data"], "engine": engine, "round": number, "effort": {"ef": effort} if effort
        else {}, "k": 10, "filter": name, "n": 5, "ms": [ms] * 101, "recall": recall, "cpu_ms": ms, "load": 1.0,
    }  # fmt: skip


def parity(engine: str, wrong: int = 0) -> dict:
    return {"what": "parity", "data": DATA["data"], "engine": engine, "checked": 9, "wrong": wrong, "worst": 0.0}


def test_rounds_become_a_median_with_the_lowest_and_the_highest() -> None:
    lines = [single("a", ms, 0.9 + n / 100, effort=16, number=n) for n, ms in enumerate((3.0, 1.0, 2.0))]
    (figure,) = results([DATA, *lines]).figures
    assert str(figure.p50) == "2 (1 to 3)"
    assert (figure.rounds, figure.n) == (3, 15)
    assert figure.recall == pytest.approx(0.91)


def test_latency_is_interpolated_to_just_the_recall_that_is_asked_for() -> None:
    lines = [single("a", 1.0, 0.90, effort=16), single("a", 4.0, 1.00, effort=64), single("a", 9.0, 1.0, effort=99)]
    found = at_recall(results([DATA, *lines]).sweep(DATA["data"], "a"), 0.95)
    assert found.figure.effort == "ef 64"
    assert found.interpolated_ms == pytest.approx(2.0)
    assert at_recall(results([DATA, *lines[:1]]).sweep(DATA["data"], "a"), 0.95) is None


def test_growth_is_the_slope_of_the_logarithms() -> None:
    assert growth([(100, 1.0), (10_000, 10.0)]) == pytest.approx(0.5)
    assert growth([(100, 1.0), (100, 2.0)]) is None


def candidates(exact_ms: float, graph_ms: float, under_filter: float) -> list[dict]:
    return [
        DATA,
        *(single("edge-exact", exact_ms, 1.0, name=name) for name in ("all", "1 %")),
        single("faiss-hnsw", graph_ms, 0.995, effort=64),
        single("faiss-hnsw", graph_ms, under_filter, effort=64, name="1 %"),
        single("usearch", 0.001, 1.0, effort=64),
        parity("edge-exact"),
    ]


@pytest.mark.parametrize(
    ("exact_ms", "graph_ms", "under_filter", "wanted"),
    [
        (1.5, 0.1, 1.0, "edge-exact"),  # quick enough
        (12.0, 9.0, 1.0, "edge-exact"),  # the graph gains little
        (12.0, 0.5, 1.0, "faiss-hnsw"),
        (12.0, 0.5, 0.6, "edge-exact"),  # a filter spoils the graph
    ],
)
def test_what_to_pick_follows_its_rule(exact_ms, graph_ms, under_filter, wanted) -> None:
    found = pick(results(candidates(exact_ms, graph_ms, under_filter)), DATA["data"])
    assert found.engine == wanted


def test_an_engine_that_failed_the_parity_check_has_no_figures() -> None:
    res = results([*candidates(1.0, 1.0, 1.0)[:-1], parity("edge-exact", wrong=1)])
    assert "edge-exact" not in res.engines(DATA["data"])
    assert pick(res, DATA["data"]).engine == "faiss-hnsw"


def test_a_failure_that_was_mended_is_told_no_more() -> None:
    where = {"data": DATA["data"], "engine": "a", "round": 0}
    failed = {"what": "failed", "step": "build", "why": "burnt"} | where
    assert results([DATA, failed]).failed == [failed]
    assert results([DATA, failed, {"what": "build", "wall_s": 1.0} | where]).failed == []


def test_runs_differ_where_no_round_of_one_reaches_into_the_other(tmp_path) -> None:
    before = [ABOUT, DATA, *(single("a", ms, 1.0) for ms in (1.0, 1.1)), *(single("b", ms, 1.0) for ms in (1.0, 3.0))]
    after = [ABOUT, DATA, *(single("a", ms, 1.0) for ms in (2.0, 2.1)), *(single("b", ms, 1.0) for ms in (2.5, 4.0))]
    for name, lines in (("x", before), ("y", after)):
        writer = raw.Writer(tmp_path / name)
        for line in lines:
            writer.add(line)
        writer.close()
    text = "\n".join(compared(tmp_path / "x", tmp_path / "y"))
    assert "| slower | clustered:8:1000 | a |" in text
    assert "| same | clustered:8:1000 | b |" in text
    assert "1 of 2 moved" in text


def test_broken_results_are_told_apart_from_cut_ones(tmp_path) -> None:
    with pytest.raises(NotFound):
        raw.read(tmp_path)
    (tmp_path / raw.FILE).write_text(json.dumps(DATA) + '\n{"what')
    assert raw.read(tmp_path) == [DATA]
    (tmp_path / raw.FILE).write_text('{"what\n' + json.dumps(DATA) + "\n")
    with pytest.raises(Invalid, match="line 1"):
        raw.read(tmp_path)
