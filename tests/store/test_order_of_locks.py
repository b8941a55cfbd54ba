"""Settling or releasing a batch does not deadlock with the renewal of its leases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.pipeline import catchup as catching_up
from shared.pipeline import lifecycle, reconcile, reindex
from shared.pipeline.batch import again
from shared.pipeline.letters import retry_many
from shared.pipeline.reconcile import Site
from shared.store import catchup, checks, encodings, files, generations, images, ledger, letters, studies
from shared.store.blobs import Blobs
from shared.store.files import Record, Seen
from shared.store.images import Claimed, Verdict
from shared.store.letters import Wanted
from shared.store.locks import Lock, alone, share
from shared.store.reviews import Actor
from shared.types import FileOutcome, Status
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
            many.wait_until_blocked(2)
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


def test_who_retries_dead_letters_waits_for_no_one_who_settles(
    platform: Platform, catching_up_on: tuple[int, list[Claimed]]
) -> None:
    model, claimed = catching_up_on
    ids = [c.id for c in claimed]
    with platform.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET state = 'failed', lease_until = NULL"))
    with ThreadPoolExecutor(1) as beside, platform.begin() as db:
        catchup.withdraw(db, ids[1:2])
        names = [f"encoding-{model}-{image}" for image in ids]
        beside.submit(run, platform, lambda db: letters.due_again(db, "encoding", names)).result(20)
        catchup.drop(db, ids[3:], [model])
    with platform.store.reading() as connection:
        left = sa.text("SELECT image_id, state FROM catch_up ORDER BY 1")
        assert [tuple(row) for row in connection.execute(left)] == [(ids[0], "due"), (ids[2], "due")]


OPERATION = uuid4()


def diagnose(platform: Platform) -> None:
    site = Site(
        begin=platform.begin,
        indexes=platform.indexes,
        models=platform.folder / "models",
        blobs=Blobs(platform.folder / "blobs"),
        inspector=platform.sandbox,
        rules=platform.rules,
    )
    assert [one.kind for one in reconcile._rows(site, True, False) if one.count] == ["job-exhausted"]


@pytest.mark.parametrize(
    "act",
    [
        lambda p: run(p, lambda db: letters.due_again(db, "image", [f"image-{n}" for n in range(1, 5)])),
        lambda p: run(p, lambda db: images.retry_failed(db, OPERATION)),
        diagnose,
    ],
    ids=["letters", "operation", "doctor"],
)
def test_who_retries_images_and_who_registers_them_again_do_not_wait_for_each_other(
    platform: Platform, act: Callable[[Platform], None]
) -> None:
    platform.add_model()
    platform.take_in(4)
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'received', operation_id = :id"), {"id": OPERATION})
        for image in (2, 3, 4, 1):  # the table has the rows in this order
            failed = "UPDATE image SET status = 'failed', reason = 'worker-died' WHERE id = :id"
            db.execute(sa.text(failed), {"id": image})
    scan = "SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"  # as for many rows
    sa.event.listen(platform.store.engine, "begin", lambda connection: connection.exec_driver_sql(scan))
    with ThreadPoolExecutor(2) as others:
        with platform.begin() as db:
            db.execute(sa.text("SELECT 1 FROM image WHERE id = 3 FOR UPDATE"))
            retried = others.submit(act, platform)
            platform.wait_until_blocked(1)
            known = others.submit(run, platform, lambda db: studies.known(db, [f"1.2.3.{n}" for n in range(1, 5)]))
            platform.wait_until_blocked(2)
        for one in (retried, known):
            one.result(20)
    with platform.store.reading() as connection:
        assert images.statuses(connection) == {"received": 4}


def test_who_retries_all_of_a_reason_and_who_repairs_images_do_not_wait_for_each_other(platform: Platform) -> None:
    """An image and a point: the latter also needs the lock that a repair holds."""
    platform.add_model()
    platform.take_in(2)
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'received' WHERE id = 1"))
        db.execute(sa.text("UPDATE image SET status = 'failed', reason = 'odd' WHERE id = 1"))
        db.execute(sa.text("UPDATE ledger SET state = 'failed', last_error = 'odd' WHERE image_id = 2"))
    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            alone(db, Lock.GENERATIONS)
            retried = beside.submit(run, platform, lambda db: retry_many(db, Wanted(reason="odd"), Actor("Anna", 1)))
            platform.wait_until_blocked(1)
            images.lock(db, [1, 2])
        retried.result(20)
    with platform.store.reading() as connection:
        assert images.statuses(connection) == {"encoded": 1, "received": 1}


def test_who_marks_a_missing_file_and_who_finds_it_do_not_wait_for_each_other(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(1)
    platform.put("copy.dcm", header(0), b"0000.dcm")  # the same bytes
    platform.scan()
    (path,) = platform.folder.glob("archive/0000.dcm")
    (copy,) = platform.folder.glob("archive/copy.dcm")
    with platform.begin() as db:
        rows = checks.files(db, 0, 9)
    seen = Seen.of(bytes(path), path.stat())
    path.unlink()
    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            studies.known(db, ["1.2.3.1"])
            marked = beside.submit(run, platform, lambda db: reconcile._look_again(db, "file-missing", rows))
            platform.wait_until_blocked(1)
            files.record(db, [Record(seen=seen, outcome=FileOutcome.TAKEN, image_id=rows[0].image_id)], None)
        marked.result(20)
    with platform.store.reading() as connection:
        assert connection.execute(sa.text("SELECT path FROM image")).scalar_one() == bytes(copy)


def test_who_settles_and_who_gives_catch_up_back_do_not_wait_for_each_other(
    platform: Platform, catching_up_on: tuple[int, list[Claimed]]
) -> None:
    """Settling locks the images, then deletes the rows of stopped ones, then those of encoded ones."""
    model, claimed = catching_up_on
    with platform.begin() as db:
        (second,) = (one for one in generations.opened(db) if one.model_id == model)
    source = catching_up.CatchUp(platform.begin, second, platform.effort)
    hung = again(claimed[3], "unreadable-file", our_fault=False)
    verdicts = [*(Verdict(image=c, status=Status.RECEIVED) for c in claimed[:3]), hung]
    ids = [c.id for c in claimed]
    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            share(db, Lock.GENERATIONS)
            db.execute(images._LOCK, {"ids": ids[:2]})
            catchup.withdraw(db, ids[1:2])
            given = beside.submit(source.give_back, verdicts)
            platform.wait_until_blocked(1)
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
            platform.wait_until_blocked(1)
            given_back = others.submit(run, platform, lambda db: catchup.release(db, model, claimed))
            platform.wait_until_blocked(2)
        for one in (given_up, given_back):
            one.result(20)


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
            catching_up.CatchUp(platform.begin, found, platform.effort).claim()

    with ThreadPoolExecutor(1) as beside:
        with platform.begin() as db:
            share(db, Lock.GENERATIONS)
            db.execute(images._LOCK, {"ids": ids})
            built = beside.submit(build)
            platform.wait_until_blocked(1)
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
            platform.wait_until_blocked(1)
            catchup.drop(db, ids, [model])
        purged.result(20)
