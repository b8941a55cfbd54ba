"""The canary falls when the index loses recall, is silent when it is sound, and costs little."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.index.base import Answer, Exact, Index, Info, Query
from shared.pipeline import canary, sweep
from shared.pipeline.reconcile import Finding, Site, examine
from shared.store import canaries, gauges
from shared.store.blobs import Blobs
from shared.store.canaries import Canary
from shared.types import Job
from tests.miniature import Platform

SOON = 1e-6  #: seconds between two rounds


class Damaged:
    """The index, whose approximate answers lack some of the right hits: usually a third."""

    def __init__(self, index: Index, every: int = 3, of: int = 1) -> None:
        self._index = index
        self._every, self._of = every, of
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        self.asked.append(len(queries))
        return [self._lacking(query, one) for query, one in zip(queries, self._index.search(queries), strict=True)]

    def _lacking(self, query: Query, answer: Answer) -> Answer:
        if isinstance(query.accuracy, Exact) or len(self.asked) % self._of:
            return answer
        return replace(answer, hits=tuple(hit for n, hit in enumerate(answer.hits) if n % self._every))


@pytest.fixture
def archive(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(80)
    return platform


def sing(platform: Platform, rounds: int, index: object = None) -> Canary | None:
    opened = platform.index if index is None else lambda _: index
    told = None
    for _ in range(rounds):
        told = canary.ask(platform.begin, opened, SOON)  # type: ignore[arg-type]
    return told


def findings(platform: Platform) -> list[Finding]:
    place = Site(
        begin=platform.begin, indexes=platform.indexes, models=platform.folder / "models",
        blobs=Blobs(platform.folder / "blobs"), inspector=platform.sandbox, rules=platform.rules,
        digest=lambda path: path.read_bytes(),
    )  # fmt: skip
    return examine(place)


def test_a_sound_index_is_told_as_one(archive: Platform) -> None:
    told = sing(archive, 6)
    assert told is not None
    assert told.recall == 1.0
    assert canary.ENOUGH <= told.queries <= 6 * canary.QUERIES
    assert findings(archive) == []
    with archive.store.reading() as connection:
        assert gauges.read(connection).recall == {("null", "10"): 1.0}


def test_a_damaged_index_makes_it_fall_and_the_doctor_say_so(archive: Platform) -> None:
    lame = Damaged(archive.index(archive.published().collection))
    told = sing(archive, 6, lame)
    assert told is not None
    assert 0.6 <= told.recall <= 0.7
    assert [(one.kind, one.ids, one.repaired) for one in findings(archive)] == [("recall-low", [1], False)]
    with archive.store.reading() as connection:
        assert gauges.read(connection).recall == {("null", "10"): told.recall}
    assert lame.asked == [2] * told.queries  # one exact search, one as usual


def test_few_queries_and_a_small_loss_are_no_alarm(archive: Platform) -> None:
    index = archive.index(archive.published().collection)
    few = sing(archive, 2, Damaged(index))
    assert few is not None
    assert few.recall < 0.7
    assert findings(archive) == []
    slight = sing(archive, canaries.ROUNDS, Damaged(index, every=40, of=2))
    assert slight is not None
    assert 0.92 <= slight.recall < 0.97
    assert findings(archive) == []


def test_only_the_last_rounds_count(archive: Platform) -> None:
    index = archive.index(archive.published().collection)
    sing(archive, canaries.ROUNDS, Damaged(index))
    mended = sing(archive, canaries.ROUNDS)
    assert mended is not None
    assert (mended.recall, mended.queries <= canaries.ROUNDS * canary.QUERIES) == (1.0, True)
    assert mended.since <= mended.at


def test_a_round_is_due_once_and_never_where_it_is_off(archive: Platform) -> None:
    for every_s, bells, rounds in ((0.0, 0, 0), (300.0, 1, 1)):
        archive.queue.rung.clear()
        with archive.begin() as db:
            sweep.ring_for_due(db, archive.effort, every_s)
        assert archive.queue.rung.count(Job.CANARY) == bells
        assert [canary.ask(archive.begin, archive.index, every_s) is not None for _ in range(2)] == [
            rounds == 1,
            False,
        ]
    archive.queue.rung.clear()
    with archive.begin() as db:
        sweep.ring_for_due(db, archive.effort, 300.0)
    assert Job.CANARY not in archive.queue.rung


def test_a_clock_that_is_set_back_does_not_silence_the_canary(archive: Platform) -> None:
    with archive.begin() as db:
        db.execute(sa.text("UPDATE generation SET canary_at = clock_timestamp() + interval '1 hour'"))
        assert canaries.due(db, 300)
    assert canary.ask(archive.begin, archive.index, 300) is not None
    assert canary.ask(archive.begin, archive.index, 300) is None


def test_an_index_that_is_being_optimised_is_left_alone(archive: Platform) -> None:
    class Busy(Damaged):
        def info(self) -> Info:
            return Info(points=80, indexed=20, optimizing=True)

    busy = Busy(archive.index(archive.published().collection))
    assert sing(archive, 3, busy) is None
    assert busy.asked == []


def test_an_empty_archive_and_one_without_a_model_are_silent(platform: Platform, tmp_path: Path) -> None:
    assert sing(platform, 1) is None
    platform.add_model()
    assert sing(platform, 1) is None
    assert findings(platform) == []


def test_nothing_of_what_was_asked_is_kept(archive: Platform) -> None:
    sing(archive, 2)
    with archive.store.reading() as connection:
        rounds = connection.execute(sa.text("SELECT canary FROM generation")).scalar_one()
    assert [sorted(one) for one in rounds] == [["at", "found", "queries", "wanted"]] * 2
