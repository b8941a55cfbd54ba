"""Thresholds made from stored scores and put in force; replays follow their plan and never change a decision."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from shared.encoder import ood
from shared.encoder.base import Encoder
from shared.encoder.build import build
from shared.encoder.cards import Card
from shared.encoder.runtime import load
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.heartbeat import shown_by
from shared.imaging.recipe import Recipe
from shared.pipeline import encode, lifecycle, quarantine, replay, thresholds
from shared.pipeline.judge import Standard, judge, statistic
from shared.pipeline.thresholds import Choice
from shared.store import calibrations, generations, operations
from shared.store.generations import Published
from tests.miniature import header
from tests.strange import ANNA, Bright, bright, calibrated

__all__ = ["bright", "calibrated"]  # fixtures


@pytest.mark.parametrize(
    ("score", "threshold", "word"),
    [
        (0.5, 0.5, "passed"),
        (0.5000001, 0.5, "stopped"),
        (float("nan"), 0.5, "stopped"),
        (float("nan"), None, "uncalibrated"),
        (9.0, None, "uncalibrated"),
        (None, 0.5, "unmeasured"),
        (None, None, "unmeasured"),
    ],
)
def test_an_image_is_stopped_above_its_threshold_only(score: float, threshold: float | None, word: str) -> None:
    found = judge(score, None, None if threshold is None else Standard(7, threshold))
    assert (found.verdict, found.stops) == (word, word == "stopped")
    assert found.calibration_id == (7 if word in ("passed", "stopped") else None)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.randoms())
def test_the_score_of_an_image_does_not_depend_on_the_order_of_its_frames(scores: list[float], random: object) -> None:
    before = statistic(scores)
    random.shuffle(scores)  # type: ignore[attr-defined]
    assert statistic(scores) == before
    assert min(scores) <= (before or 0.0) <= max(scores)


def test_an_image_without_all_its_scores_has_none() -> None:
    assert statistic([]) is None
    assert statistic([1.0, None]) is None


def test_a_calibration_tells_from_what_it_was_made(calibrated: Bright) -> None:
    with calibrated.begin() as db:
        (row,) = calibrations.history(db, 1)
    scores = calibrated.column("SELECT CAST(ood AS float8) FROM encoding")
    assert (row.source, row.rule, row.n, row.made_by) == ("archive", "mean+3sd", 24, "Anna")
    assert row.threshold == pytest.approx(np.mean(scores) + 3 * np.std(scores, ddof=1))  # type: ignore[arg-type]
    names = [bytes(one).hex() for one in calibrated.column("SELECT digest FROM image")]  # type: ignore[arg-type]
    assert row.data_sha256 == ood.data_digest(names)
    assert calibrated.column("SELECT actor || ' ' || action FROM audit") == ["Anna calibrate"]


def test_too_few_scores_make_no_calibration(bright: Bright) -> None:
    for n in range(19):
        bright.paint(n)
    bright.take()
    with bright.begin() as db, pytest.raises(Invalid, match="at least 20 encoded images"):
        thresholds.calibrate(db, generations.model(db, "null"), ANNA)
    assert bright.column("SELECT count(*) FROM calibration") == [0]


def test_a_calibration_may_be_made_from_one_folder_and_skips_what_has_too_few(calibrated: Bright) -> None:
    for n in range(30, 52):
        calibrated.paint(n, 0.7, modality="US")
    calibrated.paint(60, 0.6, modality="CT")
    calibrated.take()
    with calibrated.begin() as db:
        made = thresholds.calibrate(
            db, generations.model(db, "null"), ANNA, "quantile", folder=calibrated.folder / "archive"
        )
        with pytest.raises(Invalid):
            thresholds.calibrate(db, generations.model(db, "null"), ANNA, folder=calibrated.folder / "arch")
    assert [(c.modality, c.n) for c in made.calibrations] == [("MG", 24), ("US", 22)]
    assert made.skipped == {"CT": 1}


def test_of_very_many_images_a_threshold_is_made_of_some_and_of_the_same_ones_each_time(
    calibrated: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "MOST_SCORES", 21)
    calibrated.paint(30, 0.9)
    calibrated.take()
    with calibrated.begin() as db:
        model = generations.model(db, "null")
        made = thresholds.calibrate(db, model, ANNA)
        proposed = thresholds.propose(db, model, "MG", Choice(rule="mean+3sd")).numbers
        given = thresholds.propose(db, model, "MG", Choice(threshold=0.9)).numbers
    encoded = "SELECT digest FROM image WHERE status = 'encoded' ORDER BY 1 LIMIT 21"
    names = [bytes(one).hex() for one in calibrated.column(encoded)]  # type: ignore[arg-type]
    for one in (thresholds.Numbers.stored(made.calibrations[0]), proposed, given):
        assert (one.n, one.data_sha256) == (21, ood.data_digest(names))
    assert made.left_out == {"MG": 1}


def test_what_gate_3_stopped_makes_no_threshold_and_is_counted(calibrated: Bright) -> None:
    calibrated.paint(30, 0.9)
    calibrated.take()
    with calibrated.begin() as db:
        made = thresholds.calibrate(db, generations.model(db, "null"), ANNA)
    assert made.left_out == {"MG": 1}
    assert made.calibrations[0].n == 24


def test_a_plan_changes_nothing_and_a_replay_does_what_was_planned(calibrated: Bright) -> None:
    for n, level in ((24, 0.6), (25, 0.7), (26, 0.9)):
        calibrated.paint(n, level)
    calibrated.take()
    before = calibrated.column("SELECT CAST(row(id, status, score, calibration_id) AS text) FROM image ORDER BY id")
    low, high = calibrated.plan(threshold=0.5), calibrated.plan(threshold=0.8)
    assert before == calibrated.column(
        "SELECT CAST(row(id, status, score, calibration_id) AS text) FROM image ORDER BY id"
    )
    assert [f.image_id for f in high.admit] == [calibrated.number(24), calibrated.number(25)]
    assert (high.stop, high.counts["stay"]) == ([], 25)
    assert low.admit == []
    assert 0 < len(low.stop) < 24

    done = calibrated.replayed(threshold=0.5)
    assert done.state == "succeeded"
    quarantined = set(calibrated.column("SELECT id FROM image WHERE status = 'quarantined'"))
    assert quarantined == {f.image_id for f in low.stop} | {calibrated.number(n) for n in (24, 25, 26)}
    assert len(calibrated.searchable()) == 27 - len(quarantined)
    assert (done.counts, done.done) == (low.counts, 27)

    again = calibrated.plan(threshold=0.8)
    done = calibrated.replayed(threshold=0.8)
    assert (done.counts["admit"], len(again.admit)) == (len(low.stop) + 2, done.counts["admit"])
    assert calibrated.column("SELECT sop_uid FROM image WHERE status = 'quarantined'") == ["1.2.3.27"]
    assert len(calibrated.searchable()) == 26
    assert calibrated.plan(threshold=0.8).counts == {"stay": 27}
    assert calibrated.column("SELECT DISTINCT threshold FROM image i JOIN calibration c ON c.id = calibration_id") == [
        0.8
    ]


def test_a_persons_word_is_never_overturned(calibrated: Bright) -> None:
    for n in (24, 25, 26):
        calibrated.paint(n, 0.9)
    calibrated.take()
    with calibrated.begin() as db:
        quarantine.release(db, calibrated.number(24), ANNA)
        quarantine.reject(db, calibrated.number(25), ANNA)
    found = calibrated.plan(threshold=0.1)
    assert (found.counts["stop"], found.counts["decided"]) == (24, 1)  # the rejected image does not count
    calibrated.replayed(threshold=0.1)
    assert [calibrated.status(n) for n in (24, 25, 26)] == ["encoded", "rejected", "quarantined"]
    assert calibrated.searchable() == {"1.2.3.25"}
    calibrated.replayed(threshold=2.0)
    assert [calibrated.status(n) for n in (24, 25, 26)] == ["encoded", "rejected", "encoded"]


def test_an_encoding_of_earlier_bytes_neither_judges_its_image_nor_makes_a_threshold(calibrated: Bright) -> None:
    """The published model still has to catch up on it; a stop deletes that encoding, and nothing could admit it."""
    calibrated.add_model("second", seed=5, dim=32)
    number = calibrated.begin_generation("second")
    calibrated.reindex()
    calibrated.put("0003.dcm", header(3), b"other bytes")
    calibrated.scan()

    def without_second(model: Published) -> Encoder:
        if model.card["name"] == "second":
            raise NotFound("there is no such card here")
        return calibrated.encoder(model)

    encode.drain(calibrated.begin, calibrated.sandbox, without_second, calibrated.effort)
    calibrated.project()
    with calibrated.begin() as db:
        lifecycle.publish(db, number, accept=[str(calibrated.number(3))], patience_s=0)
    with calibrated.begin() as db:
        (made,) = thresholds.calibrate(db, generations.model(db, "second"), ANNA).calibrations
    assert made.n == 23
    assert calibrated.replayed(model="second", threshold=0.1).counts == {"stop": 23, "unmeasured": 1}
    assert calibrated.status(3) == "encoded"
    calibrated.reindex()  # it is encoded
    assert calibrated.replayed(model="second", threshold=0.11).counts == {"stop": 1, "stay": 23}
    assert calibrated.replayed(model="second", threshold=2.0).counts == {"admit": 24}
    assert len(calibrated.searchable()) == 24


def test_an_archive_without_a_calibration_gets_one_by_a_replay(bright: Bright) -> None:
    for n in range(22):
        bright.paint(n)
    bright.take()
    with bright.begin() as db, pytest.raises(Conflict, match="name a threshold or a rule"):
        bright.begin_replay(db)
    assert bright.replayed(rule="log").state == "succeeded"
    assert bright.column("SELECT count(*) FROM image WHERE calibration_id IS NULL") == [0]


def test_calibrations_of_another_model_or_modality_are_refused(calibrated: Bright) -> None:
    calibrated.add_model("second", seed=5, dim=32)
    with calibrated.begin() as db:
        (row,) = calibrations.history(db, 1)
        second = generations.model(db, "second")
        for model, modality in ((second, "MG"), (generations.model(db, "null"), "US")):
            with pytest.raises(Conflict, match="another model or modality"):
                thresholds.propose(db, model, modality, Choice(calibration_id=row.id))
        with pytest.raises(Conflict, match="only thresholds of the published model"):
            calibrated.begin_replay(db, model="second", threshold=0.5)
        with pytest.raises(NotFound):
            thresholds.propose(db, second, "MG", Choice(calibration_id=99))
        with pytest.raises(Invalid):
            thresholds.propose(db, second, "MG", Choice(threshold=1.0, rule="log"))
        assert calibrations.in_force(db, second.id) == {}


def test_an_earlier_calibration_can_be_brought_back(calibrated: Bright) -> None:
    calibrated.replayed(threshold=0.1)
    assert calibrated.searchable() == set()
    with calibrated.begin() as db:
        first = calibrations.history(db, 1)[-1]
    calibrated.replayed(calibration_id=first.id)
    assert len(calibrated.searchable()) == 24
    with calibrated.begin() as db:
        newest = calibrations.history(db, 1)[0]
    assert (newest.threshold, newest.source, newest.made_by) == (first.threshold, "archive", "Boris")


def test_a_replay_that_was_overtaken_stops_where_it_is(calibrated: Bright) -> None:
    with calibrated.begin() as db:
        number = calibrated.begin_replay(db, threshold=0.1).id
        calibrated.begin_replay(db, threshold=2.0)
    while replay.advance(calibrated.begin):
        pass
    with calibrated.begin() as db:
        first = operations.get(db, number)
    assert (first.state, first.error) == ("failed", "another threshold came into force meanwhile")
    assert calibrated.column("SELECT DISTINCT status FROM image") == ["encoded"]


def test_the_same_replay_asked_for_twice_is_no_second_threshold(calibrated: Bright) -> None:
    """A client repeats a request whose answer was lost."""
    for _ in range(2):
        assert calibrated.replayed(threshold=0.1).state == "succeeded"
    assert calibrated.column("SELECT count(*) FROM calibration") == [2]


def test_a_replay_that_dies_is_carried_on(calibrated: Bright) -> None:
    with calibrated.begin() as db:
        calibrated.begin_replay(db, threshold=0.1)

    steps = 0

    def dies() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise SystemExit

    with pytest.raises(SystemExit), shown_by(dies):
        replay.advance(calibrated.begin, chunk=5)
    assert calibrated.column("SELECT count(*) FROM image WHERE status = 'quarantined'") == [10]
    with calibrated.begin() as db:
        db.execute(sa.text("UPDATE operation SET lease_until = clock_timestamp() - interval '1 s'"))
    assert replay.advance(calibrated.begin, chunk=5)
    assert calibrated.column("SELECT count(*) FROM image WHERE status = 'quarantined'") == [24]
    assert calibrated.column("SELECT state FROM operation WHERE kind = 'replay'") == ["succeeded"]


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (MemoryError("of somebody"), "failed", "internal error (MemoryError)"),
        (Unavailable("the database is away"), "running", "the database is away"),
    ],
)
def test_an_error_in_a_replay_is_told_and_does_not_ring_for_ever(
    calibrated: Bright, error: Exception, state: str, said: str
) -> None:
    with calibrated.begin() as db:
        number = calibrated.begin_replay(db, threshold=0.1).id

    def fails() -> None:
        raise error

    with shown_by(fails):
        assert replay.advance(calibrated.begin)
    assert not replay.advance(calibrated.begin)  # it has failed, or waits
    with calibrated.begin() as db:
        found = operations.get(db, number)
        assert (found.state, found.error) == (state, said)


def test_a_card_brings_its_calibrations_and_the_archives_own_override_them(bright: Bright) -> None:
    scores = np.linspace(0.4, 0.6, 50)
    brought = ood.calibrate(scores, ood.data_digest(["made up"]))
    card = replace(Card.from_json(dict(bright.published().card)), calibrations={"MG": brought})
    for _ in range(2):
        with bright.begin() as db:
            thresholds.bring(db, 1, card)
    assert bright.column("SELECT source FROM calibration") == ["card"]
    assert bright.column("SELECT threshold FROM calibration") == [brought.threshold]
    for n in range(22):
        bright.paint(n)
    bright.take()
    with bright.begin() as db:
        thresholds.calibrate(db, generations.model(db, "null"), ANNA)
        thresholds.bring(db, 1, card)
        assert calibrations.in_force(db, 1)["MG"].threshold < brought.threshold


def test_a_real_model_brings_its_threshold_and_stops_by_its_reconstruction(bright: Bright) -> None:
    """A real card, import, reconstruction error and gate; nothing is faked."""
    options = {"widths": "xs", "bits": 16, "side": 112, "head": "linear", "darf": False}
    folder = bright.folder / "models" / "tiny"
    brought = ood.calibrate(np.linspace(9.0, 9.2, 30), ood.data_digest(["made up"]))
    card = build(
        folder, "tiny", "acir", "random:0", Recipe(size=112), options=options, calibrations={"MG": brought}, graph=False
    )
    network = load(folder, runtime="torch")
    bright.encoder = lambda _model: network  # type: ignore[method-assign]
    with bright.begin() as db:
        lifecycle.add_model(db, bright.indexes, "tiny", card)
    bright.paint(0)
    bright.paint(1, 0.5)
    bright.take()
    scores = dict(zip((0, 1), bright.column("SELECT CAST(ood AS float8) FROM encoding ORDER BY image_id"), strict=True))
    judged = {n: "quarantined" if float(str(scores[n])) > brought.threshold else "encoded" for n in (0, 1)}
    assert {n: bright.status(n) for n in (0, 1)} == judged
    assert set(judged.values()) == {"quarantined", "encoded"}, scores
    assert bright.column("SELECT source FROM calibration") == ["card"]
