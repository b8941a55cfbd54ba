"""Reading only the rows of the best studies gives the same answer as reading every row."""

import itertools
import random
import uuid

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gallery
from benchmarks.gallery import Gallery
from shared.encoder.build import build
from shared.index.base import Answer, Hit
from shared.index.memory import MemoryStore
from shared.pipeline import ask, lifecycle, project, search
from shared.pipeline.question import Request
from shared.pipeline.rank import QueryImage, leaders, rank
from shared.store import generations, neighbours
from shared.store.session import Store

DIM, STUDIES = 12, 120


@pytest.fixture
def archive(database_url: str, tmp_path):
    """Studies of four images, some with equal scores, in Postgres and in the in-memory index."""
    store, indexes = Store(database_url), MemoryStore()
    card = build(tmp_path / "null", "null", "null", "random:0", dim=DIM)
    with store.transaction() as db:
        lifecycle.add_model(db, indexes, "null", card)
        live = generations.published(db)
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((STUDIES * 4, DIM), dtype=np.float32)
    vectors[8:16] = vectors[0:8]  # two studies with the same images as two others: equal scores
    made = Gallery(vectors, 4)
    gallery.write(store, live, made)
    project.drain(store.transaction, indexes.open)
    yield store, indexes, live, made
    store.close()


def everything(store: Store, indexes: MemoryStore, live, uid: str, request: Request) -> list[str]:
    """The ranking computed from the rows of all hits."""
    with store.reading() as connection:
        subject = search._subject(neighbours.vectors(connection, [uid], live.model_id))
        page = search.cursor.first(None)
        answers = indexes.open(live.collection).search(ask._queries(subject, request, page, 40))
        points = {hit.id for answer in answers for hit in answer.hits}
        rows = neighbours.behind(connection, live.generation_id, list(points))
    ranking = rank(subject.images, answers, gone=points - rows.keys())
    found = [search._found(subject, candidate, rows) for candidate in ranking]
    found.sort(key=lambda study: (-study.score, study.study_uid))
    return [(study.study_uid, study.score, [p.hit.sop_uid for p in study.pairs]) for study in found[: request.k]]


def ranked(store: Store, indexes: MemoryStore, uid: str, request: Request) -> list[str]:
    with store.reading() as connection:
        (ranking,) = search.by_studies(connection, indexes.open, [uid], request)
    return [(study.study_uid, study.score, [p.hit.sop_uid for p in study.pairs]) for study in ranking.studies]


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("exclude", [frozenset(), frozenset({"study"}), frozenset({"patient"})])
def test_the_winners_rows_give_the_whole_ranking(archive, k: int, exclude: frozenset[str]) -> None:
    store, indexes, live, made = archive
    request = Request(k=k, exclude=exclude)
    for study in (0, 1, 2, 3, 50, 119):
        uid = made.uid(study)
        assert ranked(store, indexes, uid, request) == everything(store, indexes, live, uid, request)


def test_others_move_up_where_winners_may_not_be_shown(archive) -> None:
    store, indexes, live, made = archive
    request, uid = Request(k=5), made.uid(30)
    before = ranked(store, indexes, uid, request)
    hidden = [before[0][0], before[3][0]]
    with store.transaction() as db:  # erased in Postgres, but not yet in the index
        db.execute(
            sa.text(
                "UPDATE image SET status = 'deleted' FROM study "
                "WHERE study.id = image.study_id AND study.uid = ANY(:uids)"
            ),
            {"uids": hidden},
        )
    after = ranked(store, indexes, uid, request)
    assert after == everything(store, indexes, live, uid, request)
    assert len(after) == 5
    assert not {study for study, _, _ in after} & set(hidden)


def test_one_lost_image_lowers_its_study_as_if_it_had_never_been_found(archive) -> None:
    store, indexes, live, made = archive
    request = Request(k=10)
    rng = random.Random(1)
    for study in rng.sample(range(STUDIES), 5):
        uid = made.uid(study)
        lost = ranked(store, indexes, uid, request)[0][2][0]
        with store.transaction() as db:
            db.execute(sa.text("UPDATE image SET status = 'quarantined' WHERE sop_uid = :uid"), {"uid": lost})
        assert ranked(store, indexes, uid, request) == everything(store, indexes, live, uid, request)


POINTS = st.tuples(st.integers(0, 4), st.sampled_from(["CC", "MLO"]), st.sampled_from(["L", "R"]), st.integers(0, 9))


@given(st.lists(st.lists(POINTS, max_size=12), min_size=1, max_size=4), st.integers(1, 4))
def test_a_ranking_is_what_plain_loops_say(lists, k: int) -> None:
    images = [QueryImage(vector=np.ones(3, np.float32), view="CC", laterality="L") for _ in lists]
    answers, names = [], itertools.count()
    for found in lists:
        hits = [
            Hit(uuid.UUID(int=next(names)), float(score), {"study": study, "view": view, "laterality": side})
            for study, view, side, score in found
        ]
        answers.append(Answer(hits=tuple(sorted(hits, key=lambda hit: -hit.score)), exact=True))
    expected = {}
    for study in {hit.payload["study"] for answer in answers for hit in answer.hits}:
        total = 0.0
        for answer in answers:
            own = [hit for hit in answer.hits if hit.payload["study"] == study]
            same = [hit for hit in own if (hit.payload["view"], hit.payload["laterality"]) == ("CC", "L")]
            everything = [hit.score for hit in answer.hits] or [0.0]
            total += max(hit.score for hit in same or own) if own else min(everything)
        expected[study] = total / len(answers)
    ranking = rank(images, answers)
    assert {c.study: c.score for c in ranking} == pytest.approx(expected)
    assert [c.score for c in ranking] == sorted((c.score for c in ranking), reverse=True)
    lead = leaders(ranking, k)
    assert len(lead) >= min(k, len(ranking))
    assert all(c.score < lead[-1].score for c in ranking[len(lead) :])


def test_without_a_hit_there_is_no_ranking() -> None:
    assert rank([QueryImage(vector=np.ones(3, np.float32))], [Answer(hits=(), exact=True)]) == []
