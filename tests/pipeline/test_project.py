import threading
import uuid
from collections.abc import Sequence
from datetime import date

import pytest
import sqlalchemy as sa

from shared.errors import Invalid, Unavailable
from shared.index.base import Damaged, Index, Point
from shared.pipeline import project, reindex, sweep
from shared.store import generations, ledger, studies
from shared.types import Job
from tests.miniature import Platform, header


def coverage(platform: Platform) -> ledger.PointCounts:
    with platform.store.reading() as connection:
        live = generations.published(connection)
        assert live is not None
        return ledger.point_counts(connection, live.generation_id)


@pytest.fixture
def encoded(platform: Platform) -> Platform:
    platform.add_model()
    for n in range(8):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    platform.encode()
    return platform


def test_the_index_holds_what_the_ledger_says(encoded: Platform) -> None:
    assert encoded.project() == 8
    found = coverage(encoded)
    assert (found.applied, found.pending, found.ratio) == (8, 0, 1.0)
    with encoded.begin() as db:
        live = generations.published(db)
        assert live is not None
        held = dict(ledger.held(db, live.generation_id, uuid.UUID(int=0), 100))
    assert {p: r for batch in encoded.index(live.collection).scan() for p, r in batch} == held


class Away:
    """An index that is unavailable."""

    def __init__(self, inner: Index) -> None:
        self.inner, self.spec = inner, inner.spec

    def write(self, points: Sequence[Point]) -> None:
        raise Unavailable("the index is away")


def test_an_index_that_is_away_loses_nothing(encoded: Platform) -> None:
    with pytest.raises(Unavailable):
        project.drain(encoded.begin, lambda name: Away(encoded.index(name)))  # type: ignore[arg-type,return-value]
    assert coverage(encoded).pending == 8
    encoded.project()
    assert coverage(encoded).pending == 0


class Picky:
    """An index that refuses one point."""

    def __init__(self, inner: Index) -> None:
        self.inner, self.spec = inner, inner.spec

    def write(self, points: Sequence[Point]) -> None:
        if any(point.payload["image"] == 3 for point in points):
            raise Invalid("not this one")
        self.inner.write(points)


def test_a_point_that_is_refused_does_not_hold_up_the_rest(encoded: Platform) -> None:
    with encoded.begin() as db:
        db.execute(sa.text("UPDATE ledger SET attempt = 2"))
    project.drain(encoded.begin, lambda name: Picky(encoded.index(name)))  # type: ignore[arg-type,return-value]
    found = coverage(encoded)
    assert (found.applied, found.failed) == (7, 1)


def test_a_point_that_rests_is_due_at_once_when_its_image_is_said_to_be_of_another_day(encoded: Platform) -> None:
    with encoded.begin() as db:
        db.execute(sa.text("UPDATE ledger SET attempt = 2, not_before = clock_timestamp() + interval '1 hour'"))
        studies.redate(db, "1.2.4.1", date(2024, 5, 1))
        live = generations.published(db)
        assert live is not None
        assert {row.image_id for row in ledger.take(db, live.generation_id, live.model_id, 8)} == {1, 2, 3, 4}


def test_a_collection_that_cannot_be_loaded_holds_up_no_other(encoded: Platform) -> None:
    live = encoded.published()
    number = encoded.begin_generation()
    reindex.advance(encoded.begin, encoded.index)

    def opened(name: str) -> Index:
        if name == live.collection:
            raise Damaged("a torn shard")
        return encoded.index(name)

    project.drain(encoded.begin, opened)
    with encoded.begin() as db:
        assert ledger.point_counts(db, number) == ledger.PointCounts(applied=8, pending=0, failed=0)
    assert coverage(encoded).pending == 8


@pytest.mark.parametrize("live_is_away", [True, False])
def test_a_collection_that_does_not_answer_is_waited_for_once_and_holds_up_no_other(
    encoded: Platform, monkeypatch: pytest.MonkeyPatch, live_is_away: bool
) -> None:
    monkeypatch.setattr(project, "STEP", 3)  # several steps
    live, building = encoded.published().generation_id, encoded.begin_generation()
    reindex.advance(encoded.begin, encoded.index)
    silent, other = (live, building) if live_is_away else (building, live)
    asked = []

    def opened(name: str) -> Index:
        if name == generations.collection_of(silent, 1):
            asked.append(name)
            raise Unavailable("the index does not answer")
        return encoded.index(name)

    with pytest.raises(Unavailable, match="does not answer"):
        project.drain(encoded.begin, opened, gather_s=0)
    assert len(asked) == 1
    with encoded.begin() as db:
        assert ledger.point_counts(db, other) == ledger.PointCounts(applied=8, pending=0, failed=0)
        assert ledger.point_counts(db, silent) == ledger.PointCounts(applied=0, pending=8, failed=0)
    encoded.project()
    with encoded.begin() as db:
        assert ledger.point_counts(db, silent).pending == 0


def test_two_projectors_share_the_work(encoded: Platform) -> None:
    with encoded.begin() as first, encoded.begin() as second:
        live = generations.published(first)
        assert live is not None
        one = ledger.take(first, live.generation_id, live.model_id, 5)
        two = ledger.take(second, live.generation_id, live.model_id, 5)
    assert len(one) == 5
    assert len(two) == 3
    assert not {r.point_id for r in one} & {r.point_id for r in two}


def test_a_projector_that_dies_leaves_its_rows_pending(encoded: Platform) -> None:
    with pytest.raises(KeyboardInterrupt), encoded.begin() as db:
        live = generations.published(db)
        assert live is not None
        rows = ledger.take(db, live.generation_id, live.model_id, 5)
        ledger.applied(db, live.generation_id, [r.point_id for r in rows])
        raise KeyboardInterrupt
    assert coverage(encoded).pending == 8


def test_no_uid_and_no_name_travels_with_a_vector(encoded: Platform) -> None:
    encoded.project()
    with encoded.begin() as db:
        live = generations.published(db)
        assert live is not None
    ids = [point for batch in encoded.index(live.collection).scan() for point, _ in batch]
    for point in encoded.index(live.collection).get(ids):
        assert not any("1.2." in str(value) or "WOMAN" in str(value) for value in point.payload.values())


def test_an_operation_ends_when_all_it_registered_is_searchable(platform: Platform) -> None:
    platform.add_model()
    with platform.begin() as db:
        operation = project.operations.create(db, "scan", {"path": "x"})
        held = project.operations.claim(db, "scan", 30)
        assert held is not None
    platform.put("a.dcm", header(0))
    project_scan(platform, operation.id)
    with platform.begin() as db:
        project.operations.all_registered(db, held)
    for step, state in ((None, "running"), (platform.encode, "running"), (platform.project, "succeeded")):
        if step is not None:
            step()
        with platform.begin() as db:
            project.operations.finish_settled(db)
            assert project.operations.get(db, operation.id).state == state


def test_an_operation_ends_while_a_generation_that_is_built_does_not_answer(encoded: Platform) -> None:
    with encoded.begin() as db:
        operation = project.operations.create(db, "scan", {"path": "x"})
        held = project.operations.claim(db, "scan", 30)
        assert held is not None
        project.operations.all_registered(db, held)
    building = generations.collection_of(encoded.begin_generation(), 1)
    reindex.advance(encoded.begin, encoded.index)

    with pytest.raises(Unavailable):
        project.drain(encoded.begin, encoded.all_but(building), gather_s=0)
    with encoded.begin() as db:
        assert project.operations.get(db, operation.id).state == "succeeded"


def project_scan(platform: Platform, operation_id: object) -> None:
    from shared.pipeline import scan

    scan.scan(
        platform.begin,
        platform.sandbox,
        platform.folder / "archive",
        table=None,
        rules=platform.rules,
        operation_id=operation_id,  # type: ignore[arg-type]
        report=lambda _db, _progress: True,
    )


def test_a_later_write_waits_for_the_projector_and_stays_pending(encoded: Platform) -> None:
    done = threading.Event()

    def post() -> None:
        with encoded.begin() as db:
            ledger.withdraw(db, [1])
        done.set()

    with encoded.begin() as db:
        live = generations.published(db)
        assert live is not None
        rows = ledger.take(db, live.generation_id, live.model_id, 8)
        other = threading.Thread(target=post)
        other.start()
        assert not done.wait(0.3)
        ledger.applied(db, live.generation_id, [r.point_id for r in rows])
    other.join(10)
    assert coverage(encoded).pending == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET not_before = clock_timestamp() + interval '1 hour'",
        "UPDATE generation SET state = 'retired', retired_at = clock_timestamp()",
    ],
    ids=["it rests", "its generation is retired"],
)
def test_nobody_is_rung_for_what_no_projector_would_take(encoded: Platform, change: str) -> None:
    assert rung_by_a_sweep(encoded)
    with encoded.begin() as db:
        db.execute(sa.text(change))
    assert not rung_by_a_sweep(encoded)


def rung_by_a_sweep(platform: Platform) -> bool:
    platform.queue.rung.clear()
    with platform.begin() as db:
        sweep.ring_for_due(db, platform.effort)
    return Job.PROJECT in platform.queue.rung
