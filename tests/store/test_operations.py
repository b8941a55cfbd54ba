"""Operations take turns, and one that loses worker after worker is given up."""

import uuid

from shared.errors import Unavailable
from shared.pipeline import sweep
from shared.pipeline.lease import turn
from shared.store import operations
from shared.store.operations import MOST_LOSSES, Held
from shared.store.tables import Operation
from tests.miniature import Platform


def made(platform: Platform, kind: str = "scan") -> uuid.UUID:
    with platform.begin() as db:
        return operations.create(db, kind, {}).id


def claimed(platform: Platform, lease_s: float = 30.0) -> Held | None:
    """Claim an operation; with a lease of 0 s its worker counts as lost at once."""
    with platform.begin() as db:
        return operations.claim(db, "scan", lease_s)


def lost(platform: Platform, times: int) -> Held:
    held = None
    for _ in range(times):
        held = claimed(platform, 0.0)
        assert held is not None
    assert held is not None
    return held


def swept(platform: Platform, number: uuid.UUID) -> Operation:
    with platform.begin() as db:
        sweep.ring_for_due(db, platform.effort)
    with platform.begin() as db:
        return operations.get(db, number)


def told(platform: Platform, held: Held, cursor: int, **counts: int) -> None:
    with platform.begin() as db:
        operations.progress(db, held, done=1, total=9, counts=counts, cursor={"image": cursor})


def test_whoever_had_a_turn_is_behind_those_who_wait(platform: Platform) -> None:
    first, second, third = (made(platform) for _ in range(3))
    seen = []
    for _ in range(6):
        held = claimed(platform)
        assert held is not None
        seen.append(held.id)
        with platform.begin() as db:
            operations.rest(db, held, 0)
    assert seen == [first, second, third] * 2


def test_an_operation_that_costs_every_worker_is_given_up_with_its_reason_and_may_be_tried_again(
    platform: Platform,
) -> None:
    number = made(platform)
    lost(platform, MOST_LOSSES - 1)
    assert swept(platform, number).state == "running"
    lost(platform, 1)
    assert claimed(platform) is None
    ended = swept(platform, number)
    assert (ended.state, ended.error, ended.lease_until) == ("failed", operations.GIVEN_UP, None)
    assert ended.finished_at is not None
    with platform.begin() as db:
        operations.retry(db, number)
    lost(platform, MOST_LOSSES - 1)
    assert claimed(platform) is not None


def test_one_whose_worker_is_at_it_is_not_given_up(platform: Platform) -> None:
    number = made(platform)
    lost(platform, MOST_LOSSES - 1)
    assert claimed(platform) is not None
    assert swept(platform, number).state == "running"


def test_one_that_gets_on_has_all_its_attempts_again(platform: Platform) -> None:
    number = made(platform)
    for step in range(4):
        told(platform, lost(platform, 2), step)
    assert swept(platform, number).state == "running"


def test_counts_that_others_raise_are_no_step_of_its_own(platform: Platform) -> None:
    number = made(platform)
    for n in range(MOST_LOSSES):
        told(platform, lost(platform, 1), 7, covered=n)
    assert swept(platform, number).state == "failed"


def test_nobody_claims_one_whose_files_are_all_registered_until_it_is_tried_again(platform: Platform) -> None:
    number = made(platform)
    with platform.begin() as db:
        held = operations.claim(db, "scan", 0.0)
        assert held is not None
        operations.progress(db, held, done=9, total=9, counts={"taken": 9}, cursor={"path": "2f"})
        operations.all_registered(db, held)
    assert claimed(platform) is None
    with platform.begin() as db:
        row = operations.get(db, number)
        assert (row.counts, row.cursor, row.registered_at is not None) == ({"taken": 9}, {"path": "2f"}, True)
        operations.finish_settled(db)
    assert swept(platform, number).state == "succeeded"
    with platform.begin() as db:
        operations.retry(db, number)
    assert claimed(platform) is not None
    with platform.begin() as db:
        row = operations.get(db, number)
        assert (row.counts, row.cursor, row.registered_at) == ({}, None, None)


def test_a_retry_has_done_nothing_yet(platform: Platform) -> None:
    number = made(platform)
    told(platform, lost(platform, 1), 7)
    with platform.begin() as db:
        operations.abandon(db, number)
        again = operations.retry(db, number)
    assert (again.done, again.total) == (0, 9)


def test_one_that_was_given_up_keeps_no_cursor(platform: Platform) -> None:
    number = made(platform)
    told(platform, lost(platform, 1), 7)
    lost(platform, MOST_LOSSES - 1)  # the one that told is lost, too
    assert swept(platform, number).cursor is None


def test_one_that_was_abandoned_keeps_no_cursor(platform: Platform) -> None:
    number = made(platform)
    told(platform, lost(platform, 1), 7)
    with platform.begin() as db:
        operations.abandon(db, number)
    assert swept(platform, number).cursor is None


def test_a_turn_that_ends_in_order_is_no_loss(platform: Platform) -> None:
    number = made(platform)
    for _ in range(3 * MOST_LOSSES):
        held = claimed(platform)
        assert held is not None
        with platform.begin() as db:
            operations.rest(db, held, 0)
    assert swept(platform, number).losses == 0


def test_losses_between_which_a_turn_ended_in_order_are_not_in_a_row(platform: Platform) -> None:
    number = made(platform)
    for _ in range(MOST_LOSSES):
        lost(platform, 1)
        held = claimed(platform)
        assert held is not None
        with platform.begin() as db:
            operations.rest(db, held, 0)
    assert swept(platform, number).state == "running"
    lost(platform, MOST_LOSSES)
    assert swept(platform, number).state == "failed"


def test_one_that_was_to_be_cancelled_is(platform: Platform) -> None:
    number = made(platform)
    lost(platform, MOST_LOSSES)
    with platform.begin() as db:
        operations.cancel(db, number)
    assert swept(platform, number).state == "cancelled"


def test_a_cancel_that_comes_during_a_turn_ends_it_whichever_way_the_turn_ends(platform: Platform) -> None:
    number = made(platform)
    with turn(platform.begin, "scan", away_s=0.0) as held:
        assert held is not None
        with platform.begin() as db:
            assert operations.cancel(db, number).state == "running"  # a worker is running it
        raise Unavailable("the archive does not answer")
    assert claimed(platform) is None
    ended = swept(platform, number)
    assert (ended.state, ended.lease_until, ended.finished_at is not None) == ("cancelled", None, True)


def test_a_turn_holds_one_operation_of_its_kind_or_none(platform: Platform) -> None:
    number = made(platform)
    with turn(platform.begin, "replay", away_s=0.0) as held:
        assert held is None
    with turn(platform.begin, "scan", away_s=0.0) as held:
        assert held is not None
        assert held.id == number
        with turn(platform.begin, "scan", away_s=0.0) as beside:
            assert beside is None


def test_an_error_is_a_watchs_rest_and_any_others_end(platform: Platform) -> None:
    with platform.begin() as db:
        watch = operations.create(db, "scan", {"watch": True}).id
    once = made(platform)
    for _ in range(2):
        with turn(platform.begin, "scan", away_s=60.0):
            raise ZeroDivisionError
    told = [(row.state, row.error) for row in (swept(platform, number) for number in (watch, once))]
    assert told == [(state, "internal error (ZeroDivisionError)") for state in ("running", "failed")]
    assert claimed(platform) is None
