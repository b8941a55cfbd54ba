"""Two people publish, roll back or retire at once; and an image without any row in a build counts as missing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Conflict
from shared.pipeline import lifecycle, reindex
from shared.store import coverage, generations, operations
from shared.store.locks import Lock
from shared.store.tables import Generation
from tests.miniature import Platform, header


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(8)
    return platform


def built(platform: Platform) -> int:
    number = platform.begin_generation()
    platform.reindex()
    return number


def publish(platform: Platform, number: int) -> None:
    with platform.begin() as db:
        lifecycle.publish(db, number)


def rollback(platform: Platform, number: int) -> None:
    with platform.begin() as db:
        lifecycle.rollback(db, number)


@contextmanager
def meanwhile(platform: Platform, act: Callable[[Platform, int], None], number: int) -> Iterator[list[BaseException]]:
    """Run `act` until it waits for a lock that the body holds; yields what it raises, complete after the body."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act(platform, number)
        except Conflict as error:
            raised.append(error)

    other = threading.Thread(target=run)
    other.start()
    platform.wait_until_blocked(1)
    yield raised
    other.join(20)
    assert not other.is_alive()


def test_what_is_retired_while_it_waits_to_be_published_is_not_published(filled: Platform) -> None:
    number = built(filled)
    with filled.begin() as db:
        lifecycle.retire(db, number)
        with meanwhile(filled, publish, number) as raised:
            db.commit()
    assert len(raised) == 1
    assert "retired" in str(raised[0])
    assert filled.published().generation_id == 1


def test_a_rollback_that_waited_while_another_was_published_is_refused(filled: Platform) -> None:
    second, third = built(filled), built(filled)
    publish(filled, second)
    with filled.begin() as db:
        lifecycle.publish(db, third)
        with meanwhile(filled, rollback, second) as raised:
            db.commit()
    assert len(raised) == 1
    assert "not published" in str(raised[0])
    assert filled.published().generation_id == third


def test_a_build_that_is_resumed_while_it_is_retired_ends(filled: Platform) -> None:
    """The resume saw the generation open; otherwise its build would look for images every second for ever."""
    number = built(filled)
    with filled.begin() as db:
        operation_id = lifecycle._open(db, number).operation_id
        assert operation_id is not None
        with filled.begin() as other:
            lifecycle.retire(other, number)
        operations.retry(db, operation_id)
    filled.reindex()
    with filled.begin() as db:
        assert operations.get(db, operation_id).state == "cancelled"


def test_what_searches_ask_is_never_purged(filled: Platform) -> None:
    """Whatever its row says: the doctor can only reopen a collection that exists."""
    with filled.begin() as db:
        db.execute(sa.update(Generation).values(state="retired", retired_at=sa.func.now() - sa.text("interval '1 h'")))
    assert reindex.purge(filled.begin, filled.indexes) == 0
    assert filled.indexes.names() == [filled.published().collection]


def test_an_image_that_left_no_trace_in_a_build_is_missing_and_found_again(filled: Platform) -> None:
    filled.add_model("other", seed=3, dim=32)
    number = filled.begin_generation("other")
    filled.reindex()
    with filled.begin() as db:
        row = generations.get(db, number)
        db.execute(sa.text("DELETE FROM ledger WHERE generation_id = :g AND image_id = 1"), {"g": number})
        db.execute(sa.text("DELETE FROM encoding WHERE model_id = :m AND image_id = 1"), {"m": row.model_id})
        assert coverage.count(db, number, row.model_id).by_reason == {"covered": 7, "missing": 1}
    with pytest.raises(Conflict, match="covers 7 of 8 images"):
        publish(filled, number)
    with filled.begin() as db:
        lifecycle.resume(db, number)
    filled.reindex()
    publish(filled, number)
    assert filled.published().generation_id == number


def late_image(p: Platform, number: int) -> None:
    """An image that the live generation has; its row of this generation is still due."""
    p.put("late.dcm", header(8))
    p.scan()
    p.encode()
    with p.begin() as db:
        db.execute(
            sa.text("UPDATE ledger SET state = 'applied', applied_at = clock_timestamp() WHERE generation_id = 1")
        )


def refused_point(p: Platform, number: int) -> None:
    """The row does not record when it failed."""
    with p.begin() as db:
        statement = (
            "UPDATE ledger SET state = 'failed', last_error = 'refused' WHERE generation_id = :g AND image_id = 3"
        )
        db.execute(sa.text(statement), {"g": number})


@pytest.mark.parametrize(("write", "reason"), [(late_image, "to-index"), (refused_point, "refused")])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_is_written_between_the_first_look_and_the_lock_is_looked_at(
    filled: Platform,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Platform, int], None],
    reason: str,
    hidden: bool,
) -> None:
    """`hidden`: if it is unknown when others wrote, everything is checked again."""
    number = built(filled)
    lock = lifecycle.alone

    def late(db: Session, which: Lock) -> None:
        write(filled, number)
        lock(db, which)

    monkeypatch.setattr(lifecycle, "alone", late)
    if hidden:
        monkeypatch.setattr(coverage, "moment", lambda _db: None)
    with pytest.raises(Conflict, match=reason), filled.begin() as db:
        lifecycle.publish(db, number, patience_s=0)


def test_a_moment_is_before_whatever_is_under_way(filled: Platform) -> None:
    """The other transaction has written before, and commits after the moment is taken."""
    with filled.begin() as db, filled.begin() as other:
        other.execute(sa.text("UPDATE ledger SET applied_at = clock_timestamp() WHERE image_id = 1"))
        since = coverage.moment(db)
        written = other.execute(sa.text("SELECT max(applied_at) FROM ledger WHERE image_id = 1")).scalar_one()
        assert since is not None
        assert since <= written


def test_few_images_are_looked_at_again_and_accepted_gaps_stay_accepted(filled: Platform) -> None:
    number = built(filled)
    refused_point(filled, number)
    with filled.begin() as db:
        published = lifecycle.publish(db, number, ["3"])
        assert published.accepted == [3]
