"""A stopped image waits for one decision, and no search finds it before."""

import os
import threading
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.imaging.reasons import Reason, hostile, undecodable
from shared.pipeline import batch, encode, lifecycle, quarantine, reindex
from shared.pipeline.admission import Action, Admission, Rule
from shared.store import encodings, generations, reviews
from shared.store.locks import Lock, share
from shared.store.reviews import Wanted
from shared.types import Job
from tests.miniature import STATS, header
from tests.pipeline.test_catchup import without_second
from tests.strange import ANNA, BORIS, Bright, bright, calibrated

__all__ = ["bright", "calibrated"]  # fixtures

STRANGE = 24
BLANK = replace(STATS, spread=0.0, distinct=1, content=0.0)
HOLD = Admission((Rule("house", {"modality": ("MG",)}, Action.QUARANTINE),))


@pytest.fixture
def stopped(calibrated: Bright) -> Bright:
    """One image is out of distribution and was stopped."""
    calibrated.paint(STRANGE, 0.9)
    calibrated.take()
    assert calibrated.status(STRANGE) == "quarantined"
    return calibrated


def uid(n: int) -> str:
    return f"1.2.3.{n + 1}"


def test_an_image_unlike_the_others_is_stopped_with_score_and_threshold(stopped: Bright) -> None:
    with stopped.begin() as db:
        (item,) = reviews.page(db, Wanted(), ("image", 2**62), 10)
    assert (item.gate, item.reason, item.model, item.pictured) == ("features", "out-of-distribution", "null", True)
    assert item.score == pytest.approx(0.9, abs=0.01)
    assert 0.5 < (item.threshold or 0) < 0.6
    assert uid(STRANGE) not in stopped.searchable()
    assert len(stopped.searchable()) == 24


def test_without_a_calibration_everything_passes_and_it_is_said(bright: Bright) -> None:
    bright.paint(0, 0.9)
    bright.take()
    assert bright.status(0) == "encoded"
    (row,) = bright.column("SELECT row(score > 0.8, calibration_id IS NULL) = row(true, true) FROM image")
    assert row is True


def test_another_modality_has_no_threshold(calibrated: Bright) -> None:
    calibrated.paint(STRANGE, 0.9, modality="US")
    calibrated.take()
    assert calibrated.status(STRANGE) == "encoded"


def test_a_released_image_is_searchable_without_another_pass(stopped: Bright) -> None:
    looked_at = len(stopped.sandbox.decoded)
    with stopped.begin() as db:
        quarantine.release(db, stopped.number(STRANGE), ANNA, "an implant, but a breast")
    assert Job.PROJECT in stopped.queue.rung
    stopped.project()
    assert stopped.status(STRANGE) == "encoded"
    assert uid(STRANGE) in stopped.searchable()
    assert len(stopped.sandbox.decoded) == looked_at


def test_a_rejected_image_never_becomes_searchable(stopped: Bright) -> None:
    with stopped.begin() as db:
        quarantine.reject(db, stopped.number(STRANGE), ANNA)
    stopped.sandbox.brightness.clear()
    stopped.put(f"{STRANGE:04}.dcm", header(STRANGE), b"other bytes, as ordinary as can be")
    stopped.take()
    stopped.add_model("second", seed=5, dim=32)
    stopped.begin_generation("second")
    stopped.reindex()
    assert stopped.status(STRANGE) == "rejected"
    assert stopped.column("SELECT 1 FROM ledger WHERE image_id = :id", id=stopped.number(STRANGE)) == []


def test_what_is_in_the_quarantine_goes_into_no_new_generation(stopped: Bright) -> None:
    stopped.begin_generation("null")
    stopped.reindex()
    assert stopped.column("SELECT 1 FROM ledger WHERE image_id = :id", id=stopped.number(STRANGE)) == []
    with stopped.begin() as db:
        quarantine.release(db, stopped.number(STRANGE), ANNA)
    assert len(stopped.column("SELECT 1 FROM ledger WHERE image_id = :id", id=stopped.number(STRANGE))) == 2


def test_a_released_image_stays_released_when_its_bytes_come_again(stopped: Bright) -> None:
    with stopped.begin() as db:
        quarantine.release(db, stopped.number(STRANGE), ANNA)
    path = stopped.folder / "archive" / f"{STRANGE:04}.dcm"
    os.utime(path, ns=(5, 5))
    stopped.take()
    with stopped.begin() as db:  # also when it is encoded again
        db.execute(sa.text("UPDATE image SET status = 'received'"))
    stopped.encode()
    assert stopped.status(STRANGE) == "encoded"


def test_a_released_image_with_other_bytes_is_judged_again(stopped: Bright) -> None:
    with stopped.begin() as db:
        quarantine.release(db, stopped.number(STRANGE), ANNA)
    stopped.put(f"{STRANGE:04}.dcm", header(STRANGE), b"other bytes, and as strange")
    stopped.take()
    assert stopped.status(STRANGE) == "quarantined"
    assert uid(STRANGE) not in stopped.searchable()
    with stopped.begin() as db:  # nobody has decided on these bytes
        quarantine.reject(db, stopped.number(STRANGE), BORIS)
    assert stopped.status(STRANGE) == "rejected"


@pytest.mark.parametrize("gate", ["metadata", "pixels"])
def test_what_the_first_gates_stopped_is_encoded_after_its_release(bright: Bright, gate: str) -> None:
    bright.paint(0, presentation_intent="FOR PROCESSING" if gate == "metadata" else "")
    if gate == "pixels":
        bright.sandbox.stats = BLANK
    bright.take()
    assert bright.column("SELECT gate FROM image") == [gate]
    with bright.begin() as db:
        quarantine.release(db, bright.number(0), ANNA)
    assert (bright.status(0), Job.ENCODE in bright.queue.rung) == ("received", True)
    bright.encode()
    bright.project()
    assert bright.status(0) == "encoded"
    assert bright.searchable() == {uid(0)}


@pytest.mark.parametrize("why", [hostile(Reason.MEMORY), undecodable(Reason.CORRUPT)])
def test_what_cannot_be_read_is_retried_and_not_released(bright: Bright, why: Any) -> None:
    bright.paint(0)
    path = os.fsencode(bright.folder / "archive" / "0000.dcm")
    bright.sandbox.pixels[path] = why
    bright.take()
    with bright.begin() as db, pytest.raises(Conflict, match="cannot be read"):
        quarantine.release(db, bright.number(0), ANNA)
    with bright.begin() as db:
        quarantine.retry(db, bright.number(0), ANNA)
    bright.encode()
    assert bright.status(0) == "quarantined"
    del bright.sandbox.pixels[path]  # as if a codec was installed
    with bright.begin() as db:
        assert quarantine.retry_many(db, Wanted(gate=why.gate.value), ANNA) == (1, 0, 0)
    bright.encode()
    assert bright.status(0) == "encoded"
    with bright.begin() as db, pytest.raises(Conflict, match="not in the quarantine"):
        quarantine.retry(db, bright.number(0), ANNA)


def test_a_file_that_was_stopped_before_it_was_an_image_is_listed_and_retried(bright: Bright) -> None:
    path = bright.put("bomb.dcm", hostile(Reason.DEFLATE_RATIO))
    bright.paint(0, presentation_intent="FOR PROCESSING")
    bright.take()
    with bright.begin() as db:
        items = reviews.page(db, Wanted(), ("image", 2**62), 10)
        assert [(i.kind, i.gate) for i in items] == [("image", "metadata"), ("file", "limits")]
        assert reviews.page(db, Wanted(), ("image", items[0].id), 10) == items[1:]
        assert reviews.page(db, Wanted(modality="MG"), ("image", 2**62), 10) == items[:1]
    bright.sandbox.headers[os.fsencode(path)] = header(1)  # as if a limit was raised
    bright.scan()
    assert bright.column("SELECT count(*) FROM image") == [1]  # unchanged for the scan, so not read again
    with bright.begin() as db:
        quarantine.retry_file(db, items[1].id, ANNA)
        with pytest.raises(NotFound):
            quarantine.retry_file(db, 999, ANNA)
    bright.take()
    assert bright.status(1) == "encoded"


def test_a_bulk_retry_names_what_it_retries(bright: Bright) -> None:
    with bright.begin() as db, pytest.raises(Invalid):
        quarantine.retry_many(db, Wanted(modality="MG"), ANNA)


def test_a_retry_lets_nothing_pass_that_a_rule_of_the_site_holds(bright: Bright) -> None:
    for n in range(2):
        bright.paint(n)
    bright.scan(admission=HOLD)
    bright.paint(2, presentation_intent="FOR PROCESSING")
    bright.take()
    with bright.begin() as db, pytest.raises(Conflict, match="release or reject"):
        quarantine.retry(db, bright.number(0), ANNA)
    with bright.begin() as db:
        assert quarantine.retry_many(db, Wanted(gate="metadata"), ANNA) == (1, 0, 2)
    bright.encode()
    assert bright.column("SELECT reason FROM image ORDER BY id") == ["site-rule", "site-rule", "for-processing"]


def test_nothing_of_the_old_bytes_stands_while_a_rule_holds_the_new_ones(bright: Bright) -> None:
    for n in range(2):
        bright.paint(n)
    bright.take()
    bright.add_model("second", seed=5, dim=32)
    bright.begin_generation("second")
    reindex.advance(bright.begin, bright.index)  # both images are also due for the second model
    bright.put("0000.dcm", header(0), b"other bytes")
    bright.scan(admission=HOLD)
    bright.project()
    assert bright.searchable() == {uid(1)}
    for table in ("encoding", "thumbnail", "catch_up"):
        assert bright.column(f"SELECT count(*) FROM {table} WHERE image_id = :id", id=bright.number(0)) == [0], table
    with bright.begin() as db:
        quarantine.release(db, bright.number(0), ANNA)
    bright.project()
    assert bright.searchable() == {uid(1)}, "not before its own bytes are encoded"
    bright.encode()
    bright.project()
    assert bright.searchable() == {uid(0), uid(1)}


def test_no_reviewer_is_shown_the_picture_of_other_bytes(bright: Bright) -> None:
    bright.paint(0)
    bright.take()
    path = bright.put("0000.dcm", header(0), b"other bytes")
    bright.sandbox.pixels[os.fsencode(path)] = undecodable(Reason.CORRUPT)
    bright.take()
    assert bright.status(0) == "quarantined"
    assert bright.column("SELECT count(*) FROM thumbnail") == [0]


def test_a_release_from_a_rule_of_the_site_switches_off_no_gate(bright: Bright) -> None:
    bright.paint(0)
    bright.sandbox.stats = BLANK
    bright.scan(admission=HOLD)
    for reason in ("site-rule", "blank"):
        assert bright.column("SELECT reason FROM image") == [reason]
        with bright.begin() as db:
            quarantine.release(db, bright.number(0), ANNA)
        bright.encode()
    assert bright.status(0) == "encoded"
    assert bright.column("SELECT reason FROM review ORDER BY id") == ["site-rule", "blank"]


def test_a_replay_stops_what_was_released_from_a_rule_of_the_site_alone(calibrated: Bright) -> None:
    calibrated.paint(STRANGE)
    calibrated.scan(admission=HOLD)
    with calibrated.begin() as db:
        quarantine.release(db, calibrated.number(STRANGE), ANNA)
    calibrated.take()
    assert calibrated.status(STRANGE) == "encoded"
    calibrated.replayed(threshold=0.1)
    assert calibrated.status(STRANGE) == "quarantined"


@pytest.mark.parametrize("decision", ["release", "reject"])
def test_bytes_that_were_released_and_are_held_now_are_decided_on_anew(bright: Bright, decision: str) -> None:
    bright.put("0000.dcm", header(0), b"one")
    bright.sandbox.stats = BLANK
    bright.take()
    with bright.begin() as db:
        quarantine.release(db, bright.number(0), ANNA)
    bright.put("0000.dcm", header(0), b"the other")
    bright.take()
    bright.put("0000.dcm", header(0), b"one")
    bright.scan(admission=HOLD)
    assert bright.column("SELECT reason FROM image") == ["site-rule"]
    with bright.begin() as db:
        getattr(quarantine, decision)(db, bright.number(0), BORIS)
    bright.encode()
    assert bright.status(0) == ("encoded" if decision == "release" else "rejected")
    assert bright.column("SELECT reviewer FROM review ORDER BY id") == ["Anna", "Boris"]


@pytest.mark.parametrize("decision", ["release", "reject"])
def test_a_decision_is_about_what_was_looked_at(bright: Bright, decision: str) -> None:
    bright.paint(0)
    bright.sandbox.stats = BLANK
    bright.take()
    with bright.begin() as db:
        (item,) = reviews.page(db, Wanted(), ("image", 2**62), 10)
    bright.put("0000.dcm", header(0), b"quite another picture")
    bright.take()
    with bright.begin() as db, pytest.raises(Conflict, match="review it again"):
        getattr(quarantine, decision)(db, item.id, ANNA, since=item.since)
    assert bright.status(0) == "quarantined"
    with bright.begin() as db:
        (item,) = reviews.page(db, Wanted(), ("image", 2**62), 10)
        getattr(quarantine, decision)(db, item.id, ANNA, since=item.since)
    assert bright.status(0) == ("received" if decision == "release" else "rejected")


@pytest.mark.parametrize("first", ["release", "reject"])
def test_two_reviewers_at_once_make_one_decision(stopped: Bright, first: str) -> None:
    """The second acts before the first has committed, and waits for the outcome."""
    image, answers = stopped.number(STRANGE), []
    other = "reject" if first == "release" else "release"

    def second() -> None:
        try:
            with stopped.begin() as db:
                getattr(quarantine, other)(db, image, BORIS)
            answers.append("done")
        except Conflict:
            answers.append("conflict")

    beside = threading.Thread(target=second)
    with stopped.begin() as db:
        getattr(quarantine, first)(db, image, ANNA)
        beside.start()
        stopped.wait_until_blocked(1)
        assert answers == []
    beside.join()
    assert answers == ["conflict"]
    assert stopped.column("SELECT reviewer FROM review") == ["Anna"]
    assert stopped.column("SELECT actor FROM audit WHERE image_id = :id", id=image) == ["Anna"]
    stopped.project()
    released = first == "release"
    assert stopped.status(STRANGE) == ("encoded" if released else "rejected")
    assert (uid(STRANGE) in stopped.searchable()) is released


def test_a_decision_that_is_said_twice_is_one(stopped: Bright) -> None:
    for _ in range(2):  # the answer was lost, and the client repeats the request
        with stopped.begin() as db:
            quarantine.release(db, stopped.number(STRANGE), ANNA)
    assert stopped.column("SELECT count(*) FROM review") == [1]
    assert stopped.column("SELECT count(*) FROM audit WHERE action = 'release'") == [1]
    with stopped.begin() as db, pytest.raises(Conflict, match="released already"):
        quarantine.reject(db, stopped.number(STRANGE), ANNA)
    with stopped.begin() as db, pytest.raises(Conflict, match="released already"):
        quarantine.release(db, stopped.number(STRANGE), BORIS)


def test_a_connection_that_dies_in_between_leaves_nothing_of_a_decision(stopped: Bright) -> None:
    image = stopped.number(STRANGE)
    with pytest.raises(Unavailable), stopped.begin() as db:
        quarantine.release(db, image, ANNA)
        backend = db.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        stopped.column("SELECT pg_terminate_backend(:pid)", pid=backend)
    assert stopped.status(STRANGE) == "quarantined"
    assert stopped.column("SELECT count(*) FROM review") == [0]
    assert stopped.column("SELECT count(*) FROM ledger WHERE image_id = :id", id=image) == [0]
    with stopped.begin() as db:
        quarantine.reject(db, image, BORIS)
    assert stopped.column("SELECT reviewer FROM review") == ["Boris"]


def test_an_erased_image_cannot_be_released(stopped: Bright) -> None:
    image = stopped.number(STRANGE)
    with stopped.begin() as db:
        db.execute(sa.text("UPDATE image SET status = 'deleted' WHERE id = :id"), {"id": image})
    for gone in (image, 999):
        with stopped.begin() as db, pytest.raises(NotFound):
            quarantine.release(db, gone, ANNA)
    assert stopped.column("SELECT count(*) FROM review") == [0]


def test_what_is_judged_while_a_threshold_comes_into_force_is_judged_by_one_of_them(calibrated: Bright) -> None:
    """Settling holds the lock, so all images judged by older thresholds are written before a new one is in force."""
    calibrated.paint(STRANGE, 0.9)
    calibrated.scan()
    work = calibrated.intake.claim()
    result = batch.forward(batch.decode(calibrated.sandbox, work), calibrated.encoder)
    with calibrated.begin() as db:  # before the image is settled
        calibrated.begin_replay(db, threshold=0.95)
    calibrated.intake.settle(work, result)
    assert calibrated.status(STRANGE) == "encoded"


def test_a_threshold_waits_for_whoever_is_settling(calibrated: Bright) -> None:
    with calibrated.begin() as settling:
        share(settling, Lock.GENERATIONS)
        with pytest.raises(Unavailable), calibrated.begin() as db:
            db.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
            calibrated.begin_replay(db, threshold=0.95)
    assert calibrated.column("SELECT count(*) FROM calibration") == [1]


@pytest.mark.parametrize("how", ["retried", "replaced"])
def test_what_is_to_be_judged_again_goes_into_no_new_generation_meanwhile(stopped: Bright, how: str) -> None:
    if how == "retried":
        with stopped.begin() as db:
            quarantine.retry(db, stopped.number(STRANGE), ANNA)
    else:
        stopped.put(f"{STRANGE:04}.dcm", header(STRANGE), b"other bytes, and as strange")
        stopped.scan()
    assert stopped.status(STRANGE) == "received"
    stopped.begin_generation("null")
    stopped.reindex(rounds=1)
    assert stopped.column("SELECT 1 FROM ledger WHERE image_id = :id", id=stopped.number(STRANGE)) == []


def test_a_release_never_publishes_what_was_made_of_other_bytes(calibrated: Bright) -> None:
    """Gate 1 stopped the changed file, so the encoding of its earlier bytes is deleted."""
    calibrated.put("0003.dcm", header(3, presentation_intent="FOR PROCESSING"), b"raw now")
    calibrated.take()
    assert calibrated.status(3) == "quarantined"
    assert calibrated.column("SELECT 1 FROM encoding WHERE image_id = :id", id=calibrated.number(3)) == []


@pytest.mark.parametrize("admitted", ["by a replay", "by a release"])
@pytest.mark.parametrize("retired", [False, True])
def test_what_is_admitted_again_has_no_vector_of_earlier_bytes_under_another_model(
    calibrated: Bright, admitted: str, *, retired: bool
) -> None:
    calibrated.add_model("second", seed=3, dim=32)
    number = calibrated.begin_generation("second")
    calibrated.reindex()
    path = os.fsencode(calibrated.put("0003.dcm", header(3), b"other bytes"))
    calibrated.scan()
    encode.drain(calibrated.begin, calibrated.sandbox, without_second(calibrated), calibrated.effort)
    if retired:
        with calibrated.begin() as db:
            lifecycle.retire(db, number)
    calibrated.replayed(threshold=0.1)
    assert calibrated.status(3) == "quarantined"
    if admitted == "by a replay":
        calibrated.replayed(threshold=2.0)
    else:
        with calibrated.begin() as db:
            quarantine.release(db, calibrated.number(3), ANNA)
    if retired:
        calibrated.begin_generation("second")
    calibrated.reindex()
    assert calibrated.status(3) == "encoded"
    with calibrated.begin() as db:
        model = next(p for p in generations.opened(db) if p.model_id == 2)
    decoded = calibrated.sandbox._decoded(path, batch.recipe_of(model))
    fresh = calibrated.encoder(model).encode(decoded.pixels).embeddings[0]
    stored = "SELECT embedding FROM encoding WHERE model_id = 2 AND image_id = :id"
    assert calibrated.column(stored, id=calibrated.number(3)) == [encodings.pack(fresh)]


def test_notes_are_kept_and_nothing_of_them_is_audited(stopped: Bright) -> None:
    with stopped.begin() as db:
        quarantine.release(db, stopped.number(STRANGE), ANNA, "asked Mrs X")
    assert stopped.column("SELECT note FROM review") == ["asked Mrs X"]
    assert all("Mrs" not in str(row) for row in stopped.column("SELECT CAST(row(audit.*) AS text) FROM audit"))
