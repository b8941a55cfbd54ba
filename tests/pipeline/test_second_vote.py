"""Gate 3's second vote: an image whose embedding lies far from the known ones is stopped, whatever its error."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from shared.encoder import ood
from shared.encoder.base import Encoded, Encoder
from shared.encoder.cards import Card
from shared.encoder.ood import Gaussian
from shared.errors import Invalid
from shared.pipeline import quarantine, replay, thresholds
from shared.pipeline.judge import Standard, judge, standards, statistic
from shared.store import calibrations, encodings, generations, reviews
from shared.store.generations import Published
from shared.store.reviews import Wanted
from shared.store.tables import Calibration
from shared.types import Pixels
from tests.moves import by_hand
from tests.strange import ANNA, BORIS, Bright, Measuring, bright

__all__ = ["bright"]  # a fixture

FAR, LIGHT, BOTH = 0.1, 0.9, 0.97  #: brightness that gives a large distance, a large error, or both
UNLIKE, AWAY = "out-of-distribution", "far-from-known"


class Leaning(Measuring):
    """Embeddings lean in one direction, those of very dark or very bright pictures in the opposite one."""

    blind = False

    def encode(self, pixels: Pixels) -> Encoded:
        found, level = super().encode(pixels), pixels.mean((1, 2))
        own = found.embeddings / np.linalg.norm(found.embeddings, axis=1, keepdims=True)
        own[:, 0] += np.where((level < 0.2) | (level > 0.95), -2, 2)
        return replace(found, embeddings=own, ood=None if self.blind else found.ood)


class Blind(Leaning):
    """A model without a decoder."""

    blind = True


@pytest.fixture(params=[Leaning])
def archive(request: pytest.FixtureRequest, bright: Bright, monkeypatch: pytest.MonkeyPatch) -> Bright:
    """Forty ordinary images without calibration."""
    real = bright.encoder

    def leaning(model: Published) -> Encoder:
        measuring = real(model)
        assert isinstance(measuring, Measuring)
        made: Encoder = request.param(measuring.inner)
        return made

    monkeypatch.setattr(bright, "encoder", leaning)
    for n in range(40):
        bright.paint(n)
    bright.take()
    return bright


def calibrate(platform: Bright, **more: str) -> Calibration:
    with platform.begin() as db:
        made = thresholds.calibrate(db, generations.model(db, "null"), ANNA, **more)  # type: ignore[arg-type]
        (row,) = made.calibrations
        return row


@pytest.fixture
def calibrated(archive: Bright) -> Bright:
    calibrate(archive)
    return archive


without_decoder = pytest.mark.parametrize("archive", [Blind], indirect=True)


def stand(platform: Bright) -> list[object]:
    return platform.column(
        "SELECT CAST(row(id, status, gate, reason, score, distance, calibration_id) AS text) FROM image ORDER BY id"
    )


@pytest.mark.parametrize(
    ("score", "distance", "word", "reason"),
    [
        (0.5, 9.0, "passed", None),
        (0.5000001, 9.0, "stopped", UNLIKE),
        (0.5, 9.0000001, "stopped", AWAY),
        (0.6, 10.0, "stopped", UNLIKE),
        (0.5, float("nan"), "stopped", AWAY),
        (0.5, None, "passed", None),
        (None, 9.0, "passed", None),
        (None, 10.0, "stopped", AWAY),
        (None, None, "unmeasured", None),
    ],
)
def test_either_vote_stops_an_image(score: float | None, distance: float | None, word: str, reason: str | None) -> None:
    found = judge(score, distance, Standard(7, 0.5, 9.0))
    assert (found.verdict, found.reason, found.stops) == (word, reason, word == "stopped")
    assert judge(score, distance, None).verdict == ("unmeasured" if score is distance is None else "uncalibrated")


@pytest.mark.parametrize(("level", "reason"), [(None, None), (LIGHT, UNLIKE), (FAR, AWAY), (BOTH, UNLIKE)], ids=str)
def test_a_stranger_is_stopped_by_the_vote_that_sees_it(
    calibrated: Bright, level: float | None, reason: str | None
) -> None:
    calibrated.paint(50, level)
    calibrated.take()
    with calibrated.begin() as db:
        found = reviews.page(db, Wanted(), ("image", 2**62), 10)
    assert [item.reason for item in found] == ([reason] if reason else [])
    assert calibrated.status(50) == ("quarantined" if reason else "encoded")
    for item in found:
        assert ((item.score or 0) > (item.threshold or 9)) == (level in (LIGHT, BOTH))
        assert ((item.distance or 0) > (item.distance_threshold or 999)) == (level in (FAR, BOTH))


def test_without_the_second_vote_a_far_image_passes(calibrated: Bright) -> None:
    """Proves that no other gate stops the image."""
    with calibrated.begin() as db:
        db.execute(sa.text("UPDATE calibration SET distances = NULL, gaussian = NULL"))
    calibrated.paint(50, FAR)
    calibrated.take()
    assert calibrated.status(50) == "encoded"
    assert calibrated.column("SELECT distance FROM image WHERE sop_uid = '1.2.3.51'") == [None]
    with calibrated.begin() as db:
        assert calibrations.unjudged(db) == {"MG": 40}  # ingested before there was a calibration
        assert calibrations.unjudged(db, "distance") == {"MG": 41}


def test_the_same_images_make_the_same_calibration_whatever_came_between(calibrated: Bright) -> None:
    calibrated.paint(50, FAR)
    calibrated.take()
    again = calibrate(calibrated)
    with calibrated.begin() as db:
        first = calibrations.history(db, 1)[-1]
        assert thresholds.Numbers.stored(first) == thresholds.Numbers.stored(db.merge(again))
        assert first.distances is not None
        assert first.distances["n"] == 40
        assert calibrated.plan(rule="mean+3sd").counts == {"stay": 41}


def test_what_was_measured_at_intake_is_measured_again_at_a_replay_to_the_last_bit(calibrated: Bright) -> None:
    for n, level in ((50, None), (51, FAR), (52, LIGHT)):
        calibrated.paint(n, level)
    calibrated.take()
    before = stand(calibrated)[40:]
    calibrated.replayed()
    assert stand(calibrated)[40:] == before


def test_a_replay_of_distances_does_what_was_planned(calibrated: Bright) -> None:
    for n, level in ((50, FAR), (51, FAR), (52, LIGHT), (53, BOTH)):
        calibrated.paint(n, level)
    calibrated.take()
    before = stand(calibrated)
    tight, wide = calibrated.plan(distance_threshold=7.5), calibrated.plan(distance_threshold=1e6)
    assert stand(calibrated) == before
    assert 0 < len(tight.stop) < 40
    assert {flip.reason for flip in tight.stop} == {AWAY}
    assert all((flip.distance or 0) > 7.5 for flip in tight.stop)
    assert [flip.image_id for flip in wide.admit] == [calibrated.number(50), calibrated.number(51)]

    done = calibrated.replayed(distance_threshold=7.5)
    assert (done.state, done.counts["stop"], "admit" in done.counts) == ("succeeded", len(tight.stop), False)
    stopped = {flip.image_id for flip in tight.stop} | {calibrated.number(n) for n in (50, 51, 52, 53)}
    assert set(calibrated.column("SELECT id FROM image WHERE status = 'quarantined'")) == stopped
    assert len(calibrated.searchable()) == 44 - len(stopped)

    calibrated.replayed(distance_threshold=1e6)  # the first vote is unchanged
    assert [calibrated.status(n) for n in (50, 51, 52, 53)] == ["encoded", "encoded", "quarantined", "quarantined"]
    calibrated.replayed(threshold=2.0)  # and now the second is
    assert calibrated.column("SELECT 1 FROM image WHERE status = 'quarantined'") == []
    with calibrated.begin() as db:
        newest = calibrations.in_force(db, 1)["MG"]
    assert (newest.threshold, newest.distance) == (2.0, 1e6)


def test_an_earlier_calibration_brings_its_distances_back(calibrated: Bright) -> None:
    calibrated.replayed(distance_threshold=0.1)
    assert calibrated.searchable() == set()
    with calibrated.begin() as db:
        first = calibrations.history(db, 1)[-1]
    calibrated.replayed(calibration_id=first.id)
    assert len(calibrated.searchable()) >= 39
    with calibrated.begin() as db:
        assert thresholds.Numbers.stored(calibrations.history(db, 1)[0]) == thresholds.Numbers.stored(db.merge(first))


def test_a_persons_word_on_a_far_image_stands_with_its_numbers(calibrated: Bright) -> None:
    calibrated.paint(50, FAR)
    calibrated.take()
    with calibrated.begin() as db:
        said = quarantine.release(db, calibrated.number(50), ANNA, "an implant")
        assert (said.reason, said.distance is not None) == (AWAY, True)
        assert (said.distance or 0) > (said.distance_threshold or 1e9)
    calibrated.project()
    assert "1.2.3.51" in calibrated.searchable()
    assert calibrated.plan().counts["decided"] == 1


def test_a_modality_with_too_few_images_has_no_second_vote_and_it_is_said(calibrated: Bright) -> None:
    for n in range(60, 79):
        calibrated.paint(n, modality="US")
    calibrated.paint(79, FAR, modality="US")
    calibrated.take()
    with calibrated.begin() as db:
        by_hand(db)
        db.execute(sa.text("UPDATE image SET status = 'failed' WHERE sop_uid = '1.2.3.80'"))
        made = thresholds.calibrate(db, generations.model(db, "null"), ANNA)
        assert made.skipped == {"US": 19}
        assert [one.modality for one in made.calibrations] == ["MG"]
        assert set(standards(db, 1, {"MG", "US"})) == {"MG"}
        assert calibrations.unjudged(db, "distance")["US"] == 19


@without_decoder
def test_a_model_without_a_decoder_has_a_gate_all_the_same(archive: Bright) -> None:
    row = calibrate(archive)
    assert (row.threshold, row.mean, row.n) == (None, None, 40)
    for n, level in ((50, FAR), (51, LIGHT), (52, None)):
        archive.paint(n, level)
    archive.take()
    assert [archive.status(n) for n in (50, 51, 52)] == ["quarantined", "encoded", "encoded"]
    assert archive.column("SELECT reason FROM image WHERE status = 'quarantined'") == [AWAY]
    assert archive.plan().counts == {"stay": 43}
    assert [flip.image_id for flip in archive.plan(distance_threshold=1e6).admit] == [archive.number(50)]
    assert archive.replayed(rule="quantile").state == "succeeded"


@without_decoder
def test_a_persons_threshold_of_distances_needs_known_images(archive: Bright) -> None:
    assert archive.plan(distance_threshold=1e6).counts == {"stay": 40}
    with archive.begin() as db:
        db.execute(sa.text("UPDATE image SET modality = 'US' WHERE id > 19"))
    with pytest.raises(Invalid, match="at least 20 encoded images; there are 19"):
        archive.plan(distance_threshold=1e6)


def test_a_cine_is_as_far_as_its_frames_are_on_average(calibrated: Bright) -> None:
    for n, level in ((50, None), (51, FAR)):
        calibrated.paint(n, level, frames=5)
    calibrated.take()
    assert [calibrated.status(n) for n in (50, 51)] == ["encoded", "quarantined"]
    with calibrated.begin() as db:
        known = standards(db, 1, {"MG"})["MG"].known
        assert known is not None
        for n in (50, 51):
            rows = calibrated.column("SELECT embedding FROM encoding WHERE image_id = :id", id=calibrated.number(n))
            own = known.distances([encodings.unpack(row) for row in rows])  # type: ignore[arg-type]
            assert len(own) == 5
            (told,) = calibrated.column("SELECT distance FROM image WHERE id = :id", id=calibrated.number(n))
            assert told == pytest.approx(statistic(own))
    calibrate(calibrated)  # a multi-frame image is among the known ones
    with calibrated.begin() as db:
        row = calibrations.history(db, 1)[0]
        assert row.distances is not None
        assert row.distances["n"] == 41  # images, not frames


def test_a_card_brings_the_first_vote_only(archive: Bright) -> None:
    brought = ood.calibrate(np.linspace(0.4, 0.6, 50), ood.data_digest(["made up"]))
    card = replace(Card.from_json(dict(archive.published().card)), calibrations={"MG": brought})
    with archive.begin() as db:
        thresholds.bring(db, 1, card)
    for n, level in ((50, FAR), (51, LIGHT)):
        archive.paint(n, level)
    archive.take()
    assert [archive.status(n) for n in (50, 51)] == ["encoded", "quarantined"]
    archive.replayed(distance_threshold=9.0)
    assert [archive.status(n) for n in (50, 51)] == ["quarantined", "quarantined"]
    with archive.begin() as db:
        assert calibrations.in_force(db, 1)["MG"].threshold == brought.threshold


def test_images_that_look_all_the_same_are_known_and_others_are_not(calibrated: Bright) -> None:
    """A phantom exposed daily: embeddings without variance."""
    one = np.ones(8, np.float32)
    found = Gaussian.fit(np.tile(one, (30, 1)))
    assert max(found.distances([one, one * 3])) < 1e-3
    assert found.distances([one + np.eye(8, dtype=np.float32)[0]])[0] > 100
    assert np.isnan(found.distances([one * 0, one * np.nan, np.ones(9, np.float32)])).all()


def test_an_embedding_that_says_nothing_neither_calibrates_nor_passes(calibrated: Bright) -> None:
    with calibrated.begin() as db:
        db.execute(sa.text("UPDATE encoding SET embedding = decode(repeat('00', 128), 'hex') WHERE image_id = 1"))
    row = calibrate(calibrated)
    assert row.distances is not None
    assert (row.n, row.distances["n"]) == (40, 39)
    calibrated.replayed()
    assert calibrated.column("SELECT row(status, reason, distance) FROM image WHERE id = 1") == [
        ("quarantined", AWAY, None)
    ]


def test_what_names_a_foreign_calibration_is_measured_anew_and_not_moved(calibrated: Bright) -> None:
    for n, level in ((50, FAR), (51, None)):
        calibrated.paint(n, level)
    calibrated.take()
    before = stand(calibrated)[40:]
    with calibrated.begin() as db:
        db.execute(sa.text("UPDATE image SET score = NULL, distance = NULL, calibration_id = NULL WHERE id > 40"))
        replay.measure_again(db, [calibrated.number(50), calibrated.number(51)])
    assert stand(calibrated)[40:] == before
    with calibrated.begin() as db:
        assert quarantine.reject(db, calibrated.number(50), BORIS).reason == AWAY


def test_what_distances_are_measured_from_is_read_once_for_each_calibration(calibrated: Bright) -> None:
    with calibrated.begin() as db:
        first, again = (standards(db, 1, {"MG"})["MG"] for _ in range(2))
        assert first.known is again.known
    calibrated.paint(50)
    calibrated.take()
    calibrate(calibrated)
    with calibrated.begin() as db:
        newer = standards(db, 1, {"MG"})["MG"]
        assert newer.known is not None
        assert first.known is not None
        assert newer.known.pack() != first.known.pack()
        stored = calibrations.gaussians(db, [first.calibration_id, newer.calibration_id])
    assert stored == {first.calibration_id: first.known.pack(), newer.calibration_id: newer.known.pack()}
