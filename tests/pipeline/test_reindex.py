"""A generation of a known model: filled from stored encodings, measured, published, rolled back, retired."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Conflict, Unavailable
from shared.heartbeat import shown_by
from shared.index.base import Answer, Index, Query, Recall
from shared.index.memory import MemoryStore
from shared.pipeline import batch, lifecycle, project, reindex
from shared.pipeline.question import Request
from shared.pipeline.search import by_studies
from shared.store import coverage, generations, operations
from shared.store.tables import Generation
from shared.types import Job
from tests.contracts import engines
from tests.contracts.engines import HANGS_S
from tests.miniature import Platform, header


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(16)
    return platform


def shown(platform: Platform, number: int) -> Generation:
    with platform.begin() as db:
        return generations.get(db, number)


def operation(platform: Platform, number: int) -> operations.Operation:
    with platform.begin() as db:
        operation_id = generations.get(db, number).operation_id
        assert operation_id is not None
        return operations.get(db, operation_id)


def covered(platform: Platform, number: int) -> coverage.Coverage:
    with platform.begin() as db:
        return coverage.count(db, number, generations.get(db, number).model_id)


def publish(platform: Platform, number: int, accept: Sequence[str] = (), patience_s: float = 0.0) -> None:
    with platform.begin() as db:
        lifecycle.publish(db, number, accept, patience_s=patience_s)


def points(platform: Platform, number: int) -> dict[Any, int]:
    return {p: r for batch in platform.index(shown(platform, number).collection).scan() for p, r in batch}


def found(platform: Platform, study: str = "1.2.4.1", k: int = 3) -> list[str]:
    with platform.store.reading() as connection:
        ranking = by_studies(connection, platform.index, [study], Request(k=k))[0]
    return [one.study_uid for one in ranking.studies]


def test_a_known_model_is_built_without_touching_a_pixel(filled: Platform) -> None:
    filled.sandbox.decoded.clear()
    number = filled.begin_generation(m=8)
    assert Job.REINDEX in filled.queue.rung
    filled.reindex()
    assert filled.sandbox.decoded == []
    assert points(filled, number) == points(filled, 1)
    assert (operation(filled, number).state, operation(filled, number).done) == ("succeeded", 16)
    assert shown(filled, number).measured == {"recall": 1.0, "k": 10, "sample": 16, "points": 16}
    before = found(filled)
    publish(filled, number)
    assert filled.published().generation_id == number
    assert found(filled) == before


class Crash(BaseException):
    pass


class CrashingAt:
    """`begin`, where the process dies right before or right after the commit of the n-th transaction."""

    def __init__(self, platform: Platform, number: int, *, after: bool) -> None:
        self.platform, self.left, self.after = platform, number, after

    def __call__(self) -> AbstractContextManager[Session]:
        return self._begin()

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        self.left -= 1
        last = self.left == 0
        with self.platform.begin() as db:
            yield db
            if last and not self.after:
                raise Crash
        if last:
            raise Crash


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_any_two_steps_a_build_loses_and_doubles_nothing(filled: Platform, *, after: bool) -> None:
    for step in range(1, 12):  # claim, four chunks, report; claim, check again, report, sample, end
        number = filled.begin_generation()
        crashing = CrashingAt(filled, step, after=after)
        with pytest.raises(Crash):
            for _ in range(2):
                reindex.advance(crashing, filled.index, chunk=5)
                filled.project()
                rested(filled)
        with filled.begin() as db:  # the killed worker's lease expires
            db.execute(sa.text("UPDATE operation SET lease_until = clock_timestamp()"))
        filled.reindex(chunk=5)
        assert operation(filled, number).state == "succeeded"
        assert points(filled, number) == points(filled, 1)
        publish(filled, number)


def rested(platform: Platform) -> None:
    with platform.begin() as db:
        db.execute(sa.text("UPDATE operation SET not_before = NULL"))


def test_the_fill_of_a_stale_worker_changes_nothing(filled: Platform) -> None:
    number = filled.begin_generation()
    with filled.begin() as db:
        stale = operations.claim(db, "reindex", 0.0)
    with filled.begin() as db:
        assert operations.claim(db, "reindex", 30.0) is not None
        assert stale is not None
    assert reindex._build(filled.begin, filled.index, stale, 5, 5) is False
    assert shown(filled, number).filled_to == 0


def test_what_comes_while_it_is_built_goes_to_both(filled: Platform) -> None:
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index, chunk=4, budget_s=0)
    for n in range(16, 20):
        filled.put(f"{n:04}.dcm", header(n))
    filled.put("0001.dcm", header(1), b"other bytes")
    filled.scan()
    filled.encode()
    filled.reindex()
    assert len(points(filled, number)) == 20
    assert points(filled, number) == points(filled, 1)


def test_an_image_settled_while_a_generation_is_opened_is_not_missed(filled: Platform) -> None:
    """Opening a generation waits for transactions that do not see it yet, so that all later ones write to both."""

    filled.put("late.dcm", header(16))
    filled.scan()
    work = filled.intake.claim()
    result = batch.forward(batch.decode(filled.sandbox, work), filled.encoder)
    settling, opened, go = threading.Event(), threading.Event(), threading.Event()

    @contextmanager
    def slowly() -> Iterator[Session]:
        with filled.begin() as db:
            yield db
            settling.set()
            assert go.wait(10)

    def open_it() -> None:
        numbers.append(filled.begin_generation())
        opened.set()

    numbers: list[int] = []
    one = threading.Thread(target=lambda: replace(filled.intake, begin=slowly).settle(work, result))
    two = threading.Thread(target=open_it)
    one.start()
    assert settling.wait(10)
    two.start()
    assert not opened.wait(0.3)  # waits for the transaction
    go.set()
    one.join(10)
    two.join(10)
    filled.reindex()
    assert len(points(filled, numbers[0])) == 17


def test_what_is_withdrawn_while_a_fill_runs_does_not_come_back(filled: Platform) -> None:
    number = filled.begin_generation()
    with filled.begin() as db:
        db.execute(sa.text("SELECT 1"))
        reindex.fill(db, generations.get(db, number), 20)
        gone = threading.Thread(target=_delete, args=(filled, 1))
        gone.start()
        gone.join(0.3)
        assert gone.is_alive()  # the fill holds a lock on the image
    gone.join(10)
    filled.reindex()
    assert len(points(filled, number)) == 15


def _delete(platform: Platform, image: int) -> None:
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'deleted' WHERE id = :id"), {"id": image})
        from shared.store import ledger

        ledger.withdraw(db, [image])


def test_publishing_is_refused_before_it_is_filled(filled: Platform) -> None:
    number = filled.begin_generation()
    with pytest.raises(Conflict, match="not filled yet"):
        publish(filled, number)


def test_publishing_is_refused_before_recall_is_measured(filled: Platform) -> None:
    number = filled.begin_generation()
    with filled.begin() as db:
        reindex.fill(db, generations.get(db, number))
    filled.project()
    with pytest.raises(Conflict, match="not been measured"):
        publish(filled, number)


def test_publishing_is_refused_below_the_gate(filled: Platform) -> None:
    number = filled.begin_generation(gate=0.9)
    reindex.advance(filled.begin, filled.index)
    filled.project()
    filled.reindex()
    with filled.begin() as db:
        db.execute(
            sa.text("UPDATE generation SET measured = jsonb_set(measured, '{recall}', '0.89') WHERE id = :id"),
            {"id": number},
        )
    with pytest.raises(Conflict, match=r"recall@10 of generation 2 is 0\.8900 .* below its gate of 0\.9000"):
        publish(filled, number)


def test_publishing_is_refused_while_an_image_is_lacking_unless_it_is_named(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    with filled.begin() as db:
        db.execute(
            sa.text(
                "UPDATE ledger SET state = 'failed', last_error = 'refused' "
                "WHERE generation_id = :g AND image_id IN (3, 5)"
            ),
            {"g": number},
        )
        uid = db.execute(sa.text("SELECT sop_uid FROM image WHERE id = 5")).scalar_one()
    with pytest.raises(Conflict, match=r"covers 14 of 16 images, 2 are missing and not accepted: 3 \(refused\), 5"):
        publish(filled, number)
    with pytest.raises(Conflict, match=r"1 are missing and not accepted: 5 \(refused\)"):
        publish(filled, number, ["3"])
    publish(filled, number, ["3", uid])  # by id, and by SOP Instance UID
    assert filled.published().generation_id == number
    assert shown(filled, number).accepted == [3, 5]


def test_a_row_that_went_astray_is_a_gap_and_is_filled_again(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    with filled.begin() as db:
        db.execute(sa.text("DELETE FROM ledger WHERE generation_id = :g AND image_id = 3"), {"g": number})
    with pytest.raises(Conflict, match=r"3 \(missing\)"):
        publish(filled, number)
    with filled.begin() as db:
        lifecycle.resume(db, number)
    filled.reindex()
    publish(filled, number)


def test_what_the_live_one_has_no_row_for_is_waited_for_too(filled: Platform) -> None:
    with filled.begin() as db:
        db.execute(sa.text("DELETE FROM ledger"))
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    assert covered(filled, number).by_reason == {"to-index": 16}
    assert operation(filled, number).finished_at is None
    filled.reindex()
    assert shown(filled, number).measured == {"recall": 1.0, "k": 10, "sample": 16, "points": 16}


def test_what_a_killed_projector_has_written_is_not_shown_before_it_is_told_of(filled: Platform) -> None:
    """Otherwise the image would vanish again when a generation without it is published."""
    filled.put("late.dcm", header(16))
    filled.scan()
    filled.encode()
    with pytest.raises(Crash):
        project._step(CrashingAt(filled, 1, after=False), filled.index, filled.published())
    assert len(points(filled, 1)) == 17
    before = found(filled, k=20)
    filled.project()
    assert len(found(filled, k=20)) == len(before) + 1


def test_what_the_live_one_got_a_moment_earlier_is_waited_for(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    filled.put("late.dcm", header(16))
    filled.scan()
    filled.encode()
    with filled.begin() as db:
        db.execute(sa.text("UPDATE ledger SET not_before = clock_timestamp() + interval '1 hour'"))
        db.execute(sa.text("UPDATE ledger SET not_before = NULL WHERE generation_id = 1"))
    filled.project()
    with pytest.raises(Conflict, match=r"17 \(to-index\)"):
        publish(filled, number)
    timer = threading.Timer(0.3, lambda: _catch_up(filled))
    timer.start()
    publish(filled, number, patience_s=10)
    timer.join()
    assert len(points(filled, number)) == 17


def test_publishing_waits_for_who_is_applying(filled: Platform) -> None:
    """Otherwise the live generation could get an image between the check and the switch."""
    number = filled.begin_generation()
    filled.reindex()
    filled.put("late.dcm", header(16))
    filled.scan()
    filled.encode()
    writing, go = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, inner: Index) -> None:
            self.inner, self.spec = inner, inner.spec

        def write(self, points: Sequence[Any]) -> None:
            writing.set()
            assert go.wait(10)
            self.inner.write(points)

    live = filled.published()
    applying = threading.Thread(
        target=lambda: project._step(filled.begin, lambda name: Slow(filled.index(name)), live)  # type: ignore[arg-type,return-value]
    )
    applying.start()
    assert writing.wait(10)
    threading.Timer(0.3, go.set).start()
    with pytest.raises(Conflict, match=r"17 \(to-index\)"):
        publish(filled, number)
    applying.join(10)


def _catch_up(platform: Platform) -> None:
    with platform.begin() as db:
        db.execute(sa.text("UPDATE ledger SET not_before = NULL"))
    platform.project()


class Forgetful:
    """An index whose approximate answers lack every second hit."""

    def __init__(self, inner: Index) -> None:
        self.inner, self.spec, self.count, self.optimize = inner, inner.spec, inner.count, inner.optimize

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        answers = self.inner.search(queries)
        return [
            Answer(hits=a.hits[::2], exact=False) if isinstance(q.accuracy, Recall) else a
            for q, a in zip(queries, answers, strict=True)
        ]


def test_recall_is_measured_against_exact_search_without_the_querys_patient(filled: Platform) -> None:
    filled.take_in(40)
    with filled.begin() as db:
        rows = reindex.ledger.sample(db, 1, 1, 20, 0)
        assert rows == reindex.ledger.sample(db, 1, 1, 20, 0)
    index = filled.index("g1-m1")
    assert reindex.recall(index, rows)["recall"] == 1.0
    assert reindex.recall(Forgetful(index), rows)["recall"] < 0.9  # type: ignore[arg-type]
    assert reindex.recall(index, [])["recall"] == 1.0


def test_equal_scores_are_equally_right(platform: Platform) -> None:
    from shared.index.base import Hit

    a, b = (Hit(np.random.default_rng(n).bytes(16), 0.5, {}) for n in (1, 2))  # type: ignore[arg-type]

    class Tied:
        def search(self, queries: Sequence[Query]) -> list[Answer]:
            return [Answer(hits=(a,), exact=True), Answer(hits=(b,), exact=False)]

        def count(self) -> int:
            return 2

    row = reindex.ledger.Sampled(np.ones(4, "<f2").tobytes(), b"k" * 16)
    assert reindex.recall(Tied(), [row])["recall"] == 1.0  # type: ignore[arg-type]


def test_a_rollback_returns_to_what_was_published_before_and_back(filled: Platform) -> None:
    with pytest.raises(Conflict, match="no generation to roll back to"), filled.begin() as db:
        lifecycle.rollback(db, 1)
    number = filled.begin_generation()
    filled.reindex()
    publish(filled, number)
    filled.put("late.dcm", header(16))
    filled.scan()
    filled.encode()
    filled.project()
    with pytest.raises(Conflict, match="not published"), filled.begin() as db:
        lifecycle.rollback(db, 1)
    for left, expected in ((number, 1), (1, number)):
        with filled.begin() as db:
            lifecycle.rollback(db, left)
        assert filled.published().generation_id == expected
        assert len(points(filled, expected)) == 17


def test_a_rollback_to_what_lacks_something_is_refused(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    publish(filled, number)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE ledger SET state = 'failed', last_error = 'refused' WHERE generation_id = 1"))
    with pytest.raises(Conflict, match="covers 0 of 16 images"), filled.begin() as db:
        lifecycle.rollback(db, number)
    assert filled.published().generation_id == number


def test_the_live_one_and_the_only_way_back_are_not_retired(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    publish(filled, number)
    for one, said in ((number, "published"), (1, "rollback")):
        with pytest.raises(Conflict, match=said), filled.begin() as db:
            lifecycle.retire(db, one)
    with filled.begin() as db:
        lifecycle.retire(db, 1, force=True)
    with pytest.raises(Conflict, match="no generation to roll back to"), filled.begin() as db:
        lifecycle.rollback(db, number)


def test_a_retired_generation_is_purged_after_its_grace(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()
    with filled.begin() as db:
        lifecycle.retire(db, number)
        lifecycle.retire(db, number)
    assert reindex.purge(filled.begin, filled.indexes, grace_s=60) == 0
    assert filled.indexes.names() == ["g1-m1", "g2-m1"]
    for crash in (2, 3, 4):  # killed before the collection is dropped, and while rows are deleted
        with pytest.raises(Crash):
            reindex.purge(CrashingAt(filled, crash, after=True), filled.indexes, grace_s=0, chunk=5)
    assert reindex.purge(filled.begin, filled.indexes, grace_s=0) == 1
    assert reindex.purge(filled.begin, filled.indexes, grace_s=0) == 0
    assert filled.indexes.names() == ["g1-m1"]
    with filled.begin() as db:
        assert db.execute(sa.text("SELECT count(*) FROM ledger WHERE generation_id = 2")).scalar_one() == 0
        assert db.execute(sa.text("SELECT count(*) FROM ledger WHERE generation_id = 1")).scalar_one() == 16


def test_a_query_keeps_its_generation_for_its_whole_life(filled: Platform) -> None:
    number = filled.begin_generation()
    filled.reindex()

    def switching(collection: str) -> Index:
        publish(filled, number)
        with filled.begin() as db:
            lifecycle.retire(db, 1, force=True)
        reindex.purge(filled.begin, filled.indexes)
        return filled.index(collection)

    with filled.store.reading() as connection:
        ranking = by_studies(connection, switching, ["1.2.4.1"], Request(k=3))[0]
        assert (ranking.published.generation_id, len(ranking.studies)) == (1, 2)
        with pytest.raises(Conflict, match="stale"):
            walked = by_studies(connection, filled.index, ["1.2.4.1"], Request(k=1))[0]
            with filled.begin() as db:
                generations.publish(db, filled.begin_generation())
            by_studies(connection, filled.index, ["1.2.4.1"], Request(k=1, cursor=walked.next))


def test_a_paused_build_stands_still_and_goes_on_where_it_was(filled: Platform) -> None:
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index, chunk=4, budget_s=0)
    with filled.begin() as db:
        lifecycle.pause(db, number)
    filled.reindex()
    assert (shown(filled, number).filled_to, operation(filled, number).state) == (4, "paused")
    with filled.begin() as db:
        lifecycle.resume(db, number)
    filled.reindex(chunk=4)
    assert operation(filled, number).state == "succeeded"
    assert len(points(filled, number)) == 16


def test_a_resumed_build_shows_what_was_done_before_the_pause(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "CALM", 0)
    number = filled.begin_generation()
    for _ in range(2):
        reindex.advance(filled.begin, filled.index, chunk=4, budget_s=0)
        filled.project()
    with filled.begin() as db:
        lifecycle.pause(db, number)
        lifecycle.resume(db, number)
    row = operation(filled, number)
    assert (row.state, row.done, row.counts) == ("pending", 4, {"covered": 4, "to-index": 4, "missing": 8})


def test_a_worker_that_is_at_it_stops_when_it_is_paused(filled: Platform) -> None:
    number = filled.begin_generation()
    seen: list[int] = []

    def pause() -> None:
        seen.append(shown(filled, number).filled_to)
        if len(seen) == 2:
            with filled.begin() as db:
                lifecycle.pause(db, number)

    with shown_by(pause):
        reindex.advance(filled.begin, filled.index, chunk=4)
    assert seen == [0, 4]
    assert shown(filled, number).filled_to == 4


@pytest.mark.parametrize("act", [lifecycle.pause, lifecycle.retire])
def test_who_acts_on_a_build_while_it_ends_waits_for_its_end(
    filled: Platform, act: Callable[[Session, int], object]
) -> None:
    number, failed = filled.begin_generation(), []
    with filled.begin() as db:
        held = operations.claim(db, "reindex", 30)
    assert held is not None

    def late() -> None:
        try:
            with filled.begin() as db:
                act(db, number)
        except Conflict as error:
            failed.append(str(error))

    acting = threading.Thread(target=late)
    with filled.begin() as db:
        assert operations.mine(db, held)
        operations.end(db, held, "succeeded")
        acting.start()
        acting.join(0.3)
        assert acting.is_alive()
    acting.join(10)
    assert operation(filled, number).state == "succeeded"
    assert failed == (["the operation has ended: succeeded"] if act is lifecycle.pause else [])


def test_a_cancelled_build_is_given_up(filled: Platform) -> None:
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index, chunk=4, budget_s=0)
    with filled.begin() as db:
        lifecycle.cancel(db, number)
    filled.reindex()
    assert (shown(filled, number).state, operation(filled, number).state) == ("retired", "cancelled")
    reindex.purge(filled.begin, filled.indexes, grace_s=0)
    assert filled.indexes.names() == ["g1-m1"]
    for act in (lifecycle.pause, lifecycle.resume):
        with pytest.raises(Conflict, match="retired"), filled.begin() as db:
            act(db, number)
    with pytest.raises(Conflict, match="published"), filled.begin() as db:
        lifecycle.cancel(db, 1)


def test_what_is_built_may_have_been_published_and_is_retired_rather_than_cancelled(filled: Platform) -> None:
    first, second = (filled.begin_generation() for _ in range(2))
    filled.reindex()
    for number in (first, second):
        with filled.begin() as db:
            lifecycle.publish(db, number)
    for number in (1, first, second):  # published once; the rollback target; published
        with pytest.raises(Conflict, match="retire"), filled.begin() as db:
            lifecycle.cancel(db, number)
        assert shown(filled, number).state == "open"
    with filled.begin() as db:
        assert lifecycle.retire(db, 1).state == "retired"


def test_the_throttle_holds_for_all_who_work_at_once(filled: Platform) -> None:
    number = filled.begin_generation(throttle=2.0)
    with filled.begin() as db:
        one = generations.get(db, number)
        assert [generations.allow(db, one, 100) for _ in range(2)] == [10, 0]  # five seconds' worth, then none
        db.execute(sa.text("UPDATE generation SET paced_from = clock_timestamp() - interval '2 s'"))
        assert generations.allow(db, one, 3) == 3
        assert generations.allow(db, one, 3) == 1
    with filled.begin() as db:
        db.execute(sa.text("UPDATE generation SET paced_from = clock_timestamp() - interval '2 s' WHERE id = 2"))
    reindex.advance(filled.begin, filled.index)
    assert shown(filled, number).filled_to == 4


def test_a_slowed_build_goes_on_after_the_clock_was_set_back(filled: Platform) -> None:
    number = filled.begin_generation(throttle=2.0)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE generation SET paced_from = clock_timestamp() + interval '1 h' WHERE id = 2"))
    reindex.advance(filled.begin, filled.index)
    assert operation(filled, number).state == "running"
    with filled.begin() as db:
        db.execute(sa.text("UPDATE generation SET paced_from = paced_from - interval '2 s' WHERE id = 2"))
        assert generations.allow(db, generations.get(db, number), 100) == 4, "the allowance counts from now on"


def rest_s(platform: Platform, number: int) -> float:
    """Seconds until its next turn is due."""
    row = operation(platform, number)
    assert row.not_before is not None
    return (row.not_before - datetime.now().astimezone()).total_seconds()


def hours_of(now: datetime, begin: int, end: int) -> str:
    return "-".join(f"{now + timedelta(hours=hour):%H:%M}" for hour in (begin, end))


def test_a_build_is_slowed_and_sped_up_while_it_runs_and_keeps_to_its_hours(filled: Platform) -> None:
    now = datetime.now().astimezone()
    number = filled.begin_generation(throttle=2.0, hours=hours_of(now, 2, 4))

    def step() -> int:
        rested(filled)
        reindex.advance(filled.begin, filled.index, budget_s=0)
        return shown(filled, number).filled_to

    assert step() == 0  # outside its hours
    with filled.begin() as db:
        lifecycle.throttle(db, number, {"hours": hours_of(now, -2, 2)})
    assert step() == 10  # five seconds' worth
    assert step() < 16
    filled.queue.rung.clear()
    with filled.begin() as db:
        lifecycle.throttle(db, number, {"throttle": None})
    assert Job.REINDEX in filled.queue.rung
    assert (shown(filled, number).hours, shown(filled, number).throttle) == (hours_of(now, -2, 2), None)
    assert step() == 16
    with filled.begin() as db:
        lifecycle.cancel(db, number)
    with pytest.raises(Conflict, match="retired"), filled.begin() as db:
        lifecycle.throttle(db, number, {"throttle": 1})


def test_outside_its_hours_nothing_is_counted(filled: Platform) -> None:
    number = filled.begin_generation(hours=hours_of(datetime.now().astimezone(), 2, 4))
    reindex.advance(filled.begin, filled.index)
    assert (operation(filled, number).state, operation(filled, number).total) == ("running", None)
    assert 1 < rest_s(filled, number) <= reindex.LOOK_S


def test_what_a_slowed_build_lacks_is_counted_again_only_after_many_times_what_a_count_takes(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = filled.begin_generation(throttle=0.5)  # two images in five seconds, the longest that allowance accumulates

    def step(calm: float) -> tuple[int, dict[str, int]]:
        rested(filled)
        with filled.begin() as db:
            db.execute(sa.text("UPDATE generation SET paced_from = NULL WHERE id = 2"))
        monkeypatch.setattr(reindex, "CALM", calm)
        reindex.advance(filled.begin, filled.index)
        assert rest_s(filled, number) <= reindex.REST_S
        return shown(filled, number).filled_to, operation(filled, number).counts

    assert step(0) == (2, {"to-index": 2, "missing": 14})
    assert step(10**5) == (4, {"to-index": 4, "missing": 12})
    assert step(10**5) == (6, {"to-index": 4, "missing": 12})
    with filled.begin() as db:  # as if that had been before the clock was set back
        db.execute(sa.text("UPDATE generation SET count_at = count_at + interval '1 year' WHERE id = 2"))
    assert step(10**5) == (8, {"to-index": 8, "missing": 8})


def test_a_build_that_waits_for_what_is_coming_rests_many_times_what_a_count_takes(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "CALM", 10**6)
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    assert operation(filled, number).counts == {"to-index": 16}
    assert rest_s(filled, number) > 100 * reindex.REST_S


def test_an_engine_that_is_away_while_it_is_measured_costs_a_wait(filled: Platform) -> None:
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    filled.project()

    def away(_: str) -> Index:
        raise Unavailable("the engine is away")

    rested(filled)
    reindex.advance(filled.begin, away)
    assert (operation(filled, number).state, operation(filled, number).error) == ("running", "the engine is away")
    filled.reindex()
    assert operation(filled, number).state == "succeeded"


def test_a_build_whose_engine_fails_at_the_end_rests_many_times_what_a_count_takes(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further try counts the whole archive again."""

    class Red:
        """An index that cannot be linked."""

        def __init__(self, inner: Index) -> None:
            self.info = inner.info

        def optimize(self, _: Callable[[], bool]) -> NoReturn:
            raise Unavailable("the engine could not build its index")

    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    filled.project()
    rested(filled)
    monkeypatch.setattr(reindex, "CALM", 10**6)
    reindex.advance(filled.begin, lambda name: cast("Index", Red(filled.index(name))))
    row = operation(filled, number)
    assert (row.state, row.error) == ("running", "the engine could not build its index")
    assert rest_s(filled, number) > 100 * reindex.AWAY_S
    filled.reindex()
    assert operation(filled, number).state == "succeeded"


def test_while_the_engine_is_away_what_a_build_lacks_is_not_counted(filled: Platform) -> None:
    """Of ten million images a count takes half a minute, and an engine may be away for hours."""

    class Away:
        """An index that was open before its engine went away."""

        def __getattr__(self, _: str) -> NoReturn:
            raise Unavailable("the engine is away")

    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    filled.project()
    before = operation(filled, number).counts
    rested(filled)
    reindex.advance(filled.begin, lambda _: cast("Index", Away()))
    assert (operation(filled, number).error, operation(filled, number).counts) == ("the engine is away", before)
    assert rest_s(filled, number) <= reindex.AWAY_S
    filled.reindex()
    assert operation(filled, number).counts == {"covered": 16}


@pytest.mark.parametrize("stop", [lifecycle.pause, lifecycle.cancel, lifecycle.retire])
def test_a_build_that_is_stopped_frees_its_worker_while_the_engine_still_links(
    platform: Platform, tmp_path: Path, stop: Callable[[Session, int], object]
) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        platform.indexes = cast("MemoryStore", store)
        platform.add_model()
        platform.take_in(16)
        number = platform.begin_generation()
        reindex.advance(platform.begin, platform.index)
        platform.project()
        config = running.data / shown(platform, number).collection / "collection.json"
        kept = config.rename(tmp_path / "kept.json")
        os.mkfifo(config)  # which the engine's child reads before it links: it waits there until it is written
        rested(platform)
        index = platform.index(shown(platform, number).collection)
        building = threading.Thread(target=reindex.advance, args=(platform.begin, platform.index))
        building.start()
        try:
            until(lambda: index.info().optimizing)
            with platform.begin() as db:
                stop(db, number)
            building.join(20)
            assert not building.is_alive()
            assert index.info().optimizing
        finally:
            with config.open("w", encoding="utf-8") as pipe:
                pipe.write(kept.read_text(encoding="utf-8"))
            building.join(HANGS_S)
        assert shown(platform, number).measured is None
        until(lambda: index.info().indexed == 16)  # by itself


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS_S
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_while_the_database_is_away_a_build_waits_on_for_the_engine(filled: Platform) -> None:
    number = filled.begin_generation()
    reindex.advance(filled.begin, filled.index)
    filled.project()
    rested(filled)
    away = False

    @contextmanager
    def begin() -> Iterator[Session]:
        if away:
            raise Unavailable("the database is away")
        with filled.begin() as db:
            yield db

    class Linking:
        """An index that links while the database is away."""

        def __init__(self, inner: Index) -> None:
            self.info, self.search, self.count = inner.info, inner.search, inner.count

        def optimize(self, goes_on: Callable[[], bool]) -> bool:
            nonlocal away
            away = True
            waited = goes_on()
            away = False
            return waited and goes_on()

    reindex.advance(begin, lambda name: cast("Index", Linking(filled.index(name))))
    assert (operation(filled, number).state, operation(filled, number).error) == ("succeeded", None)
