"""Every engine available here reaches its recall and obeys filters, and exact engines are exact."""

import json
import time
import uuid

import httpx
import numpy as np
import pytest

from benchmarks.clustered import clustered
from benchmarks.latency import measure
from benchmarks.latency.data import Data, prepare
from benchmarks.latency.engines import engines, qdrant_server
from benchmarks.latency.engines._grpc import FIELD
from benchmarks.latency.engines.base import Engine, Found, InProcess
from benchmarks.latency.measure import Session
from benchmarks.latency.profiles import Plan
from benchmarks.latency.vectors import KEY, vectors_process
from shared.index import messages
from shared.index.base import Recall, Spec
from shared.index.qdrant import QdrantStore

PLAN = Plan(queries=30, seconds=0.05, checked=20, clients=(2,))
KNOWN = engines()
HERE = [engine for engine in KNOWN.values() if not (engine.missing() or engine.limit or engine.aside)]
#: Recall at full effort; binary copies of vectors and multi-index hashing end below the others.
ENDS = {
    "edge-binary": 0.6,
    "faiss-ivfpq": 0.7,
    "faiss-binary-multihash": 0.8,
    "edge-codes-hnsw": 0.8,
    "faiss-binary-hnsw": 0.8,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Data]:
    cache = tmp_path_factory.mktemp("cache")
    names = {"vectors": "clustered:64:800", "codes": "codes:64:800"}
    return {kind: Data.load(prepare(name, cache, 30, 7)) for kind, name in names.items()}


@pytest.fixture
def opened(request, made, tmp_path):
    engine = request.param
    data = made[engine.kind]
    engine.build(tmp_path, np.ascontiguousarray(data.rows), data.columns)
    held = engine.open(tmp_path, data.columns)
    yield Session(engine, held, data, PLAN, seed=0)
    held.close()


@pytest.mark.parametrize("opened", HERE, ids=lambda engine: engine.name, indirect=True)
def test_an_engine_finds_what_the_oracle_finds(opened: Session) -> None:
    engine, most = opened.engine, opened.engine.efforts[-1]
    single = opened.single(most, 10, "all")
    assert single["recall"] >= ENDS.get(engine.name, 0.95)
    assert single["n"] >= measure.LEAST
    assert len(single["ms"]) == 101
    assert opened.batch(most)["recall"] >= ENDS.get(engine.name, 0.95)
    if engine.filters:  # rows that fail the filter count as not found
        ids = [opened.ask(row, 10, most, "patient").ids[0] for row in range(10)]
        own = [opened.data.columns["patient"][found[found >= 0]] for found in ids]
        assert not any((patients == opened.data.patients[row]).any() for row, patients in enumerate(own))
    if engine.exact:
        assert opened.parity() == {"checked": 100, "wrong": 0, "worst": pytest.approx(0, abs=2e-6)}
    assert opened.opened.pids() or engine.name.startswith("server")


class _Broken(InProcess):
    """Returns the second nearest as the nearest, or ignores filters."""

    def __init__(self, engine, *, filters: bool) -> None:
        self._engine, self._filters = engine, filters

    def search(self, queries, k, effort, clauses):
        if self._filters:
            return self._engine.search(queries, k, effort, None)
        return Found(self._engine.search(queries, k + 1, effort, clauses).ids[:, 1:])


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("opened", [KNOWN["faiss-flat-ip"]], ids=["flat"], indirect=True)
def test_the_parity_check_sees_a_broken_engine(opened: Session, filters) -> None:
    opened.opened = _Broken(opened.opened, filters=filters)
    assert opened.parity()["wrong"] > 0


def test_rows_as_near_as_the_last_count_and_repeated_rows_count_once(made) -> None:
    data = made["codes"]
    truth = data.truth["all"][0]
    near = data.similarities(0, np.arange(len(data.rows)))
    ties = np.flatnonzero(near >= truth[9])
    assert len(ties) >= 10
    assert measure.recalls(data, "all", [0], ties[None, -10:], 10)[0] == 1.0
    assert measure.recalls(data, "all", [0], np.repeat(ties[:1], 10)[None], 10)[0] == pytest.approx(0.1)


class _Stalls(InProcess):
    """Answers immediately, except for one stall of 150 ms."""

    def __init__(self) -> None:
        self.asked = 0

    def search(self, queries, k, effort, clauses):
        self.asked += 1
        time.sleep(0.15 if self.asked == 30 else 0.0005)
        return Found(np.zeros((len(queries), k), np.int64))


def test_who_waits_behind_a_stall_is_counted_from_when_the_question_was_due(made) -> None:
    engine = Engine(name="stalls", build=lambda *_: None, open=lambda *_: _Stalls())
    session = Session(engine, _Stalls(), made["vectors"], Plan(queries=30, seconds=0.6), seed=0)
    rate, ms = session._many({}, 1, 200.0, session.ask)
    late = np.count_nonzero(np.array(ms) > 20)
    assert late >= 10  # a closed loop would see only one
    assert rate < 220


def test_an_open_loop_asks_at_half_of_what_was_measured_or_at_the_rate_of_all(made) -> None:
    engine = Engine(name="stalls", build=lambda *_: None, open=lambda *_: _Stalls())
    session = Session(engine, _Stalls(), made["vectors"], Plan(queries=30, seconds=0.3), seed=0)
    session.most[2] = 300.0
    own, common = session.open_loop({}, 2, None), session.open_loop({}, 2, 40.0)
    assert (own["rate_per_s"], common["rate_per_s"]) == (150.0, 40.0)
    assert own["n"] == 45
    assert own["floor_ms"] > 0
    del session.most[2]
    assert session.open_loop({}, 2, None)["rate_per_s"] == pytest.approx(session.most[2] / 2, abs=0.1)


def test_effort_is_swept_under_filters_and_for_many_and_ends_where_recall_does(made) -> None:
    engine = KNOWN["faiss-hnsw"]
    session = Session(engine, _Stalls(), made["vectors"], Plan(queries=30, seconds=0.01, ks=(1, 100)), seed=0)
    session.batch = lambda effort: {"recall": 1.0 if effort["ef"] >= 64 else 0.5}
    asked = []
    for key, measurement in measure.run(session, first=False):
        asked.append(key)
        if key["what"] == "batch":
            measurement()
    ten = [key["effort"]["ef"] for key in asked if key.get("k") == 10 and key["filter"] == "all"]
    assert sorted(ten) == [10, 12, 16, 24, 32, 48, 64]
    assert [key["effort"]["ef"] for key in asked if key.get("k") == 100] == [10, 24, 64, 192, 512]
    assert [key["effort"]["ef"] for key in asked if key.get("filter") == "1 %"] == [10, 24, 64, 192, 512]


@pytest.mark.parametrize(("rows", "scan"), [(2006, True), (2600, False)])
def test_a_graph_of_few_rows_is_known_for_the_scan_that_it_is(tmp_path, rows, scan) -> None:
    engine = KNOWN["edge-hnsw"]
    vectors = clustered(rows + 20, 1024, 7)
    engine.build(tmp_path, vectors[:rows], {})
    held = engine.open(tmp_path, {})
    ids = held.search(vectors[rows:], 10, {"ef": 10}, None).ids
    held.close()
    exact = np.argsort(-(vectors[rows:] @ vectors[:rows].T), axis=1)[:, :10]
    assert engine.scans(rows, 1024) is scan
    assert np.array_equal(np.sort(ids), np.sort(exact)) is scan


class _RestServer:
    """Qdrant's REST API as documented, over rows in memory; records its requests."""

    def __init__(self, data: Data) -> None:
        self.data, self.asked = data, list[tuple[str, dict]]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url).startswith("http://somewhere:6333/collections/bench-1/points/query")
        assert request.headers["api-key"] == KEY
        body = json.loads(request.content)
        self.asked.append((request.url.path, body))
        if request.url.path.endswith("/batch"):
            result: object = [self._answer(one) for one in body["searches"]]
        else:
            result = self._answer(body)
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0.002})

    def _answer(self, one: dict) -> dict:
        scores = self.data.rows @ np.asarray(one["query"], np.float32)
        for kind, conditions in one.get("filter", {}).items():
            for condition in conditions:
                field = next(own for own, theirs in FIELD.items() if theirs == condition["key"])
                value = condition["match"]["value"]
                assert isinstance(value, str) is (field == "modality")
                passes = self.data.columns[field] == int(value)
                scores = np.where(passes == (kind == "must"), scores, -np.inf)
        best = np.argsort(-scores, kind="stable")[: one["limit"]]
        found = [n for n in best.tolist() if np.isfinite(scores[n])]
        return {"points": [{"id": str(uuid.UUID(int=n)), "version": 0, "score": float(scores[n])} for n in found]}


def test_a_server_is_asked_by_rest_one_question_or_many_in_a_call(made, tmp_path, monkeypatch) -> None:
    data, server = made["vectors"], _RestServer(made["vectors"])
    monkeypatch.setenv(qdrant_server.URL, "http://somewhere:6334")
    monkeypatch.setenv(qdrant_server.KEY, KEY)
    (tmp_path / qdrant_server.NAME).write_text("bench-1")
    held = qdrant_server._Rest(tmp_path, data.columns, httpx.MockTransport(server))
    exact = Session(KNOWN["server-rest-exact"], held, data, PLAN, seed=0)
    assert exact.parity()["wrong"] == 0
    assert {path.rpartition("points")[2] for path, _ in server.asked} == {"/query"}
    assert server.asked[0][1]["params"] == {"exact": True}
    assert exact.single({}, 10, "all")["engine_ms"] == 2.0
    assert exact.batch({})["recall"] == 1.0
    path, body = server.asked[-1]
    assert path.endswith("/query/batch")
    assert len(body["searches"]) == len(data.queries)
    graph = Session(KNOWN["server-rest-hnsw"], held, data, PLAN, seed=0)
    for target, name in ((0.97, "all"), (0.97, "1 %"), (0.9, "patient")):
        graph.ask(0, 10, {"target": target}, name)
        asked = messages.params(Spec(dim=64), Recall(target), 800, filtered=name == "1 %")  # as the adapter asks
        assert server.asked[-1][1]["params"] == {
            "hnsw_ef": asked.hnsw_ef,
            "quantization": {"rescore": True, "oversampling": asked.quantization.oversampling},
        }
    held.close()


def test_a_server_that_refuses_ends_the_question(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(qdrant_server.URL, "http://somewhere:6334")
    (tmp_path / qdrant_server.NAME).write_text("bench-1")
    refuses = httpx.MockTransport(lambda _: httpx.Response(503))
    held = qdrant_server._Rest(tmp_path, made["vectors"].columns, refuses)
    with pytest.raises(httpx.HTTPStatusError):
        held.search(made["vectors"].queries[:2], 10, {}, None)
    held.close()


def test_a_peer_that_speaks_grpc_answers_from_a_float32_graph_one_by_one_and_together(
    made, tmp_path, monkeypatch
) -> None:
    engine, data = KNOWN["server-grpc-hnsw"], made["vectors"]
    with vectors_process() as url:
        monkeypatch.setenv(qdrant_server.URL, url)
        monkeypatch.setenv(qdrant_server.KEY, KEY)
        engine.build(tmp_path, np.ascontiguousarray(data.rows), data.columns)
        held = engine.open(tmp_path, data.columns)
        session = Session(engine, held, data, PLAN, seed=0)
        assert session.single(engine.efforts[-1], 10, "all")["recall"] >= 0.95
        assert session.batch(engine.efforts[-1])["recall"] >= 0.95
        held.close()
        engine.drop(tmp_path)


@pytest.mark.parametrize("name", ["server-grpc-exact", "server-grpc-codes"])
def test_a_peer_that_speaks_grpc_is_filled_asked_and_left_as_it_was(made, tmp_path, monkeypatch, name) -> None:
    engine = KNOWN[name]
    data = made[engine.kind]
    with vectors_process() as url:
        monkeypatch.setenv(qdrant_server.URL, url)
        monkeypatch.setenv(qdrant_server.KEY, KEY)
        assert not engine.missing()
        engine.build(tmp_path, np.ascontiguousarray(data.rows), data.columns)
        held = engine.open(tmp_path, data.columns)
        session = Session(engine, held, data, PLAN, seed=0)
        assert session.parity()["wrong"] == 0
        assert session.single({}, 10, "all")["engine_ms"] > 0
        held.close()
        engine.drop(tmp_path)
        store = QdrantStore(url, KEY)
        assert store.names() == []
        store.close()


def test_the_least_effort_that_reaches_the_goal_is_taken() -> None:
    engine = KNOWN["faiss-hnsw"]
    session = Session.__new__(Session)
    session.engine = engine
    assert session.goal({0: 0.5, 1: 0.96, 2: 0.99}) == engine.efforts[1]
    assert session.goal(dict.fromkeys(range(6), 0.3)) == engine.efforts[-1]


def test_engines_that_cannot_run_say_why(monkeypatch) -> None:
    monkeypatch.delenv("SIMILIS_BENCH_QDRANT_URL", raising=False)
    assert KNOWN["server-rest-int8"].missing() == "no --qdrant-url"
    absent = Engine(name="x", build=lambda *_: None, open=lambda *_: _Stalls(), needs=("nowhere_to_be_found",))
    assert "not installed" in absent.missing()
