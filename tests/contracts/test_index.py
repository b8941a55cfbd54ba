"""One suite for every engine behind `shared.index`; the exact twin is the oracle, ties are compared by score."""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import Conflict, Invalid, NotFound
from shared.index import grouping
from shared.index.base import (
    Answer,
    Between,
    Exact,
    Filter,
    Index,
    IndexStore,
    Match,
    Metric,
    Point,
    Query,
    Recall,
    Spec,
)
from shared.index.faiss import FaissStore
from shared.index.memory import MemoryStore
from tests.contracts import engines

DIM = 32
ENGINES = ["memory", "faiss-flat", "faiss-hnsw", "qdrant-local", "vectors-exact", "vectors-int8"]
if "SIMILIS_QDRANT__URL" in os.environ:
    ENGINES.append("server")
SCALE = {"memory": "exact", "faiss-flat": "exact", "vectors-exact": "exact"}
VIEWS = ("CC", "MLO")


@pytest.fixture(scope="module")
def vectors(quick_folder: Path) -> Iterator[engines.VectorsProcess]:
    with engines.vectors_process(quick_folder) as running:
        yield running


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(engine: str, request: pytest.FixtureRequest) -> Iterator[IndexStore]:
    if engine == "server":
        with engines.server() as opened:
            yield opened
        return
    if engine.startswith("vectors"):
        opened = request.getfixturevalue("vectors").store()
    elif engine == "qdrant-local":
        opened = engines.local_mode()
    else:
        opened = MemoryStore() if engine == "memory" else FaissStore()
    with closing(opened):
        yield opened


@pytest.fixture
def name(store: IndexStore) -> Iterator[str]:
    made = f"t-{uuid.uuid4().hex[:12]}"
    yield made
    store.drop(made)


@pytest.fixture
def make(engine: str, store: IndexStore, name: str) -> Callable[..., Index]:
    def make(metric: Metric = Metric.COSINE, dim: int = DIM) -> Index:
        return store.create(name, Spec(dim=dim, metric=metric, scale=SCALE.get(engine, "hnsw-int8")))  # type: ignore[arg-type]

    return make


def id_of(number: int) -> uuid.UUID:
    """IDs whose order differs from the order of writing."""
    return uuid.uuid5(uuid.NAMESPACE_OID, str(number))


def matrix(n: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def gallery(n: int, dim: int = DIM, revision: int = 1) -> list[Point]:
    """Four images to a study, two studies to a patient; every third point has no BI-RADS."""
    points = []
    for number, vector in enumerate(matrix(n, dim)):
        study = number // 4
        payload: dict[str, int | str] = {
            "image": number,
            "study": study,
            "patient": 2**62 + study // 2,
            "revision": revision,
            "modality": "MG" if number % 5 else "US",
            "view": VIEWS[number % 2],
            "laterality": "L" if number % 4 < 2 else "R",
            "density": "ABCD"[study % 4],
            "study_date": 20200101 + study,
        }
        if number % 3:
            payload["birads"] = number % 7
        points.append(Point(id=id_of(number), vector=vector, payload=payload))
    return points


def twin_of(index: Index, points: list[Point]) -> Index:
    twin = MemoryStore().create("twin", index.spec)
    twin.write(points)
    return twin


def assert_same(answer: Answer, truth: Answer) -> None:
    """Equal scores at equal places; IDs may differ where scores are equal."""
    got, want = answer.hits, truth.hits
    assert len(got) == len(want)
    np.testing.assert_allclose([hit.score for hit in got], [hit.score for hit in want], rtol=1e-5, atol=1e-5)
    lowest = want[-1].score + 1e-5 if want else 0.0
    assert {hit.id for hit in got if hit.score > lowest} <= {hit.id for hit in want}
    assert [(-hit.score, hit.id.int) for hit in got] == sorted((-hit.score, hit.id.int) for hit in got)


def test_a_real_server_is_among_the_engines() -> None:
    if "server" not in ENGINES:
        pytest.skip("SIMILIS_QDRANT__URL names no Qdrant server: the suite ran without one")
    with engines.server() as store:
        store.ping()


FILTERS = {
    "none": Filter(),
    "one-code": Filter(must=(Match(field="view", values=("CC",)),)),
    "any-of-codes": Filter(must=(Match(field="density", values=("A", "D")),)),
    "an-id": Filter(must=(Match(field="study", values=(3, 5, 8)),)),
    "large-ids": Filter(must=(Match(field="patient", values=(2**62 + 1, 2**62 + 4)),)),
    "a-number": Filter(must=(Match(field="birads", values=(4, 5)),)),
    "a-range": Filter(must=(Between(field="study_date", low=20200105, high=20200120),)),
    "half-a-range": Filter(must=(Between(field="birads", low=3),)),
    "any-value": Filter(must=(Between(field="birads"),)),
    "all-of": Filter(must=(Match(field="view", values=("MLO",)), Between(field="birads", high=2))),
    "not-a-patient": Filter(must_not=(Match(field="patient", values=(2**62, 2**62 + 2)),)),
    "not-a-range": Filter(must_not=(Between(field="birads", low=1, high=6),)),
    "both": Filter(must=(Match(field="modality", values=("MG",)),), must_not=(Match(field="study", values=(0, 1)),)),
    "one-of-none": Filter(must=(Match(field="view", values=()),)),
    "not-one-of-none": Filter(must_not=(Match(field="view", values=()),)),
    "never-seen": Filter(must=(Match(field="view", values=("XCCL",)),)),
    "beyond": Filter(must=(Between(field="study_date", low=20300101),)),
}


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_are_those_of_the_twin_and_higher_is_better(make: Callable[..., Index], metric: Metric) -> None:
    index, points = make(metric), gallery(200)
    index.write(points)
    queries = [Query(vector=vector, limit=10, accuracy=Exact()) for vector in matrix(5, seed=1)]
    answers = index.search(queries)
    for answer, truth in zip(answers, twin_of(index, points).search(queries), strict=True):
        assert_same(answer, truth)
        assert answer.exact


def test_a_known_vector_is_found_by_its_own_score(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(100)
    index.write(points)
    for number in (0, 41, 99):
        best = index.search([Query(vector=7 * points[number].vector, limit=1)])[0].hits[0]
        assert best.id == points[number].id
        assert best.score == pytest.approx(1.0, abs=1e-5)
        assert dict(best.payload) == points[number].payload


def test_distance_scores_are_negative_and_zero_at_best(make: Callable[..., Index]) -> None:
    index = make(Metric.L2, 2)
    rows = [np.array(row, np.float32) for row in ((0, 0), (3, 4), (6, 8))]
    index.write([Point(id=id_of(i), vector=row, payload={"revision": 1}) for i, row in enumerate(rows)])
    hits = index.search([Query(vector=np.zeros(2, np.float32), limit=3)])[0].hits
    assert [hit.score for hit in hits] == pytest.approx([0, -5, -10])


@pytest.mark.parametrize("case", list(FILTERS))
def test_filters_are_those_of_the_twin(make: Callable[..., Index], case: str) -> None:
    index, points = make(), gallery(240)
    index.write(points)
    twin, condition = twin_of(index, points), FILTERS[case]
    queries = [Query(vector=vector, limit=300, filter=condition, accuracy=Exact()) for vector in matrix(2, seed=2)]
    for answer, truth in zip(index.search(queries), twin.search(queries), strict=True):
        assert_same(answer, truth)
        assert {hit.id for hit in answer.hits} == {hit.id for hit in truth.hits}
    assert index.count(condition) == twin.count(condition) == len(truth.hits)


def test_excluding_inside_the_search_equals_fetching_more_and_dropping(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(240)
    index.write(points)
    own = 2**62 + 3
    vector = points[26].vector
    without = Filter(must_not=(Match(field="patient", values=(own,)),))
    inside = index.search([Query(vector=vector, limit=10, filter=without, accuracy=Exact())])[0].hits
    more = index.search([Query(vector=vector, limit=18, accuracy=Exact())])[0].hits
    dropped = [hit for hit in more if hit.payload["patient"] != own]
    assert [hit.id for hit in inside] == [hit.id for hit in dropped[:10]]


@pytest.mark.parametrize("group_limit", [1, 3])
@pytest.mark.parametrize("field", ["study", "birads"])
def test_groups_are_those_of_the_twin(make: Callable[..., Index], field: str, group_limit: int) -> None:
    index, points = make(), gallery(240)
    index.write(points)
    twin = twin_of(index, points)
    for limit in (5, 20, 100):
        query = Query(
            vector=matrix(1, seed=3)[0], limit=limit, group_by=field, group_limit=group_limit, accuracy=Exact()
        )
        answer = index.search([query])[0]
        assert_same(answer, twin.search([query])[0])
        assert all(field in hit.payload for hit in answer.hits)


def test_groups_larger_than_a_list_are_those_of_the_twin(
    make: Callable[..., Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven groups in a thousand points, asked for in lists of ten: most lists hold few groups."""
    monkeypatch.setattr(grouping, "LEAST", 10)
    index, points = make(), gallery(1000)
    index.write(points)
    query = Query(vector=matrix(1, seed=3)[0], limit=12, group_by="birads", group_limit=2, accuracy=Exact())
    answer, truth = index.search([query])[0], twin_of(index, points).search([query])[0]
    assert_same(answer, truth)
    assert (len(answer.hits), answer.cut) == (12, False)


def test_an_engine_that_emulates_grouping_says_so(engine: str, make: Callable[..., Index]) -> None:
    index = make()
    index.write(gallery(40))
    grouped = index.search([Query(vector=matrix(1)[0], limit=3, group_by="study")])[0]
    plain = index.search([Query(vector=matrix(1)[0], limit=3)])[0]
    native = engine in {"memory", "qdrant-local", "server"}
    assert grouped.emulated == (frozenset() if native else frozenset({"group_by"}))
    assert plain.emulated == frozenset()


def test_a_batch_is_answered_in_its_order_with_each_querys_own_wishes(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(240)
    index.write(points)
    twin, vectors = twin_of(index, points), matrix(4, seed=4)
    queries = [
        Query(vector=vectors[0], limit=3, accuracy=Exact()),
        Query(vector=vectors[1], limit=7, filter=FILTERS["one-code"], accuracy=Exact()),
        Query(vector=vectors[2], limit=4, group_by="patient", accuracy=Exact()),
        Query(vector=vectors[3], limit=1, filter=FILTERS["beyond"], accuracy=Exact()),
    ]
    for answer, truth in zip(index.search(queries), twin.search(queries), strict=True):
        assert_same(answer, truth)
    assert index.search([]) == []


def test_hits_carry_the_fields_that_were_asked_for_as_they_stand(make: Callable[..., Index]) -> None:
    index, fields = make(), ("study", "view")
    index.write(gallery(8))
    vector = gallery(8)[5].vector
    queries = [
        Query(vector=vector, limit=8, fields=fields),
        Query(vector=vector, limit=8),
        Query(vector=vector, limit=1),
    ]
    for revision, view in ((1, "MLO"), (2, "XCCL")):
        if revision == 2:
            point = gallery(8, revision=2)[5]
            index.write([Point(id=point.id, vector=vector, payload={**point.payload, "view": view})])
        some, every, first = index.search(queries)
        assert [hit.id for hit in some.hits] == [hit.id for hit in every.hits]
        for one, whole in zip(some.hits, every.hits, strict=True):
            assert {name: one.payload[name] for name in fields} == {name: whole.payload[name] for name in fields}
        assert some.hits[0].payload["view"] == view
        assert dict(first.hits[0].payload) == dict(index.get([id_of(5)])[0].payload)


def test_an_empty_collection_answers_with_nothing(make: Callable[..., Index]) -> None:
    index = make()
    assert index.search([Query(vector=matrix(1)[0], limit=5)])[0].hits == ()
    assert index.search([Query(vector=matrix(1)[0], limit=5, group_by="study")])[0].hits == ()
    assert index.count() == 0
    assert index.info().points == 0
    assert list(index.scan()) == []
    assert index.get([id_of(1)]) == []
    assert index.optimize() is False
    index.write([])
    index.delete([])


def test_a_limit_beyond_the_collection_gives_all_of_it(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(30)
    index.write(points)
    hits = index.search([Query(vector=matrix(1)[0], limit=1000)])[0].hits
    assert {hit.id for hit in hits} == {point.id for point in points}


BAD = {
    "nan": np.full(DIM, np.nan, np.float32),
    "infinite": np.full(DIM, np.inf, np.float32),
    "zero": np.zeros(DIM, np.float32),
    "too-short": np.ones(DIM - 1, np.float32),
    "a-matrix": np.ones((1, DIM), np.float32),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_vector_is_refused_and_leaves_nothing(make: Callable[..., Index], case: str) -> None:
    index, good = make(), gallery(3)
    bad = Point(id=id_of(99), vector=BAD[case], payload={"revision": 1})
    with pytest.raises(Invalid):
        index.write([*good, bad])
    with pytest.raises(Invalid):
        index.search([Query(vector=BAD[case], limit=1)])
    assert index.count() == 0


def test_a_tiny_vector_has_a_direction_like_any_other(make: Callable[..., Index]) -> None:
    index = make()
    vector = matrix(1)[0]
    index.write([Point(id=id_of(1), vector=vector * np.float32(1e-12), payload={"revision": 1})])
    assert index.search([Query(vector=vector * np.float32(1e12), limit=1)])[0].hits[0].score == pytest.approx(1.0)
    np.testing.assert_allclose(np.linalg.norm(index.get([id_of(1)])[0].vector), 1.0, rtol=1e-5)


def test_a_zero_vector_is_a_point_where_distance_is_the_metric(make: Callable[..., Index]) -> None:
    index = make(Metric.L2)
    index.write([Point(id=id_of(1), vector=np.zeros(DIM, np.float32), payload={"revision": 1})])
    hits = index.search([Query(vector=np.zeros(DIM, np.float32), limit=1)])[0].hits
    assert [hit.score for hit in hits] == [0.0]


@pytest.mark.parametrize(
    "query",
    [
        Query(vector=matrix(1)[0], limit=0),
        Query(vector=matrix(1)[0], limit=10**6),
        Query(vector=matrix(1)[0], limit=1, group_by="unheard-of"),
        Query(vector=matrix(1)[0], limit=1, fields=("study", "unheard-of")),
        Query(vector=matrix(1)[0], limit=1, group_by="study", group_limit=0),
        Query(vector=matrix(1)[0], limit=1, accuracy=Recall(1.5)),
        Query(vector=matrix(1)[0], limit=1, filter=Filter(must=(Match(field="unheard-of", values=(1,)),))),
        Query(vector=matrix(1)[0], limit=1, filter=Filter(must=(Match(field="view", values=(1,)),))),
        Query(vector=matrix(1)[0], limit=1, filter=Filter(must_not=(Match(field="study", values=("1",)),))),
        Query(vector=matrix(1)[0], limit=1, filter=Filter(must=(Between(field="view", low=1),))),
        Query(vector=matrix(1)[0], limit=1, filter=Filter(must=(Between(field="birads", low=2**60),))),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(make: Callable[..., Index], query: Query) -> None:
    with pytest.raises(Invalid):
        make().search([query])


@pytest.mark.parametrize(
    "payload",
    [{}, {"revision": "1"}, {"revision": True}, {"revision": 1, "name": "x"}, {"revision": 1, "view": 3}],
)
def test_a_payload_of_another_kind_is_refused(make: Callable[..., Index], payload: dict[str, int | str]) -> None:
    index = make()
    with pytest.raises(Invalid):
        index.write([Point(id=id_of(1), vector=matrix(1)[0], payload=payload)])
    assert index.count() == 0


def test_deleted_points_are_found_no_more_and_may_come_back(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(60)
    index.write(points)
    gone = [point.id for point in points[:20]]
    index.delete([*gone, id_of(10_000)])
    hits = index.search([Query(vector=points[0].vector, limit=100, accuracy=Exact())])[0].hits
    assert {hit.id for hit in hits} == {point.id for point in points[20:]}
    assert index.count() == 40
    assert index.get(gone) == []
    index.write(points[:1])
    assert index.search([Query(vector=points[0].vector, limit=1)])[0].hits[0].id == points[0].id


def revised(number: int, revision: int, seed: int, **more: int | str) -> Point:
    return Point(id=id_of(number), vector=matrix(1, seed=seed)[0], payload={"revision": revision, **more})


def held(index: Index, number: int) -> tuple[int, NDArray[np.float32]]:
    point = index.get([id_of(number)])[0]
    return int(point.payload["revision"]), point.vector


def test_an_older_revision_never_overwrites_a_newer_one(make: Callable[..., Index]) -> None:
    index = make(Metric.DOT)
    for revision in (5, 4, 6, 5):
        index.write([revised(1, revision, seed=revision)])
    revision, vector = held(index, 1)
    assert revision == 6
    np.testing.assert_allclose(vector, matrix(1, seed=6)[0], rtol=1e-6)


def test_the_same_revision_may_be_sent_again(make: Callable[..., Index]) -> None:
    index = make(Metric.DOT)
    index.write([revised(1, 3, seed=1)])
    index.write([revised(1, 3, seed=2, view="CC")])
    assert index.count() == 1
    assert index.get([id_of(1)])[0].payload == {"revision": 3, "view": "CC"}


def test_a_batch_of_many_revisions_is_guarded_point_by_point(make: Callable[..., Index]) -> None:
    index = make()
    index.write([revised(number, 10, seed=number) for number in range(1, 31)])
    index.write([revised(number, number, seed=100 + number) for number in range(1, 41)])
    revisions = {number: held(index, number)[0] for number in range(1, 41)}
    assert revisions == {number: max(number, 10) if number <= 30 else number for number in range(1, 41)}


def test_of_one_id_twice_in_a_batch_the_newer_stands(make: Callable[..., Index]) -> None:
    index = make(Metric.DOT)
    index.write([revised(1, 7, seed=7), revised(1, 2, seed=2), revised(2, 1, seed=1), revised(2, 1, seed=9)])
    assert index.count() == 2
    assert held(index, 1)[0] == 7
    np.testing.assert_allclose(held(index, 2)[1], matrix(1, seed=9)[0], rtol=1e-6)


def test_a_revision_drops_the_payload_of_the_one_before(make: Callable[..., Index]) -> None:
    index = make()
    index.write([revised(1, 1, seed=1, view="CC", birads=4)])
    index.write([revised(1, 2, seed=1, view="MLO")])
    assert index.get([id_of(1)])[0].payload == {"revision": 2, "view": "MLO"}
    assert index.count(FILTERS["half-a-range"]) == 0
    assert index.count(FILTERS["one-code"]) == 0


def test_equal_scores_are_ordered_by_id(make: Callable[..., Index]) -> None:
    index, vector = make(), matrix(1)[0]
    index.write([Point(id=id_of(i), vector=vector, payload={"revision": 1}) for i in range(20)])
    hits = index.search([Query(vector=vector, limit=20)])[0].hits
    assert [hit.id for hit in hits] == sorted(id_of(i) for i in range(20))


def test_get_keeps_the_order_asked_and_leaves_out_the_unknown(make: Callable[..., Index]) -> None:
    index, points = make(), gallery(20)
    index.write(points)
    asked = [points[7].id, id_of(999), points[2].id, points[11].id]
    got = index.get(asked)
    assert [point.id for point in got] == [points[7].id, points[2].id, points[11].id]
    for point, number in zip(got, (7, 2, 11), strict=True):
        want = points[number].vector / np.linalg.norm(points[number].vector)
        np.testing.assert_allclose(point.vector, want, rtol=1e-5, atol=1e-6)
        assert dict(point.payload) == points[number].payload


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_scan_gives_every_point_once_ordered_by_id(make: Callable[..., Index], batch: int) -> None:
    index = make()
    index.write([revised(number, number, seed=number) for number in range(1, 30)])
    seen = [entry for part in index.scan(batch) for entry in part]
    assert seen == sorted((id_of(number), number) for number in range(1, 30))


def test_creating_twice_opens_with_the_same_spec_and_refuses_another(store: IndexStore, name: str) -> None:
    spec = Spec(dim=DIM, metric=Metric.DOT, scale="hnsw", m=24)
    store.create(name, spec).write([revised(1, 1, seed=1)])
    assert store.create(name, spec).count() == 1
    with pytest.raises(Conflict):
        store.create(name, Spec(dim=DIM, metric=Metric.DOT, scale="hnsw"))
    assert store.open(name).spec == spec
    assert name in store.names()


def test_a_collection_that_is_not_there_is_not_found(store: IndexStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.open(name)
    store.drop(name)
    assert name not in store.names()
    store.ping()


@pytest.mark.parametrize("bad", ["", "A", "a/b", "..", "a" * 65])
def test_a_name_that_is_no_name_is_refused(store: IndexStore, bad: str) -> None:
    with pytest.raises(Invalid):
        store.create(bad, Spec(dim=2))


def test_a_dropped_collection_is_gone_and_may_be_made_anew(store: IndexStore, name: str) -> None:
    index = store.create(name, Spec(dim=DIM))
    index.write(gallery(10))
    store.drop(name)
    assert name not in store.names()
    assert store.create(name, Spec(dim=8)).count() == 0


def test_collections_do_not_see_each_other(store: IndexStore, name: str) -> None:
    other = f"{name}-b"
    store.create(name, Spec(dim=DIM)).write(gallery(5))
    try:
        assert store.create(other, Spec(dim=DIM)).count() == 0
        store.drop(other)
        assert store.open(name).count() == 5
    finally:
        store.drop(other)


def test_optimising_changes_no_exact_answer_and_searches_go_on(make: Callable[..., Index], engine: str) -> None:
    n, dim = (2500, 16) if engine == "qdrant-local" else (6000, DIM)
    index, points = make(dim=dim), gallery(n, dim)
    index.write(points)
    index.delete([point.id for point in points[:100]])
    query = Query(vector=matrix(1, dim, seed=5)[0], limit=10, filter=FILTERS["not-a-patient"], accuracy=Exact())
    twin = twin_of(index, points[100:])
    truth = twin.search([query])[0]
    done, answers, failures = threading.Event(), [], []

    def ask() -> None:
        try:
            while not done.is_set() or not answers:
                answers.append(index.search([query])[0])
        except Exception as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        index.optimize()
    finally:
        done.set()
        asking.join()
    assert failures == []
    for answer in [*answers[:: max(1, len(answers) // 20)], index.search([query])[0]]:
        assert_same(answer, truth)
    assert index.count() == n - 100
    assert index.info().points == n - 100
    if engine == "vectors-int8":
        assert index.info().indexed == n - 100


def test_a_graph_reaches_the_recall_that_was_asked_for(make: Callable[..., Index], engine: str) -> None:
    if engine == "qdrant-local":
        pytest.skip("qdrant-client's local mode is always exact")
    index, points = make(), gallery(6000)
    index.write(points)
    index.optimize()
    twin = twin_of(index, points)
    for condition in (FILTERS["none"], FILTERS["not-a-patient"], FILTERS["any-of-codes"]):
        wanted = [Query(vector=vector, limit=10, filter=condition) for vector in matrix(50, seed=6)]
        found = index.search(wanted)
        truth = twin.search(wanted)
        shares = [
            len({hit.id for hit in got.hits} & {hit.id for hit in want.hits}) / 10
            for got, want in zip(found, truth, strict=True)
        ]
        assert np.mean(shares) >= 0.97


def test_points_survive_a_restart_of_the_vectors_process(quick_path: Path) -> None:
    points = gallery(300)
    query = Query(vector=points[5].vector, limit=10)
    with engines.vectors_process(quick_path) as running:
        with closing(running.store()) as store:
            index = store.create("kept", Spec(dim=DIM))
            index.write(points)
            before = index.search([query])[0].hits
        assert running.stop() == 0
        running.start()
        with closing(running.store()) as store:
            assert store.names() == ["kept"]
            index = store.open("kept")
            assert index.spec == Spec(dim=DIM)
            assert [hit.id for hit in index.search([query])[0].hits] == [hit.id for hit in before]
            assert index.count() == 300
