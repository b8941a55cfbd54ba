"""Hamming balls on every engine equal those of plain counting, item by item, on codes with many copies."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import Invalid, Unavailable
from shared.index import trust
from shared.index.base import Ball, CodeQuery, Filter, Index, IndexStore, Match, Point, Spec
from shared.index.faiss import FaissStore
from shared.index.memory import MemoryStore
from shared.index.protobuf import pb
from tests.contracts import engines

BITS = 64
ENGINES = ["memory", "faiss", "qdrant-local", "vectors"]
if "SIMILIS_QDRANT__URL" in os.environ:
    ENGINES.append("server")


@pytest.fixture(scope="module")
def process(quick_folder: Path) -> Iterator[engines.VectorsProcess]:
    with engines.vectors_process(quick_folder) as running:
        yield running


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest) -> Iterator[IndexStore]:
    if request.param == "server":
        with engines.server() as opened:
            yield opened
        return
    made: dict[str, Callable[[], IndexStore]] = {
        "memory": MemoryStore,
        "faiss": FaissStore,
        "qdrant-local": engines.local_mode,
        "vectors": lambda: request.getfixturevalue("process").store(),
    }
    with closing(made[request.param]()) as opened:
        yield opened


@pytest.fixture
def make(store: IndexStore) -> Iterator[Callable[[int], Index]]:
    name = f"c-{uuid.uuid4().hex[:12]}"
    yield lambda bits=BITS: store.create(name, Spec(dim=4, bits=bits, scale="exact"))
    store.drop(name)


def centralised(n: int, bits: int = BITS, seed: int = 0) -> NDArray[np.uint8]:
    """Nineteen of twenty are copies of a few centres, as hashing by class gives them."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (6, bits // 8), dtype=np.uint8)
    codes = centres[rng.integers(0, 6, n)]
    flipped = np.packbits(rng.random((n, bits)) < 0.08, axis=1)
    return np.where(rng.random((n, 1)) < 0.05, codes ^ flipped, codes)


def points(codes: NDArray[np.uint8], revision: int = 1) -> list[Point]:
    vectors = np.random.default_rng(1).standard_normal((len(codes), 4)).astype(np.float32)
    return [
        Point(
            id=uuid.uuid5(uuid.NAMESPACE_OID, str(i)),
            vector=vectors[i],
            code=code,
            payload={"revision": revision, "patient": i // 8, "study": i // 4, "view": "CC" if i % 2 else "MLO"},
        )
        for i, code in enumerate(codes)
    ]


def counted(
    held: list[Point], query: CodeQuery, keep: Callable[[Point], bool] = lambda _: True
) -> list[tuple[int, int]]:
    """(distance, id) of each item in the ball, by plain loops."""
    rows = sorted(
        (sum((a ^ b).bit_count() for a, b in zip(p.code.tolist(), query.code.tolist(), strict=True)), p.id.int)
        for p in held
        if p.code is not None and keep(p)
    )
    radius = query.radius if query.radius is not None else rows[min(query.k or 1, len(rows)) - 1][0]
    return [row for row in rows if row[0] <= radius]


def told(ball: Ball) -> list[tuple[int, int]]:
    return [(hit.distance, hit.id.int) for hit in ball.hits]


@pytest.mark.parametrize("bits", [16, 64, 256, 512])
@pytest.mark.parametrize("asked", [{"k": 1}, {"k": 10}, {"k": 100}, {"radius": 0}, {"radius": 3}])
def test_a_ball_is_what_counting_bits_gives(make: Callable[..., Index], bits: int, asked: dict[str, int]) -> None:
    held = points(centralised(200, bits))
    index = make(bits)
    index.write(held)
    queries = [CodeQuery(code=code, **asked) for code in centralised(7, bits, seed=3)]
    for query, ball in zip(queries, index.near(queries), strict=True):
        expected = counted(held, query)
        assert told(ball) == expected
        assert not ball.cut
        assert ball.radius == (query.radius if query.radius is not None else expected[-1][0])


def test_many_codes_are_scanned_by_the_same_rule(make: Callable[..., Index]) -> None:
    """Enough codes that engines which estimate the radius from a sample do so."""
    held = points(np.random.default_rng(5).integers(0, 256, (17_000, 8), dtype=np.uint8))
    index = make()
    if type(index).__name__ == "QdrantIndex" and "LocalPoints" in type(index._wire.points).__name__:
        pytest.skip("the local mode takes a minute for these")
    index.write(held)
    query = CodeQuery(code=held[7].code ^ np.uint8(1), k=50)
    assert told(index.near([query])[0]) == counted(held, query)
    few = CodeQuery(
        code=query.code, k=50, filter=Filter(must=[Match(field="patient", values=(1, 2, 3, 4, 5, 6, 7, 9))])
    )
    wanted = counted(held, few, lambda p: p.payload["patient"] in (1, 2, 3, 4, 5, 6, 7, 9))
    assert told(index.near([few])[0]) == wanted
    half = CodeQuery(code=query.code, k=50, filter=Filter(must=[Match(field="view", values=("CC",))]))
    assert told(index.near([half])[0]) == counted(held, half, lambda p: p.payload["view"] == "CC")


def test_the_patient_is_left_out_and_k_is_still_full(make: Callable[..., Index]) -> None:
    held = points(centralised(300))
    index = make()
    index.write(held)
    query = CodeQuery(code=held[0].code, k=20, filter=Filter(must_not=[Match(field="patient", values=(0,))]))
    ball = index.near([query])[0]
    assert told(ball) == counted(held, query, lambda p: p.payload["patient"] != 0)
    assert len(ball.hits) >= 20


def test_the_rim_belongs_to_the_ball(make: Callable[..., Index]) -> None:
    """Qdrant's threshold is strict: with bits - 2r it would leave out items at distance r."""
    code = np.zeros(8, np.uint8)
    rim = np.array([0b111] + [0] * 7, np.uint8)
    index = make()
    index.write(points(np.stack([code, rim, rim])))
    assert [hit.distance for hit in index.near([CodeQuery(code=code, radius=3)])[0].hits] == [0, 3, 3]
    assert [hit.distance for hit in index.near([CodeQuery(code=code, radius=2)])[0].hits] == [0]


def test_ties_at_the_kth_distance_all_come(make: Callable[..., Index]) -> None:
    held = points(np.zeros((250, 8), np.uint8))
    index = make()
    index.write(held)
    ball = index.near([CodeQuery(code=np.zeros(8, np.uint8), k=3)])[0]
    assert told(ball) == sorted((0, p.id.int) for p in held)


def test_a_ball_that_is_too_large_is_cut_and_says_so(make: Callable[..., Index]) -> None:
    held = points(centralised(400))
    index = make()
    index.write(held)
    for asked in ({"k": 5}, {"radius": 40}):
        query = CodeQuery(code=held[0].code, most=12, **asked)
        ball = index.near([query])[0]
        assert ball.cut
        assert told(ball) == counted(held, query)[:12]


def test_of_a_ball_that_is_too_large_no_more_comes_than_its_rim_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A radius of all bits covers the whole archive; the second request is limited to the distance of the cut."""
    held = points(np.random.default_rng(9).integers(0, 256, (2000, 8), dtype=np.uint8))
    with closing(engines.local_mode()) as opened:
        index = opened.create("large", Spec(dim=4, bits=BITS, scale="exact"))
        index.write(held)
        index.near([CodeQuery(code=held[0].code, k=1)])  # checks the engine's distances first
        came: list[int] = []
        ask = index._wire.points.QueryBatch  # type: ignore[attr-defined]

        def counting(*request: object, **more: object) -> object:
            reply = ask(*request, **more)
            came.append(sum(len(result.result) for result in reply.result))
            return reply

        monkeypatch.setattr(index._wire.points, "QueryBatch", counting)  # type: ignore[attr-defined]
        query = CodeQuery(code=held[0].code, radius=BITS, most=100)
        ball = index.near([query])[0]
    expected = counted(held, query)
    assert told(ball) == expected[:100]
    assert (ball.cut, ball.radius) == (True, BITS)
    assert came == [101, sum(distance <= expected[100][0] for distance, _ in expected)]
    assert came[1] < 500


def test_an_engine_whose_distances_are_wrong_answers_no_search_by_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of uint8 with binary quantisation silently give every item one score."""
    held = points(np.random.default_rng(9).integers(0, 256, (50, 8), dtype=np.uint8))
    with closing(engines.local_mode()) as opened:
        index = opened.create("wrong", Spec(dim=4, bits=BITS, scale="exact"))
        index.write(held)
        ask = index._wire.points.QueryBatch  # type: ignore[attr-defined]

        def levelling(request: pb.QueryBatchPoints, **more: object) -> pb.QueryBatchResponse:
            reply: pb.QueryBatchResponse = ask(request, **more)
            for hit in (hit for result in reply.result for hit in result.result):
                hit.score = 32.0
            return reply

        query = CodeQuery(code=held[0].code, k=3)
        with monkeypatch.context() as patch:
            patch.setattr(index._wire.points, "QueryBatch", levelling)  # type: ignore[attr-defined]
            for queries in ([query], []):
                with pytest.raises(Unavailable, match="Hamming"):
                    index.near(queries)
        assert told(index.near([query])[0]) == counted(held, query)


def test_distances_are_looked_at_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may quantise a segment at any time."""
    looked: list[int] = []
    monkeypatch.setattr(trust, "right", lambda *_: looked.append(1) or True)
    index = MemoryStore().create("x", Spec(dim=4, bits=BITS, scale="exact"))
    kept = trust.Trust(every_s=0.0)
    kept.check(index, index.near)
    kept.check(index, index.near)
    lasting = trust.Trust(every_s=60.0)
    lasting.check(index, index.near)
    lasting.check(index, index.near)
    assert len(looked) == 3


def test_a_point_written_meanwhile_is_no_wrong_distance() -> None:
    held = points(centralised(60))
    index = MemoryStore().create("y", Spec(dim=4, bits=BITS, scale="exact"))
    index.write(held)
    first = min(held, key=lambda point: point.id)
    fresh = [replace(first, code=first.code ^ np.uint8(255), payload={"revision": 2})]

    def near(queries: Sequence[CodeQuery]) -> list[Ball]:
        found = index.near(queries)
        if fresh:
            index.write([fresh.pop()])
        return found

    trust.Trust().check(index, near)
    assert not fresh


def test_codes_follow_writes_deletes_and_revisions(make: Callable[..., Index]) -> None:
    codes = centralised(50)
    index = make()
    index.write(points(codes, revision=2))
    index.write(points(codes ^ np.uint8(255), revision=1))  # an older revision changes nothing
    index.write(points(codes[:10] ^ np.uint8(255), revision=3))
    index.delete([uuid.uuid5(uuid.NAMESPACE_OID, str(i)) for i in range(20, 30)])
    now = [*points(codes[:10] ^ np.uint8(255)), *points(codes)[10:20], *points(codes)[30:]]
    query = CodeQuery(code=codes[0], radius=64)
    assert told(index.near([query])[0]) == counted(now, query)
    [point] = index.get([uuid.uuid5(uuid.NAMESPACE_OID, "3")])
    assert point.code is not None
    assert point.code.tolist() == (codes[3] ^ np.uint8(255)).tolist()
    assert set(point.payload) == {"revision", "patient", "study", "view"}


def test_fields_travel_and_nothing_of_ours_does(make: Callable[..., Index]) -> None:
    index = make()
    index.write(points(centralised(5)))
    ball = index.near([CodeQuery(code=centralised(5)[0], k=5)])[0]
    assert all(set(hit.payload) == {"revision", "patient", "study", "view"} for hit in ball.hits)
    ball = index.near([CodeQuery(code=centralised(5)[0], k=5, fields=("study",))])[0]
    assert all(hit.payload["study"] in (0, 1) for hit in ball.hits)


def test_an_empty_collection_has_empty_balls(make: Callable[..., Index]) -> None:
    index = make()
    assert index.near([]) == []
    for asked in ({"k": 3}, {"radius": 3}):
        assert index.near([CodeQuery(code=np.zeros(8, np.uint8), **asked)])[0].hits == ()


@pytest.mark.parametrize(
    "asked", [{}, {"k": 1, "radius": 1}, {"k": 0}, {"radius": -1}, {"radius": 65}, {"k": 30, "most": 20}]
)
def test_a_ball_that_makes_no_sense_is_refused(make: Callable[..., Index], asked: dict[str, int]) -> None:
    with pytest.raises(Invalid):
        make().near([CodeQuery(code=np.zeros(8, np.uint8), **asked)])


def test_codes_of_another_length_are_refused(make: Callable[..., Index]) -> None:
    index = make()
    with pytest.raises(Invalid):
        index.near([CodeQuery(code=np.zeros(4, np.uint8), k=1)])
    [point] = points(centralised(1))
    with pytest.raises(Invalid):
        index.write([Point(id=point.id, vector=point.vector, payload=point.payload)])
    with pytest.raises(Invalid):
        index.write(points(centralised(1, 32)))


def test_a_collection_without_codes_says_so(store: IndexStore) -> None:
    name = f"n-{uuid.uuid4().hex[:12]}"
    index = store.create(name, Spec(dim=4, scale="exact"))
    with pytest.raises(Invalid, match="no codes"):
        index.near([CodeQuery(code=np.zeros(8, np.uint8), k=1)])
    store.drop(name)


def test_codes_are_there_again_after_a_kill(process: engines.VectorsProcess) -> None:
    held = points(centralised(100))
    with closing(process.store()) as store:
        store.create("kept", Spec(dim=4, bits=BITS, scale="exact")).write(held)
    process.kill()
    process.start()
    with closing(process.store()) as store:
        query = CodeQuery(code=held[0].code, k=10)
        assert told(store.open("kept").near([query])[0]) == counted(held, query)
        store.drop("kept")
