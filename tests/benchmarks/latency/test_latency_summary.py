"""Figures from raw lines, compared with values computed by hand."""

import gzip
import json

import numpy as np
import pytest

from benchmarks.latency import overall, raw, report, tables
from benchmarks.latency.choice import pick
from benchmarks.latency.compare import compared
from benchmarks.latency.summary import at_recall, best, growth, interval, results
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
    assert found.ms.median == pytest.approx(2.0)
    assert str(found) == "2"
    assert at_recall(results([DATA, *lines[:1]]).sweep(DATA["data"], "a"), 0.95) is None


def test_where_no_setting_lies_below_the_recall_its_latency_is_a_bound() -> None:
    lines = [single("a", 1.0, 0.97, effort=16), single("b", 2.0, 0.90, effort=8), single("b", 2.0, 0.99, effort=16)]
    res = results([DATA, *lines, parity("c")])
    assert str(best(res, DATA["data"], "a", 0.95)) == "<= 1"
    assert str(best(res, DATA["data"], "b", 0.95)) == "2"


def test_engines_are_compared_and_ordered_at_one_recall_not_at_their_settings() -> None:
    steep = [single("a", 0.1, 0.90, effort=16), single("a", 8.0, 1.0, effort=64)]  # 0.89 ms at 0.95
    flat = [single("b", 1.0, 0.94, effort=16), single("b", 2.0, 1.0, effort=64)]  # 1.1 ms
    under = [single("b", 3.0, 0.90, effort=16, name="1 %"), single("b", 5.0, 0.95, effort=64, name="1 %")]
    made = {table.title: table for table in tables.tables(results([DATA, *flat, *steep, *under]))}
    rows = made["At recall 0.95: 1,000 x 8"].rows
    assert [row[:2] for row in rows] == [["a", "0.894"], ["b", "1.12"]]
    (row,) = made["Filters: 1,000 x 8"].rows
    assert row == ["b", "1.12 · ef 64", "-", "-", "5 · ef 64", "-"]


def test_a_99th_percentile_needs_a_hundred_questions_in_each_round() -> None:
    lines = [single("a", 1.0, 1.0, number=number) | {"n": n} for number, n in enumerate((120, 99))]
    made = {table.title: table for table in tables.tables(results([DATA, *lines, parity("a")]))}
    assert made["Exact: 1,000 x 8"].rows[0][1:5] == ["1 (1 to 1)", "1 (1 to 1)", "-", "219"]


def test_the_interval_of_a_median_narrows_with_questions_and_widens_with_what_rounds_differ_by() -> None:
    even, other = [n / 100 for n in range(101)], [1 + n / 100 for n in range(101)]
    few, many = interval([(even, 20)] * 3), interval([(even, 2000)] * 3)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    rng = np.random.default_rng(1)  # a direct bootstrap
    plain = np.percentile([np.median(rng.random(101)) for _ in range(4000)], (2.5, 97.5))
    assert interval([(even, 101)]) == pytest.approx(plain, abs=0.02)
    assert interval([(even, 2000), (other, 2000)])[1] > 1.4


def test_a_graph_that_is_not_asked_is_named_so_and_has_no_growth() -> None:
    small, large = (DATA | {"data": f"clustered:8:{n}", "rows": n} for n in (100, 1000))
    lines = [single("a", ms, 1.0, effort=16) | {"data": one["data"]} for one, ms in ((small, 1.0), (large, 2.0))]
    built = {"what": "build", "engine": "a", "round": 0, "wall_s": 1.0, "settings": {"m": 16}}
    scan = built | {"data": small["data"], "scan": True}
    res = results([small, large, *lines, scan])
    assert overall.growing(res).rows == []
    assert [row[0] for row in tables._at(res, small["data"], 0.95).rows] == ["a (a scan here)"]
    assert overall.settings(res).rows == [["a", "m 16"]]
    (row,) = overall.growing(results([small, large, *lines, scan | {"scan": False}])).rows
    assert row[2] == "100 (LID 3.0): <= 1; 1,000 (LID 3.0): <= 2"


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
        (1.5, 0.1, 1.0, "edge-exact"),  # fast enough
        (12.0, 9.0, 1.0, "edge-exact"),  # the graph is hardly faster
        (12.0, 0.5, 1.0, "faiss-hnsw"),
        (12.0, 0.5, 0.6, "edge-exact"),  # the graph loses recall under a filter
    ],
)
def test_what_to_pick_follows_its_rule(exact_ms, graph_ms, under_filter, wanted) -> None:
    found = pick(results(candidates(exact_ms, graph_ms, under_filter)), DATA["data"])
    assert found.engine == wanted


@pytest.mark.parametrize(("highest", "wanted"), [(1.6, "edge-exact"), (1.2, "faiss-flat-ip")])
def test_of_engines_that_are_level_what_the_platform_runs_is_chosen(highest, wanted) -> None:
    lines = [DATA, parity("edge-exact"), parity("faiss-flat-ip")]
    for engine, rounds in (("edge-exact", (1.5, 1.55)), ("faiss-flat-ip", (1.0, highest))):
        for number, took in enumerate(rounds):
            lines += [single(engine, took, 1.0, name=name, number=number) for name in ("all", "1 %")]
    res = results(lines)
    found = pick(res, DATA["data"])
    assert found.engine == wanted
    assert len(found.level) == (wanted == "edge-exact")
    (row,) = overall.picks(res).rows
    assert row[2].startswith("Search exactly: every neighbour is found, in 1.")


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


def test_runs_of_one_round_have_no_spread_that_a_difference_could_exceed(tmp_path) -> None:
    for name, ms in (("x", 1.0), ("y", 2.0)):
        writer = raw.Writer(tmp_path / name)
        for line in (ABOUT, DATA, single("a", ms, 1.0)):
            writer.add(line)
        writer.close()
    text = "\n".join(compared(tmp_path / "x", tmp_path / "y"))
    assert "| one round | clustered:8:1000 | a |" in text
    assert "0 of 1 moved" in text


def test_figures_of_other_vectors_under_the_same_name_are_not_compared(tmp_path) -> None:
    for name, content in (("x", "1"), ("y", "2")):
        writer = raw.Writer(tmp_path / name)
        for line in (ABOUT, DATA | {"content": content}, *(single("a", ms, 1.0) for ms in (1.0, 1.1))):
            writer.add(line)
        writer.close()
    assert "0 of 0 moved" in "\n".join(compared(tmp_path / "x", tmp_path / "y"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("raw.jsonl", b""), ("raw.jsonl", b'{"what":"envi'), ("raw.jsonl.gz", gzip.compress(b'{"what":"note"}\n')[:-9])],
    ids=["empty", "cut", "cut-gz"],  # a compressed file holds the time, and the parallel processes must agree
)
def test_results_that_were_cut_before_their_first_line_are_refused_in_words(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Invalid, match=f"{tmp_path.name} .* cut"):
        list(compared(tmp_path, tmp_path))
    with pytest.raises(Invalid, match=f"{tmp_path.name} .* cut"):
        report.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_broken_results_are_told_apart_from_cut_ones(tmp_path) -> None:
    with pytest.raises(NotFound):
        raw.read(tmp_path)
    (tmp_path / raw.FILE).write_text(json.dumps(DATA) + '\n{"what')
    assert raw.read(tmp_path) == [DATA]
    (tmp_path / raw.FILE).write_text('{"what\n' + json.dumps(DATA) + "\n")
    with pytest.raises(Invalid, match="line 1"):
        raw.read(tmp_path)
