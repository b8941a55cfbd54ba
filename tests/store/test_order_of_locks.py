"""Settling or releasing a batch does not deadlock with the renewal of its leases."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.pipeline import catchup as catching_up
from shared.pipeline import lifecycle, reindex
from shared.pipeline.batch import again
from shared.store import catchup, encodings, generations, images, ledger
from shared.store.images import Claimed, Verdict
from shared.store.locks import Lock, share
from shared.types import Status
from tests.miniature import Platform, header

IMAGES = 1000  #: enough that the planner looks up retried images one by one, in the order of the statement's arrays

Act = Callable[[Session], object]


@pytest.fixture
def many(platform: Platform) -> Platform:
    for n in range(IMAGES):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    platform.add_model()
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET failures = 1"))
    with platform.store.reading() as connection:
        connection.execute(sa.text("ANALYZE image"))
    return platform


def test_who_settles_and_who_renews_do_not_wait_for_each_other(many: Platform) -> None:
    with many.begin() as db:
        held = images.claim(db, limit=3, lease_s=30.0, max_failures=5)
    verdicts = [Verdict(image=c, status=Status.EMPTY) for c in held[::-1]]  # as stopped ones come first
    between = sa.text("SELECT 1 FROM image WHERE id = :id FOR UPDATE")
    with ThreadPoolExecutor(2) as others:
        with many.begin() as db:  # blocks both, whichever end they start at
            db.execute(between, {"id": held[1].id})
            acts: list[Act] = [lambda db: images.settle(db, verdicts), lambda db: images.renew(db, held, 30.0)]
            both = [others.submit(run, many, act) for act in acts]
            wait_until_blocked(many, 2)
        for one in both:
            one.result()


def run(platform: Platform, act: Act) -> None:
    with platform.begin() as db:
        act(db)


@pytest.fixture
def catching_up_on(platform: Platform) -> tuple[int, list[Claimed]]:
    """A model of an open generation, and the images that a worker has claimed for it."""
    platform.add_model()
    platform.take_in(4)
    platform.add_model("second", seed=3, dim=32)
    platform.begin_generation("second")
    with platform.begin() as db:
        model = generations.model(db, "second").id
        ids = db.scalars(sa.text("SELECT id FROM image ORDER BY id DESC"))  # the table has the rows in another order
        catchup.add(db, due=[(model, image) for image in ids])
        return model, catchup.claim(db, model, limit=4, lease_s=30.0, max_failures=5)


@pytest.mark.parametrize(
    "act",
    [
        lambda db, model, claimed: catchup.renew(db, model, claimed, 3000.0),
        lambda db, model, _: catchup.retry(db, model),
    ],
    ids=["renew", "retry"],
)
def test_who_renews_or_retries_waits_for_no_one(
    platform: Platform, catching_up_on: tuple[int, list[Claimed]], act: Callable[[Session, int, list[Claimed]], object]
) -> None:
    model, claimed = catching_up_on
    with platform.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET failures = 1"))
    with ThreadPoolExecutor(1) as beside, platform.begin() as db:
        catchup.withdraw(db, [claimed[1].id])
        beside.submit(run, platform, lambda db: act(db, model, claimed)).result(20)
    with platform.store.reading() as connection:
        done = "SELECT count(*) FROM catch_up WHERE failures = 0 OR lease_until > clock_timestamp() + interval '1000 s'"
        assert connection.execute(sa.text(done)).scalar_one() == 3


def test_who_settles_and_who_gives_catch_up_back_do_not_wait_for_each_other(
    platform: Platform, catching_up_on: tuple[int, list[Claimed]]
) -> None:
    """Settling locks the images, then deletes the rows of stopped ones, then those of encoded ones."""
    model, claimed = catching_up_on
    with platform.begin() as db:
        (second,) = (one for one in generations.opened(db) if one.model_id == model)
    source = catching_up._source(platform.begin, second, platform.effort)
    hung = again(claimed[3], "unreadable-file", our_fault=False)
    verdicts = [*(Verdict(image=c, status=Status.RECEIVED) for c in claimed[:3]), hung]
    ids = [c.id for c in claimed]
    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            share(db, Lock.GENERATIONS)
            db.execute(images._LOCK, {"ids": ids[:2]})
            catchup.withdraw(db, ids[1:2])
            given = beside.submit(source.give_back, verdicts)
            wait_until_blocked(platform, 1)
            db.execute(images._LOCK, {"ids": ids})
            catchup.drop(db, ids[:1], [model])
        given.result(20)
    with platform.store.reading() as connection:
        left = "SELECT image_id, last_error FROM catch_up WHERE lease_until IS NULL ORDER BY 1"
        found = [tuple(row) for row in connection.execute(sa.text(left))]
    assert found == [(ids[2], None), (ids[3], "unreadable-file")]


def test_who_gives_up_and_who_gives_catch_up_back_do_not_wait_for_each_other(
    platform: Platform, catching_up_on: tuple[int, list[Claimed]]
) -> None:
    """A worker may give back what it has lost meanwhile."""
    model, claimed = catching_up_on
    with platform.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET failures = 9, lease_until = clock_timestamp()"))

    def exhaust(db: Session) -> None:
        db.execute(sa.text("SET LOCAL enable_indexscan = off"))  # as the planner may choose for many rows
        catchup.exhaust(db, model, 5)

    between = sa.text("SELECT 1 FROM catch_up WHERE image_id = :id FOR UPDATE")
    with ThreadPoolExecutor(2) as others:
        with platform.begin() as db:
            db.execute(between, {"id": claimed[2].id})
            given_up = others.submit(run, platform, exhaust)
            wait_until_blocked(platform, 1)
            given_back = others.submit(run, platform, lambda db: catchup.release(db, model, claimed))
            wait_until_blocked(platform, 2)
        for one in (given_up, given_back):
            one.result(20)


def wait_until_blocked(platform: Platform, count: int) -> None:
    blocked = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with platform.store.reading() as connection:
            if connection.execute(blocked).scalar_one() == count:
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits for the lock")


@pytest.mark.parametrize("which", ["fill", "catch-up"])
def test_who_settles_and_who_builds_a_generation_do_not_wait_for_each_other(platform: Platform, which: str) -> None:
    """Settling locks images and writes ledger rows, which refer to the generation."""
    platform.add_model()
    platform.take_in(4)
    number = platform.begin_generation()
    with platform.begin() as db:
        (found,) = (one for one in generations.opened(db) if one.generation_id == number)
        ids = list(db.scalars(sa.text("SELECT id FROM image ORDER BY id")))
        db.execute(sa.text("UPDATE generation SET throttle = 1000"))
        catchup.add(db, due=[(found.model_id, image) for image in ids])
        db.execute(sa.text("UPDATE catch_up SET failures = 9"))

    def build() -> None:
        if which == "fill":
            with platform.begin() as db:
                reindex.fill(db, generations.get(db, number))
        else:
            catching_up._claim(platform.begin, found, platform.effort, first=True)

    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            share(db, Lock.GENERATIONS)
            db.execute(images._LOCK, {"ids": ids})
            built = beside.submit(build)
            wait_until_blocked(platform, 1)
            ledger.post(db, found.model_id, [ledger.Entry(uuid4(), ids[0], 0, 99)])
        built.result(20)


def test_who_fills_a_generation_waits_for_no_one_who_gives_up_and_then_asks_for_its_pace(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(4)
    platform.add_model("second", seed=3, dim=32)
    number = platform.begin_generation("second")
    with platform.begin() as db:
        ids = list(db.scalars(sa.text("SELECT id FROM image ORDER BY id")))
        model = generations.model(db, "second").id
        catchup.add(db, due=[(model, image) for image in ids])
        db.execute(sa.text("UPDATE catch_up SET failures = 9"))

    def fill() -> int:
        with platform.begin() as db:
            return reindex.fill(db, generations.get(db, number))

    with ThreadPoolExecutor(1) as beside, platform.begin() as db:
        assert sorted(catchup.exhaust(db, model, 5)) == ids
        assert beside.submit(fill).result(20) == len(ids)


def test_who_settles_and_who_purges_do_not_wait_for_each_other(platform: Platform) -> None:
    """Settling deletes encodings of closed models, then the catch-up rows of models that were open at the claim."""
    platform.add_model()
    platform.take_in(4)
    platform.add_model("second", seed=3, dim=32)
    number = platform.begin_generation("second")
    platform.reindex()
    with platform.begin() as db:
        ids = list(db.scalars(sa.text("SELECT id FROM image ORDER BY id")))
        model = generations.model(db, "second").id
        catchup.add(db, due=[(model, image) for image in ids])
        lifecycle.retire(db, number)

    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            share(db, Lock.GENERATIONS)
            db.execute(images._LOCK, {"ids": ids})
            encodings.forget_closed(db, ids)
            purged = beside.submit(reindex.purge, platform.begin, platform.indexes)
            wait_until_blocked(platform, 1)
            catchup.drop(db, ids, [model])
        purged.result(20)
