"""The job protocol on real rows: leases by the database's clock, and a fence against stale workers."""

import pytest
import sqlalchemy as sa

from shared.errors import Conflict
from shared.store import images
from shared.store.images import Verdict
from shared.types import MOVES, Status
from tests.miniature import Platform, header


@pytest.fixture
def registered(platform: Platform) -> Platform:
    for n in range(6):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    return platform


def claim(platform: Platform, limit: int = 10, lease_s: float = 30.0) -> list[images.Claimed]:
    with platform.begin() as db:
        return images.claim(db, limit=limit, lease_s=lease_s, max_failures=3)


def take_over(platform: Platform) -> list[images.Claimed]:
    """Claim until nothing is due."""
    found: list[images.Claimed] = []
    while claimed := claim(platform):
        found += claimed
    return found


def settle(platform: Platform, claimed: list[images.Claimed], status: Status = Status.EMPTY) -> set[int]:
    with platform.begin() as db:
        return set(images.settle(db, [Verdict(image=c, status=status) for c in claimed]))


def test_two_workers_never_hold_the_same_image(registered: Platform) -> None:
    first, second = claim(registered, 4), claim(registered, 4)
    assert len(first) == 4
    assert len(second) == 2
    assert not {c.id for c in first} & {c.id for c in second}


def test_what_has_rested_does_not_wait_for_all_that_is_new(registered: Platform) -> None:
    """New images may keep coming for days, a hundred thousand of them."""
    tried = claim(registered, 2)
    with registered.begin() as db:
        images.settle(db, [Verdict(image=c, status=Status.RECEIVED, reason="share", retry_after_s=0.0) for c in tried])
    ids = {c.id for c in tried}
    assert len(ids & {c.id for c in claim(registered, 2)}) == 1
    assert len(ids & {c.id for c in claim(registered, 3)}) == 1
    assert len(claim(registered)) == 1  # the sixth image


def test_an_image_is_due_again_when_its_lease_has_ended(registered: Platform) -> None:
    first = claim(registered, lease_s=0.0)
    second = take_over(registered)
    assert [c.id for c in first] == [c.id for c in second]
    assert {c.attempt for c in second} == {2}


def test_what_was_left_behind_is_claimed_alone(registered: Platform) -> None:
    """One of them may have killed its worker, so the others must not share a batch with it again."""
    left = claim(registered, 4, lease_s=0.0)
    alone = [claim(registered) for _ in left]
    assert [[c.id for c in each] for each in alone] == [[c.id] for c in left]
    assert all(c.left_behind for each in alone for c in each)
    rest = claim(registered)
    assert len(rest) == 2
    assert not any(c.left_behind for c in rest)


def test_what_was_left_behind_does_not_come_beside_others(registered: Platform) -> None:
    left = {c.id for c in claim(registered, 4, lease_s=0.0)}
    with registered.begin() as db:
        beside = images.claim(db, limit=10, lease_s=30.0, max_failures=3, beside=True)
    assert (len(beside), left & {c.id for c in beside}) == (2, set())
    assert {c.id for c in take_over(registered)} == left


def test_a_stale_worker_changes_nothing(registered: Platform) -> None:
    stale = claim(registered, lease_s=0.0)
    fresh = take_over(registered)
    assert settle(registered, stale, Status.FAILED) == set()
    assert settle(registered, fresh) == {c.id for c in fresh}


def test_a_worker_that_saw_older_bytes_changes_nothing(registered: Platform) -> None:
    held = claim(registered)
    registered.put("0.dcm", header(0), b"other bytes of the same image")
    registered.scan()
    assert len(settle(registered, held)) == 5


def test_a_renewed_lease_does_not_end(registered: Platform) -> None:
    held = claim(registered, lease_s=0.0)
    with registered.begin() as db:
        images.renew(db, held, 30.0)
    assert claim(registered) == []


def test_a_stale_worker_cannot_renew(registered: Platform) -> None:
    stale = claim(registered, 1, lease_s=0.0)
    claim(registered, 1, lease_s=0.0)
    with registered.begin() as db:
        images.renew(db, stale, 30.0)
    assert [c.id for c in claim(registered)] == [c.id for c in stale]


def test_an_image_that_kills_its_workers_fails_after_three(registered: Platform) -> None:
    for _ in range(3):
        claim(registered, 1, lease_s=0.0)
    assert len(claim(registered)) == 5
    with registered.begin() as db:
        assert len(images.exhaust(db, 3)) == 1
        rows = db.execute(sa.text("SELECT status, reason FROM image WHERE status <> 'encoding'")).all()
    assert [tuple(row) for row in rows] == [("failed", "worker-died")]


def test_an_image_sent_back_waits_before_its_next_attempt(registered: Platform) -> None:
    held = claim(registered)
    with registered.begin() as db:
        images.settle(
            db, [Verdict(image=c, status=Status.RECEIVED, reason="unreadable-file", retry_after_s=60) for c in held]
        )
        assert images.due(db)[0] == 0
        assert not images.any_due(db)
    assert claim(registered) == []


def test_what_never_failed_comes_before_what_is_tried_again(registered: Platform) -> None:
    """Images on a share that is away must not delay what scanners send."""
    old = claim(registered, limit=4)
    with registered.begin() as db:
        images.settle(
            db, [Verdict(image=c, status=Status.RECEIVED, reason="unreadable-file", retry_after_s=0) for c in old]
        )
    assert {c.id for c in claim(registered, limit=3)} == {5, 6, old[0].id}


def test_what_passes_never_counts_against_an_image(registered: Platform) -> None:
    for _ in range(10):
        held = claim(registered)
        assert len(held) == 6
        with registered.begin() as db:
            images.settle(db, [Verdict(image=c, status=Status.RECEIVED, reason="unreadable-file") for c in held])
            assert images.exhaust(db, 3) == []


def test_our_own_failures_count_and_their_reason_is_kept(registered: Platform) -> None:
    for _ in range(3):
        held = claim(registered)
        verdicts = [Verdict(image=c, status=Status.RECEIVED, reason="encoder-error", our_fault=True) for c in held]
        with registered.begin() as db:
            images.settle(db, verdicts)
    assert claim(registered) == []
    with registered.begin() as db:
        assert len(images.exhaust(db, 3)) == 6
        assert set(db.execute(sa.text("SELECT reason FROM image")).scalars()) == {"encoder-error"}


def test_the_fence_is_never_lowered(registered: Platform) -> None:
    stale = claim(registered, lease_s=0.0)
    registered.put("0.dcm", header(0), b"other bytes of the same image")
    registered.scan()
    fresh = take_over(registered)
    assert {c.id: c.attempt for c in fresh} == {c.id: c.attempt + 1 for c in stale}


def test_a_verdict_that_no_move_leads_to_is_refused(registered: Platform) -> None:
    held = claim(registered)
    with pytest.raises(Conflict, match="from encoding to rejected"):
        settle(registered, held, Status.REJECTED)


def test_a_test_fails_that_makes_a_move_which_the_table_lacks(registered: Platform) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match="from received to encoded"), registered.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'encoded'"))


def test_every_status_but_the_last_leads_to_deleted() -> None:
    assert all(Status.DELETED in MOVES[s] for s in Status if s is not Status.DELETED)
    assert MOVES[Status.DELETED] == frozenset()
