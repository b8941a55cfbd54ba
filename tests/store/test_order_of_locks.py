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
        model = generations.opened(db)[0].model_id
        db.execute(sa.text("UPDATE image SET failures = 1"))
        catchup.add(db, due=[(model, n) for n in db.scalars(sa.text("SELECT id FROM image"))])
    with platform.store.reading() as connection:
        connection.execute(sa.text("ANALYZE image, catch_up"))
    return platform


def claim(db: Session, model: int | None) -> list[Claimed]:
    how = {"limit": 3, "lease_s": 30.0, "max_failures": 5}
    return images.claim(db, **how) if model is None else catchup.claim(db, model, **how)


def of_images(claimed: list[Claimed], _: int) -> Act:
    return lambda db: images.settle(db, [Verdict(image=c, status=Status.EMPTY) for c in claimed])


def of_catch_up(claimed: list[Claimed], model: int) -> Act:
    return lambda db: catchup.settle(db, model, [Verdict(image=c, status=Status.EMPTY) for c in claimed])


def released(claimed: list[Claimed], model: int) -> Act:
    return lambda db: catchup.release(db, model, claimed)


@pytest.mark.parametrize(
    ("table", "settling"), [("image", of_images), ("catch_up", of_catch_up), ("catch_up", released)]
)
def test_who_settles_and_who_renews_do_not_wait_for_each_other(
    many: Platform, table: str, settling: Callable[[list[Claimed], int], Act]
) -> None:
    with many.begin() as db:
        model = generations.opened(db)[0].model_id
        held = claim(db, None if table == "image" else model)
    settle = settling(held[::-1], model)  # in another order, as stopped images come first

    def renew(db: Session) -> None:
        if table == "image":
            images.renew(db, held, 30.0)
        else:
            catchup.renew(db, model, held, 30.0)

    def run(act: Act) -> None:
        with many.begin() as db:
            act(db)

    name = "id" if table == "image" else "image_id"
    between = sa.text(f"SELECT 1 FROM {table} WHERE {name} = :id FOR UPDATE")
    with ThreadPoolExecutor(2) as others:
        with many.begin() as db:  # blocks both, whichever end they start at
            db.execute(between, {"id": held[1].id})
            both = [others.submit(run, settle), others.submit(run, renew)]
            wait_until_blocked(many, 2)
        for one in both:
            one.result()


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
