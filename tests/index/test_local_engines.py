"""Engines in memory: what the contract suite does not cover."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.clustered import clustered, local_dimension
from shared.index import grouping
from shared.index.base import Answer, Between, Exact, Filter, Match, Metric, Point, Query, Spec
from shared.index.faiss import FaissIndex
from shared.index.grouping import emulate
from shared.index.memory import MemoryIndex


def id_of(number: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, str(number))


def points(n: int, dim: int = 16, revision: int = 1) -> list[Point]:
    rows = np.random.default_rng(revision).standard_normal((n, dim)).astype(np.float32)
    return [
        Point(
            id=id_of(i), vector=row, payload={"revision": revision, "birads": i % 7, "view": "CC" if i % 2 else "MLO"}
        )
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("metric", list(Metric))
def test_the_twin_agrees_with_a_plain_loop(metric: Metric) -> None:
    index, held, query = MemoryIndex(Spec(dim=16, metric=metric)), points(60), points(1, revision=9)[0].vector
    index.write(held)

    def score(vector: np.ndarray) -> float:
        dot = sum(float(a) * float(b) for a, b in zip(vector, query, strict=True))
        if metric is Metric.L2:
            return -(sum((float(a) - float(b)) ** 2 for a, b in zip(vector, query, strict=True)) ** 0.5)
        return dot / float(np.linalg.norm(vector) * np.linalg.norm(query)) if metric is Metric.COSINE else dot

    wanted = sorted(((score(point.vector), point.id) for point in held if point.payload["birads"] != 3), reverse=True)
    condition = Filter(must_not=(Match(field="birads", values=(3,)),))
    hits = index.search([Query(vector=query, limit=100, filter=condition)])[0].hits
    assert [hit.id for hit in hits] == [id_ for _, id_ in wanted]
    assert [hit.score for hit in hits] == pytest.approx([value for value, _ in wanted], abs=1e-5)


def test_ties_where_the_limit_falls_are_settled_by_id_in_the_twin() -> None:
    index, vector = MemoryIndex(Spec(dim=16)), points(1)[0].vector
    index.write([Point(id=id_of(i), vector=vector, payload={"revision": 1}) for i in range(50)])
    hits = index.search([Query(vector=vector, limit=7)])[0].hits
    assert [hit.id for hit in hits] == sorted(id_of(i) for i in range(50))[:7]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 5), st.booleans()), max_size=40))
def test_any_order_of_writes_and_deletes_leaves_what_a_dict_would_hold(steps: list[tuple[int, int, bool]]) -> None:
    index, model = FaissIndex(Spec(dim=4, scale="hnsw")), {}
    for number, revision, delete in steps:
        if delete:
            index.delete([id_of(number)])
            model.pop(number, None)
            continue
        vector = np.random.default_rng([number, revision]).standard_normal(4).astype(np.float32)
        index.write([Point(id=id_of(number), vector=vector, payload={"revision": revision})])
        if revision >= model.get(number, (-1,))[0]:
            model[number] = (revision, vector)
    for _ in range(2):
        assert {id_: revision for part in index.scan() for id_, revision in part} == {
            id_of(number): revision for number, (revision, _) in model.items()
        }
        hits = index.search([Query(vector=np.ones(4, np.float32), limit=100, accuracy=Exact())])[0].hits
        assert {hit.id for hit in hits} == {id_of(number) for number in model}
        index.optimize()


def test_faiss_gives_back_the_room_of_tombstones_and_answers_the_same() -> None:
    index = FaissIndex(Spec(dim=16, scale="hnsw"))
    index.write(points(500))
    index.write(points(500, revision=2))
    index.delete([id_of(i) for i in range(100)])
    query = Query(vector=points(1, revision=3)[0].vector, limit=20, accuracy=Exact())
    before = index.search([query])[0].hits
    assert index.optimize() is True
    assert index.optimize() is False
    after = index.search([query])[0].hits
    assert [hit.id for hit in after] == [hit.id for hit in before]


def test_faiss_scans_exactly_where_its_graph_would_lose_recall() -> None:
    index = FaissIndex(Spec(dim=16, scale="hnsw"))
    index.write(points(2000))
    vector = points(1, revision=3)[0].vector
    rare = Filter(must=(Between(field="birads", low=6), Match(field="view", values=("CC",))))
    assert index.search([Query(vector=vector, limit=10, filter=rare)])[0].exact
    assert not index.search([Query(vector=vector, limit=10)])[0].exact


def grouped_of(groups: int, of_each: int) -> MemoryIndex:
    """Groups ordered by distance from a vector of ones: all points of one come before those of the next."""
    index = MemoryIndex(Spec(dim=16, metric=Metric.L2))
    noise = np.random.default_rng(0).random((groups * of_each, 16), np.float32) * 0.1
    index.write(
        [
            Point(id=id_of(i), vector=1 + i // of_each + row, payload={"revision": 1, "study": i // of_each})
            for i, row in enumerate(noise)
        ]
    )
    return index


def test_emulated_groups_are_asked_without_those_that_are_full_until_there_are_enough() -> None:
    index, asked = grouped_of(5, of_each=300), []
    query = Query(vector=np.ones(16, np.float32), limit=5, group_by="study", fields=("view",))

    def search(queries: Sequence[Query]) -> list[Answer]:
        asked.append([condition.values for query in queries for condition in query.filter.must_not])
        return index.search(queries)

    (answer,) = emulate(search, [query])
    assert [hit.id for hit in answer.hits] == [hit.id for hit in index.search([query])[0].hits]
    assert (len(answer.hits), answer.cut, answer.emulated) == (5, False, {"group_by"})
    assert [len(values[0]) if values else 0 for values in asked] == [0, 4]


def test_emulated_groups_that_take_too_many_rounds_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    index = grouped_of(5, of_each=300)
    monkeypatch.setattr(grouping, "ROUNDS", 2)
    monkeypatch.setattr(grouping, "LEAST", 10)
    (answer,) = emulate(index.search, [Query(vector=np.ones(16, np.float32), limit=5, group_by="study")])
    assert answer.cut
    assert 1 < len(answer.hits) < 5


def test_emulated_groups_go_deeper_where_points_without_the_field_lie_in_front() -> None:
    index, near = MemoryIndex(Spec(dim=16)), np.ones(16, np.float32)
    index.write([replace(point, vector=near, payload={"revision": 1}) for point in points(1500)])
    grouped = Point(id=id_of(2000), vector=points(1)[0].vector, payload={"revision": 1, "study": 7})
    index.write([grouped])
    (answer,) = emulate(index.search, [Query(vector=near, limit=3, group_by="study")])
    assert ([hit.id for hit in answer.hits], answer.cut) == ([grouped.id], False)


def test_clustered_vectors_are_unit_repeatable_and_about_as_hard_as_stated() -> None:
    data = clustered(21_000, 256, seed=7)
    np.testing.assert_allclose(np.linalg.norm(data, axis=1), 1, rtol=1e-5)
    assert np.array_equal(data[:50], clustered(21_000, 256, seed=7)[:50])
    assert not np.array_equal(data[:50], clustered(21_000, 256, seed=8)[:50])
    # 28 at 100,000 x 1,024; fewer points and dimensions give lower values
    assert 12 < local_dimension(data[:20_000], data[20_000:20_200]) < 25
