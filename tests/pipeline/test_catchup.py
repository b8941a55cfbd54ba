"""A generation of a new model: built from the images, beside intake, with the machinery of intake."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from shared.encoder.base import Encoder
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.heartbeat import shown_by
from shared.imaging.reasons import Reason, failed, undecodable
from shared.pipeline import batch, catchup, encode, lifecycle, reindex
from shared.store import catchup as rows
from shared.store import coverage, generations, images
from shared.store.generations import Published
from tests.miniature import Platform, header


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(12)
    platform.add_model("second", seed=3, dim=32)
    return platform


def query(platform: Platform, text: str, **values: Any) -> list[tuple[Any, ...]]:
    with platform.store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(text), values)]


def encoded(platform: Platform, model: int) -> list[tuple[Any, ...]]:
    return query(platform, "SELECT image_id, frame, embedding FROM encoding WHERE model_id = :m ORDER BY 1, 2", m=model)


def due(platform: Platform) -> list[tuple[Any, ...]]:
    return query(platform, "SELECT image_id, state, reason FROM catch_up ORDER BY 1")


def opened(platform: Platform, **choices: Any) -> int:
    """Open a generation of the second model, filled as far as stored encodings allow; return its number."""
    number = platform.begin_generation("second", **choices)
    with platform.begin() as db:
        reindex.fill(db, generations.get(db, number))
    return number


def drain(platform: Platform, **how: Any) -> int:
    return catchup.drain(platform.begin, platform.sandbox, platform.encoder, platform.effort, **how)


def without_second(platform: Platform) -> Callable[[Published], Encoder]:
    """A loader of models that lacks the second one."""

    def encoder_of(model: Published) -> Encoder:
        if model.model_id == 2:
            raise NotFound("there is no such card here")
        return platform.encoder(model)

    return encoder_of


def test_a_database_that_is_away_at_the_end_does_not_hide_what_ended_it(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(filled)

    def away(*_: object) -> None:
        raise Unavailable("the connection to the database was lost")

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(catchup.encode, "forward", fault)
        patched.setattr(rows, "release", away)
        drain(filled)


def test_what_is_given_back_keeps_what_was_last_said_of_it(filled: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(filled)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET last_error = 'encoder-error', failures = 2"))

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(catchup.encode, "forward", fault)
        drain(filled)
    assert query(filled, "SELECT DISTINCT last_error, failures FROM catch_up") == [("encoder-error", 2)]


def claim(platform: Platform, lease_s: float = 5.0) -> batch.Work:
    with platform.begin() as db:
        model = next(p for p in generations.opened(db) if p.model_id == 2)
    return catchup.CatchUp(platform.begin, model, replace(platform.effort, lease_s=lease_s)).claim()


def settle(platform: Platform, work: batch.Work) -> int:
    result = batch.forward(batch.decode(platform.sandbox, work), platform.encoder)
    return catchup.CatchUp(platform.begin, work.models[0], platform.effort).settle(work, result)


def test_a_new_model_is_built_from_the_images_and_nothing_else_is_written(filled: Platform) -> None:
    before = encoded(filled, 1)
    states = query(filled, "SELECT id, status, revision, attempt, settled_at FROM image ORDER BY id")
    number = filled.begin_generation("second")
    filled.sandbox.decoded.clear()
    filled.reindex()
    assert len(filled.sandbox.decoded) == 12
    assert len(encoded(filled, 2)) == 12
    assert encoded(filled, 1) == before
    assert query(filled, "SELECT id, status, revision, attempt, settled_at FROM image ORDER BY id") == states
    assert due(filled) == []
    with filled.begin() as db:
        lifecycle.publish(db, number, patience_s=0)
    assert filled.index(filled.published().collection).count() == 12


def test_what_the_new_model_cannot_encode_is_a_named_exception_and_keeps_its_place(filled: Platform) -> None:
    (path,) = query(filled, "SELECT path FROM image WHERE id = 5")[0]
    filled.sandbox.pixels[path] = undecodable(Reason.CORRUPT)
    number = filled.begin_generation("second")
    filled.reindex()
    assert due(filled) == [(5, "failed", "corrupt-pixel-data")]
    with pytest.raises(Conflict, match=r"covers 11 of 12 images, .*: 5 \(corrupt-pixel-data\)"), filled.begin() as db:
        lifecycle.publish(db, number, patience_s=0)
    assert filled.index("g1-m1").count() == 12
    with filled.begin() as db:
        lifecycle.publish(db, number, ["5"], patience_s=0)
    del filled.sandbox.pixels[path]  # the file is repaired; a resume tries it again
    with filled.begin() as db:
        lifecycle.resume(db, number)
    filled.reindex()
    assert due(filled) == []
    assert filled.index(f"g{number}-m2").count() == 12


class Picky:
    """A model that refuses one picture."""

    def __init__(self, inner: Encoder, pixel: float) -> None:
        self.inner, self.pixel, self.card = inner, pixel, inner.card

    def encode(self, pixels: np.ndarray) -> Any:
        if (pixels[:, 0, 0] == self.pixel).any():
            raise Invalid("no vector")
        return self.inner.encode(pixels)


def test_a_new_image_that_another_model_refuses_is_searchable_all_the_same(filled: Platform) -> None:
    number = opened(filled)
    drain(filled)
    path = os.fsencode(filled.put("new.dcm", header(12)))
    first = float(filled.sandbox._decoded(path, batch.recipe_of(filled.published())).pixels[0, 0, 0])

    def encoder_of(model: Published) -> Encoder:
        return filled.encoder(model) if model.model_id == 1 else Picky(filled.encoder(model), first)

    filled.scan()
    encode.drain(filled.begin, filled.sandbox, encoder_of, filled.effort)
    filled.project()
    assert query(filled, "SELECT status FROM image WHERE sop_uid = '1.2.3.13'") == [("encoded",)]
    assert (filled.index("g1-m1").count(), filled.index(f"g{number}-m2").count()) == (13, 12)
    ((_, state, reason),) = due(filled)
    assert (state, reason) == ("failed", Reason.BAD_EMBEDDING.value)


def test_the_live_model_judges_whatever_the_others_say(filled: Platform) -> None:
    opened(filled)
    drain(filled)
    filled.put("new.dcm", header(12, presentation_intent="FOR PROCESSING"))
    filled.scan()
    filled.encode()
    assert query(filled, "SELECT status FROM image WHERE sop_uid = '1.2.3.13'") == [("quarantined",)]
    assert due(filled) == []


def test_a_model_that_cannot_be_loaded_here_holds_up_no_intake(filled: Platform) -> None:
    opened(filled)
    drain(filled)
    encoder_of = without_second(filled)
    filled.put("new.dcm", header(12))
    filled.scan()
    encode.drain(filled.begin, filled.sandbox, encoder_of, filled.effort)
    assert [state for _, state, _ in due(filled)] == ["due"]  # due where the second model is present
    assert catchup.drain(filled.begin, filled.sandbox, encoder_of, filled.effort) == 0
    assert drain(filled) == 1
    assert len(encoded(filled, 2)) == 13


def test_an_image_that_was_claimed_before_the_opening_is_done_after_it(filled: Platform) -> None:
    filled.put("new.dcm", header(12))
    filled.scan()
    work = filled.intake.claim()
    number = opened(filled)
    result = batch.forward(batch.decode(filled.sandbox, work), filled.encoder)
    assert filled.intake.settle(work, result) == 1
    filled.reindex()
    assert filled.index(f"g{number}-m2").count() == 13


def test_two_workers_never_hold_the_same_image(filled: Platform) -> None:
    opened(filled)
    held = [claim(filled).claimed for _ in range(3)]
    assert sorted(c.id for batch in held for c in batch) == list(range(1, 13))
    assert claim(filled).claimed == []


def test_a_dead_workers_images_are_taken_over_and_its_late_word_is_not_heard(filled: Platform) -> None:
    opened(filled)
    dead = claim(filled, lease_s=0.0)
    again = [claim(filled) for _ in dead.claimed]
    assert [[c.id for c in work.claimed] for work in again] == [[c.id] for c in dead.claimed]
    assert all(work.alone for work in again)  # one of them may have killed the worker
    assert settle(filled, dead) == 0
    assert encoded(filled, 2) == []
    assert sum(settle(filled, work) for work in again) == 4


def test_every_worker_that_dies_on_an_image_counts_and_the_last_names_it(filled: Platform) -> None:
    opened(filled)
    for _ in range(filled.effort.max_failures + 1):
        claim(filled, lease_s=0.0)
    assert drain(filled) == 11
    assert due(filled) == [(1, "failed", "worker-died")]


def test_what_is_given_up_is_not_covered_by_what_was_made_of_other_bytes(filled: Platform) -> None:
    number = filled.begin_generation("second")
    filled.reindex()
    filled.put("0000.dcm", header(0), b"other bytes")
    filled.scan()
    encode.drain(filled.begin, filled.sandbox, without_second(filled), filled.effort)
    for _ in range(filled.effort.max_failures):
        assert [c.id for c in claim(filled, lease_s=0.0).claimed] == [1]
    drain(filled)
    filled.project()
    assert due(filled) == [(1, "failed", "worker-died")]
    assert filled.index(f"g{number}-m2").count() == 11
    assert filled.index(filled.published().collection).count() == 12
    with filled.begin() as db:
        assert [(gap.image_id, gap.reason) for gap in coverage.gaps(db, number, 2, 9)] == [(1, "worker-died")]


def test_other_bytes_between_claim_and_settling_are_not_missed(filled: Platform) -> None:
    opened(filled)
    work = claim(filled)
    decoded = batch.decode(filled.sandbox, work)
    path = query(filled, "SELECT path FROM image WHERE id = 2")[0][0]
    uid = work.claimed[1].sop_uid
    filled.put(os.fsdecode(path).rpartition("/")[2], header(int(uid.rpartition(".")[2]) - 1), b"other bytes")
    filled.scan()
    result = batch.forward(decoded, filled.encoder)
    assert catchup.CatchUp(filled.begin, work.models[0], filled.effort).settle(work, result) == 3
    assert 2 not in {row[0] for row in encoded(filled, 2)}
    filled.encode()
    filled.reindex()
    (stored,) = [row[2] for row in encoded(filled, 2) if row[0] == 2]
    fresh = filled.sandbox._decoded(path, batch.recipe_of(work.models[0]))
    assert stored == encode.encodings.pack(filled.encoder(work.models[0]).encode(fresh.pixels).embeddings[0])


def test_an_image_erased_between_claim_and_settling_stays_erased(filled: Platform) -> None:
    opened(filled)
    work = claim(filled)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'deleted' WHERE id = 1"))
    assert settle(filled, work) == 3
    assert query(filled, "SELECT 1 FROM encoding WHERE image_id = 1 AND model_id = 2") == []
    assert query(filled, "SELECT 1 FROM ledger WHERE image_id = 1 AND generation_id = 2") == []


def test_what_is_held_when_an_error_ends_it_is_given_back(filled: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(filled)

    def away(*_: object) -> None:
        raise Unavailable("the connection to the database was lost")

    with monkeypatch.context() as patched, pytest.raises(Unavailable):
        patched.setattr(encode.encodings, "save", away)
        drain(filled)
    assert query(filled, "SELECT count(*) FROM catch_up WHERE lease_until IS NOT NULL OR failures > 0") == [(0,)]
    assert drain(filled) == 12


def test_a_share_that_is_away_costs_a_wait_and_no_exception(filled: Platform) -> None:
    opened(filled)
    (path,) = query(filled, "SELECT path FROM image WHERE id = 5")[0]
    filled.sandbox.pixels[path] = failed(Reason.UNREADABLE)
    drain(filled)
    assert due(filled) == [(5, "due", None)]
    del filled.sandbox.pixels[path]
    with filled.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET not_before = NULL"))
    drain(filled)
    assert due(filled) == []


def test_a_share_that_is_away_is_waited_for_longer_each_time_until_a_person_retries(filled: Platform) -> None:
    opened(filled)
    (path,) = query(filled, "SELECT path FROM image WHERE id = 5")[0]
    filled.sandbox.pixels[path] = failed(Reason.UNREADABLE)

    def wait_s() -> int:
        drain(filled)
        left = "SELECT extract(epoch FROM not_before - clock_timestamp()) FROM catch_up"
        ((found,),) = query(filled, left)
        with filled.begin() as db:
            db.execute(sa.text("UPDATE catch_up SET not_before = NULL"))
        return round(float(found) / batch.RETRY_S)

    assert [wait_s() for _ in range(3)] == [1, 2, 4]
    with filled.begin() as db:
        rows.retry(db, 2)
    assert wait_s() == 1


def test_new_images_come_first(filled: Platform) -> None:
    opened(filled)
    filled.put("new.dcm", header(12))
    filled.scan()
    assert drain(filled) == 4  # one batch, so that the build still progresses
    filled.encode()
    assert drain(filled) == 8


@pytest.mark.parametrize(
    ("loader", "counts"),
    [(lambda platform: platform.encoder, [(2, 3), (3, 3)]), (without_second, [(3, 5)])],
    ids=["all are loaded", "the second cannot be loaded"],
)
def test_the_models_that_are_loaded_share_the_time_of_one_call(
    filled: Platform,
    monkeypatch: pytest.MonkeyPatch,
    loader: Callable[[Platform], Callable[[Published], Encoder]],
    counts: list[tuple[int, int]],
) -> None:
    filled.add_model("third", seed=4, dim=32)
    for name in ("second", "third"):
        number = filled.begin_generation(name)
        with filled.begin() as db:
            reindex.fill(db, generations.get(db, number))
    now = 0

    def takes_a_second(*given: Any) -> batch.Result:
        nonlocal now
        now += 1
        return batch.forward(*given)

    monkeypatch.setattr(encode, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(encode, "forward", takes_a_second)
    filled.effort = replace(filled.effort, batch=1)
    catchup.drain(filled.begin, filled.sandbox, loader(filled), filled.effort, budget_s=4.0)
    stored = query(filled, "SELECT model_id, count(*) FROM encoding WHERE model_id > 1 GROUP BY 1 ORDER BY 1")
    assert stored == counts, "two or four seconds each, and the batch that was decoded ahead"


def test_a_paused_build_encodes_nothing_and_the_throttle_holds(filled: Platform) -> None:
    number = opened(filled)
    with filled.begin() as db:
        lifecycle.pause(db, number)
        assert rows.asking(db) == []
    assert drain(filled) == 0
    with filled.begin() as db:
        lifecycle.resume(db, number)
        db.execute(
            sa.text(
                "UPDATE generation SET throttle = 1, paced_from = clock_timestamp() - interval '2 s' WHERE id = :id"
            ),
            {"id": number},
        )
    assert drain(filled) == 2
    now = datetime.now().astimezone()
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=4):%H:%M}"
    with filled.begin() as db:
        lifecycle.throttle(db, number, {"throttle": None, "hours": closed})
    assert drain(filled) == 0
    with filled.begin() as db:
        lifecycle.throttle(db, number, {"hours": None})
    assert drain(filled) == 10


def test_a_cancelled_build_leaves_nothing_to_do_and_keeps_what_was_encoded(filled: Platform) -> None:
    number = opened(filled)
    work = claim(filled)
    assert settle(filled, work) == 4
    late = claim(filled)
    with filled.begin() as db:
        lifecycle.cancel(db, number)
    assert settle(filled, late) == 0
    reindex.purge(filled.begin, filled.indexes)
    assert due(filled) == []
    again = opened(filled)
    filled.sandbox.decoded.clear()
    filled.reindex()
    assert len(filled.sandbox.decoded) == 8  # the other four have stored encodings
    assert filled.index(f"g{again}-m2").count() == 12


def test_what_a_retired_model_has_left_to_do_is_dropped_by_and_by_and_not_while_all_writers_wait(
    filled: Platform,
) -> None:
    number = opened(filled)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE catch_up SET state = 'failed', reason = 'encoder-error' WHERE image_id = 1"))
    encoding = "SELECT image_id, 1, 2, embedding, runtime FROM encoding WHERE image_id IN (1, 2)"
    with filled.begin() as db:  # as if they had other bytes by now
        db.execute(sa.text(f"INSERT INTO encoding (image_id, frame, model_id, embedding, runtime) {encoding}"))
    with filled.begin() as db:
        lifecycle.retire(db, number)
    assert [row[:2] for row in due(filled)] == [(1, "failed"), *((image, "due") for image in range(2, 13))]
    with filled.begin() as db:
        assert rows.closed(db) == [2]
    reindex.purge(filled.begin, filled.indexes, chunk=5)
    assert due(filled) == []
    assert encoded(filled, 2) == []
    assert len(encoded(filled, 1)) == 12


def test_a_purge_shows_at_every_step_that_it_goes_on(filled: Platform) -> None:
    def beats(grace_s: float) -> int:
        shown: list[None] = []
        with shown_by(lambda: shown.append(None)):
            reindex.purge(filled.begin, filled.indexes, grace_s=grace_s, chunk=5)
        return len(shown)

    known = filled.begin_generation()
    filled.reindex()
    new = opened(filled)
    with filled.begin() as db:
        lifecycle.retire(db, known)
        lifecycle.retire(db, new)
    assert beats(grace_s=60) >= 3  # twelve images that were due for the new model
    assert beats(grace_s=0) >= 3  # twelve rows in the ledger of the known one


def test_what_is_due_for_a_model_stays_while_a_generation_of_it_is_open(filled: Platform) -> None:
    first = opened(filled)
    with filled.begin() as db:
        lifecycle.retire(db, first)
    again = opened(filled)
    reindex.purge(filled.begin, filled.indexes)
    assert len(due(filled)) == 12
    filled.reindex()
    assert filled.index(f"g{again}-m2").count() == 12


@pytest.mark.parametrize("beside", [False, True])
def test_a_generation_opened_before_the_purge_tries_again_what_failed_in_none_that_is_open(
    filled: Platform, *, beside: bool
) -> None:
    first = opened(filled)
    if beside:
        opened(filled)
    exception = "UPDATE catch_up SET state = 'failed', reason = 'encoder-error', failures = 5 WHERE image_id = 1"
    waiting = "UPDATE catch_up SET failures = 4, not_before = clock_timestamp() + interval '1 h' WHERE image_id = 2"
    with filled.begin() as db:
        for statement in (exception, waiting):
            db.execute(sa.text(statement))
        lifecycle.retire(db, first)
    again = opened(filled)
    kept = query(filled, "SELECT image_id, failures FROM catch_up WHERE state = 'failed' OR not_before IS NOT NULL")
    assert kept == ([(1, 5), (2, 4)] if beside else [])
    filled.reindex()
    assert filled.index(f"g{again}-m2").count() == (10 if beside else 12)


@pytest.mark.parametrize("purged", [True, False])
@pytest.mark.parametrize("closed", ["before", "while they wait", "while they are due for it"])
def test_an_old_encoding_of_a_closed_model_does_not_outlive_its_bytes(
    filled: Platform, closed: str, *, purged: bool
) -> None:
    number = filled.begin_generation("second")
    filled.reindex()

    def close() -> None:
        with filled.begin() as db:
            lifecycle.retire(db, number)

    def others_come() -> None:
        filled.put("0001.dcm", header(1), b"other bytes")
        filled.scan()

    def live_one_encodes() -> None:
        encode.drain(filled.begin, filled.sandbox, without_second(filled), filled.effort)

    steps = {
        "before": [close, others_come, live_one_encodes],
        "while they wait": [others_come, close, live_one_encodes],
        "while they are due for it": [others_come, live_one_encodes, close],
    }
    for step in steps[closed]:
        step()
    if purged:
        reindex.purge(filled.begin, filled.indexes)
        assert len(encoded(filled, 2)) == 11
    again = filled.begin_generation("second")
    filled.reindex()
    (image,) = query(filled, "SELECT id, path FROM image WHERE sop_uid = '1.2.3.2'")
    (stored,) = [row[2] for row in encoded(filled, 2) if row[0] == image[0]]
    with filled.begin() as db:
        model = next(p for p in generations.opened(db) if p.model_id == 2)
    fresh = filled.sandbox._decoded(image[1], batch.recipe_of(model))
    assert stored == encode.encodings.pack(filled.encoder(model).encode(fresh.pixels).embeddings[0])
    with filled.begin() as db:
        assert coverage.count(db, again, 2).covered == 12


def test_a_generation_opened_again_waits_for_the_vectors_of_present_bytes(filled: Platform) -> None:
    number = filled.begin_generation("second")
    filled.reindex()
    filled.put("0001.dcm", header(1), b"other bytes")
    filled.scan()
    encode.drain(filled.begin, filled.sandbox, without_second(filled), filled.effort)
    with filled.begin() as db:
        lifecycle.retire(db, number)
    again = opened(filled)
    filled.project()
    ((image, _, _),) = due(filled)
    with filled.begin() as db:
        assert [(gap.image_id, gap.reason) for gap in coverage.gaps(db, again, 2, 9)] == [(image, "to-encode")]
    assert filled.index(f"g{again}-m2").count() == 11
    drain(filled)
    filled.project()
    assert filled.index(f"g{again}-m2").count() == 12


def test_a_vector_of_earlier_bytes_covers_nothing_until_the_present_ones_are_encoded(filled: Platform) -> None:
    number = filled.begin_generation("second")
    filled.reindex()
    filled.put("0001.dcm", header(1), b"other bytes")
    filled.scan()
    encode.drain(filled.begin, filled.sandbox, without_second(filled), filled.effort)
    filled.project()
    with filled.begin() as db, pytest.raises(Conflict, match=r"covers 11 of 12 images.*to-encode"):
        lifecycle.publish(db, number, patience_s=0.0)
    drain(filled)
    filled.project()
    with filled.begin() as db:
        lifecycle.publish(db, number, patience_s=0.0)


def test_frames_that_one_model_no_longer_takes_stay_in_the_others_generation(filled: Platform) -> None:
    with filled.begin() as db:
        entries = encode.ledger.stored(db, 1, [1])
        point = entries[0].point_id
        encode.ledger.post(db, 2, [encode.ledger.Entry(point, 1, 1, 9, "delete")])
    assert query(filled, "SELECT op FROM ledger WHERE generation_id = 1 AND image_id = 1") == [("upsert",)]


def test_images_in_quarantine_are_no_part_of_it(filled: Platform) -> None:
    filled.put("raw.dcm", header(12, presentation_intent="FOR PROCESSING"))
    filled.scan()
    filled.encode()
    number = opened(filled)
    assert len(due(filled)) == 12
    with filled.begin() as db:
        assert coverage.count(db, number, 2).images == 12
        assert images.statuses(db)["quarantined"] == 1


def test_what_would_not_be_settled_is_not_claimed(filled: Platform) -> None:
    """A due row of a stopped image would be decoded, encoded and given back endlessly."""
    opened(filled)
    with filled.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'quarantined' WHERE id = 1"))
    assert [c.id for c in claim(filled).claimed] == [2, 3, 4, 5]
