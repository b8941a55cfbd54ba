import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shared.encoder.build import build
from shared.encoder.derive import build_hashed
from shared.errors import Conflict, Invalid
from shared.index import grouping
from shared.index.base import Metric, Query, Spec
from shared.index.faiss import FaissStore
from shared.pipeline import erase, hashes, lifecycle, search
from shared.pipeline.question import Ranking, Request
from shared.pipeline.rank import QueryImage
from shared.store import encodings, neighbours
from tests.miniature import SECRET, Platform
from tests.pipeline.test_doctor import look, work

BITS = 16


def uid(study: int) -> str:
    return f"1.2.4.{study + 1}"


def ask(platform: Platform, study: int = 0, **request: Any) -> Ranking:
    with platform.store.reading() as connection:
        return search.by_studies(connection, platform.index, [uid(study)], Request(**request))[0]


def hashed(platform: Platform, name: str = "hashed") -> None:
    """Publish a null encoder with a fitted hash head."""
    models = platform.folder / "models"
    base = build(models / f"{name}-base", f"{name}-base", "null", "random:0", dim=32)
    sample = np.random.default_rng(0).standard_normal((200, base.dim)).astype(np.float32)
    card = build_hashed(models / name, models / f"{name}-base", sample, BITS, name=name)
    with platform.begin() as db:
        lifecycle.add_model(db, platform.indexes, name, card)


@pytest.fixture
def archive(platform: Platform) -> Platform:
    hashed(platform)
    platform.take_in(48)  # 12 studies of 6 patients
    return platform


def told(answer: Ranking) -> list[Any]:
    return [(s.study_uid, s.score, [(p.hit.sop_uid, p.score, p.hamming) for p in s.pairs]) for s in answer.studies]


def rows(platform: Platform) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By UID: embedding and unpacked code of each image."""
    with platform.store.reading() as connection:
        found = neighbours.vectors(connection, [uid(n) for n in range(12)], 1)
    return {
        row.sop_uid: (encodings.unpack(row.embedding), np.unpackbits(np.frombuffer(row.code or b"", np.uint8)))
        for row in found
    }


def test_pairs_carry_the_distance_of_codes_and_the_correlation_of_content(archive: Platform) -> None:
    held = rows(archive)
    answer = ask(archive, mode="hash", k=50)
    assert answer.exact
    assert not answer.cut
    assert {s.study_uid for s in answer.studies} == {uid(n) for n in range(2, 12)}
    for pair in (pair for study in answer.studies for pair in study.pairs):
        (a, x), (b, y) = held[pair.query.sop_uid or ""], held[pair.hit.sop_uid]
        assert pair.hamming == int((x != y).sum())
        assert pair.score == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-4)


def test_a_radius_takes_all_within_it_and_nothing_beyond(archive: Platform) -> None:
    held = rows(archive)
    answer = ask(archive, mode="hash", k=50, radius=6)
    within = {
        (a, b)
        for a, (_, x) in held.items()
        for b, (_, y) in held.items()
        if a in {image.sop_uid for image in answer.subject.images} and int((x != y).sum()) <= 6
    }
    pairs = [pair for study in answer.studies for pair in study.pairs]
    assert pairs
    assert all((pair.query.sop_uid, pair.hit.sop_uid) in within for pair in pairs)
    studies = {hit for _, hit in within if int(hit.rsplit(".", 1)[1]) > 8}  # of other patients
    assert {pair.hit.study_uid for pair in pairs} == {uid((int(s.rsplit(".", 1)[1]) - 1) // 4) for s in studies}


def test_hybrid_ranks_a_wide_ball_as_a_dense_search_would(archive: Platform) -> None:
    dense = ask(archive, k=50, exact=True)
    hybrid = ask(archive, mode="hybrid", k=50)
    assert [s.study_uid for s in hybrid.studies] == [s.study_uid for s in dense.studies]
    for a, b in zip(hybrid.studies, dense.studies, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-3)
    assert all(pair.hamming is not None for study in hybrid.studies for pair in study.pairs)


def test_every_engine_gives_the_same_order(archive: Platform) -> None:
    """Sixteen-bit codes of a few hundred images: most distances occur many times."""
    first = told(ask(archive, mode="hash", k=5))
    collection = archive.indexes.names()[-1]
    twin, faiss = archive.indexes.open(collection), FaissStore()
    points = twin.get([point for batch in twin.scan() for point, _ in batch])
    other = faiss.create(collection, twin.spec)
    other.write(list(reversed(points)))
    with archive.store.reading() as connection:
        found = search.by_studies(connection, faiss.open, [uid(0)], Request(mode="hash", k=5))[0]
    assert told(found) == first
    assert told(ask(archive, mode="hash", k=5)) == first


def test_pages_go_on_where_the_last_ended(archive: Platform) -> None:
    whole = [s.study_uid for s in ask(archive, mode="hash", k=8).studies]
    first = ask(archive, mode="hash", k=4)
    second = ask(archive, mode="hash", k=4, cursor=first.next)
    assert len({*whole, *(s.study_uid for s in first.studies)}) == 8
    assert not {s.study_uid for s in first.studies} & {s.study_uid for s in second.studies}
    with pytest.raises(Invalid, match="another query"):
        ask(archive, mode="dense", k=4, cursor=first.next)


@pytest.mark.parametrize("mode", ["hash", "hybrid"])
def test_what_waits_to_be_deleted_takes_no_place_in_a_ball(archive: Platform, mode: Any, monkeypatch: Any) -> None:
    """Erased while the projector does not run: the points still exist, but may not be shown."""
    monkeypatch.setattr(hashes, "WIDE", 1)
    with archive.begin() as db:
        for study in ask(archive, mode=mode, k=8).studies:
            erase.erase_study(db, SECRET, study.study_uid)
    with archive.store.reading() as connection:
        live = archive.published()
        (row, *_) = neighbours.vectors(connection, [uid(0)], live.model_id)
        image = QueryImage(vector=encodings.unpack(row.embedding), code=np.frombuffer(row.code or b"", np.uint8))
        index = archive.index(live.collection)
        (found,) = hashes.searcher(connection, index, live, mode, None)([image], [Query(vector=image.vector, limit=6)])
        assert index.count() == 48
        assert len(found.hits) == 6
    archive.project()
    with archive.store.reading() as connection:
        (without,) = hashes.searcher(connection, index, live, mode, None)(
            [image], [Query(vector=image.vector, limit=6)]
        )
    assert index.count() == 16
    assert [hit.id for hit in found.hits] == [hit.id for hit in without.hits], "orphans change no answer"


def test_an_index_with_too_few_images_that_may_be_shown_is_not_asked_for_ever(
    archive: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive.begin() as db:
        for study in ask(archive, mode="hash", k=8).studies:
            erase.erase_study(db, SECRET, study.study_uid)
    asked: list[int | None] = []
    with archive.store.reading() as connection:
        live = archive.published()
        (row, *_) = neighbours.vectors(connection, [uid(0)], live.model_id)
        image = QueryImage(vector=encodings.unpack(row.embedding), code=np.frombuffer(row.code or b"", np.uint8))
        index = archive.index(live.collection)
        near = index.near

        def counted(queries: Any) -> Any:
            asked.extend(query.k for query in queries)
            assert len(asked) < 10, "the same is asked again and again"
            return near(queries)

        monkeypatch.setattr(index, "near", counted)
        (found,) = hashes.searcher(connection, index, live, "hash", None)(
            [image], [Query(vector=image.vector, limit=20)]
        )
    assert index.count() == 48
    assert len(found.hits) == 16


@pytest.mark.parametrize("mode", ["hash", "hybrid"])
def test_lists_that_few_studies_use_up_make_no_short_answer(
    archive: Platform, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.pipeline.ask.MOST_DEPTH", 4)
    monkeypatch.setattr(grouping, "LEAST", 4)
    answer = ask(archive, mode=mode, k=10)
    assert {s.study_uid for s in answer.studies} == {uid(n) for n in range(2, 12)}
    assert (answer.cut, answer.emulated) == (False, {"group_by"})


def test_a_model_without_codes_says_what_to_do(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(8)
    for mode in ("hash", "hybrid"):
        with pytest.raises(Conflict, match="no hash codes"):
            ask(platform, mode=mode)


def test_a_radius_belongs_to_a_search_by_codes() -> None:
    with pytest.raises(Invalid, match="mode=hash"):
        Request(radius=3).check(100)


@pytest.mark.parametrize("metric", list(Metric))
def test_equal_images_are_equal_whatever_stands_around_them(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    for copies in range(5, 60):
        row = np.abs(rng.standard_normal(1024)).astype(np.float32)
        own = row + 0.7 * rng.standard_normal(1024).astype(np.float32)
        matrix = np.repeat(row[None], copies, axis=0)
        assert len(np.unique(hashes.content(own, matrix))) == 1
        assert len(np.unique(hashes._as_the_index(Spec(dim=1024, metric=metric), own, matrix))) == 1


def test_equal_images_have_equal_content() -> None:
    rng = np.random.default_rng(0)
    matrix = np.repeat(rng.standard_normal((3, 1024)).astype(np.float32), 333, axis=0)
    scores = np.round(hashes.content(matrix[0], matrix), hashes.DIGITS)
    assert len(np.unique(scores)) == 3
    assert scores[0] == 1.0
    assert hashes.content(matrix[0], np.ones((1, 1024), np.float32))[0] == 0.0


@pytest.mark.parametrize("mode", ["hash", "hybrid"])
def test_a_batch_of_large_balls_takes_the_memory_of_one(archive: Platform, mode: Any) -> None:
    """Each ball covers the whole archive; they are processed one study at a time."""

    def peak(studies: int) -> int:
        tracemalloc.start()
        try:
            with archive.store.reading() as connection:
                asked = Request(mode=mode, k=1, radius=BITS if mode == "hash" else None)
                found = search.by_studies(connection, archive.index, [uid(n) for n in range(studies)], asked)
            assert len(found) == studies
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(12)  # imports and caches
    assert peak(12) < 2 * peak(2)


def test_embeddings_are_held_for_one_ball_at_a_time(archive: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told(ask(archive, mode="hash", k=5, radius=BITS))
    read: list[int] = []
    fetch = neighbours.embeddings

    def counted(*arguments: Any) -> Any:
        read.append(len(arguments[-1]))
        return fetch(*arguments)

    monkeypatch.setattr(neighbours, "embeddings", counted)
    ask(archive, mode="hash", k=5, radius=BITS)
    assert read[0] == 40
    assert read[1:] == [0, 0, 0]  # the balls of the four images are the same, and cached
    monkeypatch.setattr(hashes, "HELD", 10)
    read.clear()
    assert told(ask(archive, mode="hash", k=5, radius=BITS)) == whole
    assert read == [40, 40, 40, 40]


def test_the_doctor_finds_another_code_and_mends_it(archive: Platform) -> None:
    index = archive.index(archive.published().collection)
    (batch,) = index.scan()
    (point,) = index.get([batch[0][0]])
    assert point.code is not None
    index.write([replace(point, code=point.code ^ 1)])
    (found,) = look(archive)
    assert (found.kind, found.ids) == ("code-differs", [str(point.id)])
    look(archive, repair=True)
    work(archive)
    assert look(archive) == []
    assert (index.get([point.id])[0].code == point.code).all()
