"""The review queue over HTTP: listing, single decisions, retries; thresholds made, replayed and shown with a query."""

import io
import logging
import sys
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import sqlalchemy as sa

from shared.encoder.base import Encoded
from shared.imaging.reasons import Reason, hostile, undecodable
from shared.log import configure
from shared.pipeline import project, replay, scan, thresholds
from shared.pipeline.identity import Found
from shared.store import calibrations, generations
from shared.store.files import Seen
from shared.store.keys import Scope
from tests.api.conftest import CANARY, png, serving

FAR = 0.25  #: an ordinary score; pictures with it have an embedding in the opposite direction


class Measuring:
    """An encoder whose scores the test sets; embeddings have a common direction, except for pictures that score FAR."""

    def __init__(self, inner, scores):
        self.inner, self.card, self.scores = inner, inner.card, scores

    def encode(self, pixels) -> Encoded:
        scores = [self.scores.pop(0) if self.scores else 0.5 + 0.001 * (i % 7) for i in range(len(pixels))]
        found = self.inner.encode(pixels)
        noise = np.stack([np.random.default_rng(crc32(one.tobytes())).standard_normal(self.card.dim) for one in pixels])
        noise[:, 0] += np.where(np.asarray(scores) == FAR, -12, 12)
        return replace(found, embeddings=noise.astype(np.float32), ood=np.asarray(scores, np.float32))


@pytest.fixture
def scores(archive, monkeypatch):
    """Scores of the next pictures, in order; ordinary scores when the list is empty."""
    coming, real = [], archive.rt.encoder
    monkeypatch.setattr(archive.rt, "encoder", lambda model: Measuring(real(model), coming))
    return coming


@pytest.fixture
def calibrated(client, archive, scores):
    for study in range(1, 7):
        archive.take_in(study)
    made = client.post("/v1/models/null-a/calibrations", json={"modality": "MG"})
    assert made.status_code == 201, made.text
    return client


@pytest.fixture
def stopped(calibrated, archive, scores):
    """A seventh study, whose first image is out of distribution."""
    scores.append(3.0)
    archive.take_in(50)
    return calibrated


def items(client, **asked):
    return client.get("/v1/quarantine", params=asked).json()["items"]


def test_the_queue_tells_gate_reason_score_and_threshold(stopped):
    (item,) = items(stopped)
    assert (item["gate"], item["reason"], item["score"], item["model"]) == (
        "features", "out-of-distribution", 3.0, "null-a",
    )  # fmt: skip
    assert 0.5 < item["threshold"] < 0.6
    assert (item["sop_instance_uid"], item["releasable"]) == ("1.2.3.50.0", True)
    assert stopped.get(item["thumbnail"]).headers["content-type"] == "image/jpeg"
    for asked in ({"gate": "features"}, {"model": "null-a"}, {"modality": "MG"}, {"since": "2020-01-01T00:00:00Z"}):
        assert len(items(stopped, **asked)) == 1
    for asked in ({"gate": "pixels"}, {"reason": "noise"}, {"modality": "CT"}, {"since": "2100-01-01T00:00:00Z"}):
        assert items(stopped, **asked) == []
    assert stopped.get("/v1/quarantine?gate=unknown").status_code == 400
    assert stopped.get("/v1/quarantine?model=nobody").status_code == 404
    studies = stopped.get("/v1/studies/1.2.3.50").json()["series"][0]["images"]
    assert {i["sop_instance_uid"]: (i["calibrated"], i["searchable"]) for i in studies} == {
        "1.2.3.50.0": (True, False), **{f"1.2.3.50.{n}": (True, True) for n in (1, 2, 3)}
    }  # fmt: skip


def test_an_image_that_passed_without_a_threshold_says_so(client, archive, scores):
    scores.append(3.0)
    archive.take_in(1)
    images = client.get("/v1/studies/1.2.3.1").json()["series"][0]["images"]
    assert {i["calibrated"] for i in images} == {False}
    told = {"calibrations": [], "without": {"MG": 4}, "wanting": {}}
    assert client.get("/v1/models/null-a/calibrations").json() == told
    assert 'similis_images_uncalibrated{modality="MG"} 4.0' in client.get("/metrics").text


def test_many_images_without_thresholds_of_this_archive_are_told(client, archive, scores, monkeypatch):
    monkeypatch.setattr(thresholds, "MANY", 24)
    scores += [0.1] * 24

    def wanting():
        return client.get("/v1/models/null-a/calibrations").json()["wanting"]

    for study in range(5):
        archive.take_in(study)
    assert wanting() == {}
    archive.take_in(5)
    assert wanting() == {"MG": 24}
    with archive.rt.transaction() as db:
        assert thresholds.wanting(db) == ("null-a", {"MG": 24})
        made = {"rule": "quantile", "threshold": 9.0, "n": 500, "data_sha256": "0" * 64}
        calibrations.add(db, generations.published(db).model_id, "MG", "card", None, **made)
    assert wanting() == {"MG": 24}, "the model's own have seen no image of here"
    assert client.post("/v1/models/null-a/calibrations").status_code == 201
    assert wanting() == {}


def test_a_release_makes_it_searchable_and_a_second_one_changes_nothing(stopped, archive):
    (item,) = items(stopped)
    for said in ("2026-01-31T08:00:00Z", 17):  # a moment before the image was stopped, and a value that is no timestamp
        refused = stopped.post(f"/v1/quarantine/{item['item']}:release", json={"since": said})
        assert refused.status_code == (409 if isinstance(said, str) else 400)
    said = {"note": "a breast, with an implant", "since": item["since"]}
    found = stopped.post(f"/v1/quarantine/{item['item']}:release", json=said)
    assert (found.status_code, found.json()["decision"], found.json()["reviewer"]) == (200, "released", "test")
    again = stopped.post(f"/v1/quarantine/{item['item']}:release")
    assert again.json() == found.json()
    refused = stopped.post(f"/v1/quarantine/{item['item']}:reject")
    assert (refused.status_code, refused.json()["detail"]) == (409, "this image was released already")
    project.drain(archive.rt.transaction, archive.rt.index, gather_s=0)
    images = stopped.get("/v1/studies/1.2.3.50").json()["series"][0]["images"]
    assert all(i["searchable"] for i in images)
    (said,) = stopped.get(f"/v1/quarantine/{item['item']}").json()["reviews"]
    assert (said["note"], said["score"]) == ("a breast, with an implant", 3.0)
    assert items(stopped) == []
    assert 'similis_quarantine_reviews_total{action="release"} 1.0' in stopped.get("/metrics").text


def test_who_may_not_review_sees_neither_the_queue_nor_the_picture(stopped, archive):
    (item,) = items(stopped)
    with serving(archive) as other:
        headers = archive.key(*(scope for scope in Scope if scope is not Scope.REVIEW))
        assert other.get("/v1/quarantine", headers=headers).status_code == 403
        assert other.post(f"/v1/quarantine/{item['item']}:release", headers=headers).status_code == 403
        assert other.get(item["thumbnail"], headers=headers).status_code == 404


def test_pages_of_the_queue_follow_each_other(stopped, archive, scores):
    for study in (51, 52):
        scores += [2.0] * 4
        archive.take_in(study)
    for n in range(3):
        seen = Seen(path=f"/{CANARY}/{n}".encode(), size=1, mtime_ns=1)
        with archive.rt.transaction() as db:
            found = [Found(seen=seen, inspected=hostile(Reason.DEFLATE_RATIO))]
            scan.register(db, found, archive.rt.rules, None)
    whole = [item["item"] for item in items(stopped)]
    assert len(whole) == 12
    paged, cursor = [], None
    while True:
        page = stopped.get("/v1/quarantine", params={"limit": 5} | ({"cursor": cursor} if cursor else {})).json()
        paged += [item["item"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == whole
    assert whole[-1].startswith("file-")
    assert stopped.get("/v1/quarantine?cursor=nonsense").status_code == 400


def test_a_file_can_only_be_retried(client, archive):
    with archive.rt.transaction() as db:
        seen = Seen(path=f"/{CANARY}.dcm".encode(), size=1, mtime_ns=1)
        scan.register(db, [Found(seen=seen, inspected=undecodable(Reason.CORRUPT))], archive.rt.rules, None)
    (item,) = items(client)
    assert (item["gate"], item["releasable"], item["thumbnail"]) == ("decode", False, None)
    for verb in ("release", "reject"):
        assert client.post(f"/v1/quarantine/{item['item']}:{verb}").status_code == 409
    assert client.post(f"/v1/quarantine/{item['item']}:retry").json() == {"images": 0, "files": 1, "held": 0}
    assert client.post("/v1/quarantine:retry", json={"reason": "corrupt-pixel-data"}).json()["files"] == 1
    assert client.post("/v1/quarantine:retry", json={}).status_code == 400
    assert client.post("/v1/quarantine/file-999:retry").status_code == 404


def test_a_replay_is_shown_before_it_is_applied(stopped, archive):
    asked = {"model": "null-a", "modality": "MG", "threshold": 4.0}
    shown = stopped.post("/v1/quarantine:replay", json=asked).json()
    assert (shown["applied"], shown["counts"]) == (False, {"admit": 1, "stay": 27})
    assert [f["sop_instance_uid"] for f in shown["admit"]] == ["1.2.3.50.0"]
    assert len(items(stopped)) == 1
    applied = stopped.post("/v1/quarantine:replay", json=asked | {"apply": True})
    assert applied.status_code == 202
    assert applied.json()["admit"] == shown["admit"]
    operation = applied.headers["Location"]
    assert stopped.get(operation).json()["phase"] == "waiting"
    assert stopped.post(f"{operation}:cancel").status_code == 409
    while replay.advance(archive.rt.transaction):
        pass
    done = stopped.get(operation).json()
    assert (done["kind"], done["state"], done["counts"]["admit"], done["progress"]) == ("replay", "succeeded", 1, 100)
    assert items(stopped) == []
    told = stopped.get("/v1/models/null-a/calibrations").json()["calibrations"]
    assert (told[0]["threshold"], told[0]["source"]) == (4.0, "given")
    assert [c["in_force"] for c in told] == [True, False]


def test_an_image_that_lies_far_away_is_told_by_its_distance_wherever_it_shows(calibrated, archive, scores):
    scores.append(FAR)
    archive.take_in(50)
    (item,) = items(calibrated, reason="far-from-known")
    assert (item["gate"], item["score"], item["explanation"][:11]) == ("features", FAR, "The picture")
    assert item["score"] < item["threshold"]
    assert item["distance"] > item["distance_threshold"] > 0
    shown = calibrated.get("/v1/studies/1.2.3.50").json()["series"][0]["images"]
    assert {i["sop_instance_uid"]: i["distance"] > item["distance_threshold"] for i in shown} == {
        "1.2.3.50.0": True, **{f"1.2.3.50.{n}": False for n in (1, 2, 3)}
    }  # fmt: skip
    (row,) = calibrated.get("/v1/models/null-a/calibrations").json()["calibrations"]
    assert (row["distances"]["threshold"], row["distances"]["n"]) == (item["distance_threshold"], 24)
    assert 'similis_images_undistanced{modality="MG"} 24.0' in calibrated.get("/metrics").text
    asked = {"model": "null-a", "modality": "MG", "distance_threshold": 1e6}
    plan = calibrated.post("/v1/quarantine:replay", json=asked).json()
    assert (plan["threshold"], plan["distance_threshold"]) == (item["threshold"], 1e6)
    (flip,) = plan["admit"]
    assert (flip["distance"], flip["reason"]) == (pytest.approx(item["distance"]), None)
    asked["distance_threshold"] = 0.5
    plan = calibrated.post("/v1/quarantine:replay", json=asked).json()
    assert {flip["reason"] for flip in plan["stop"]} == {"far-from-known"}
    said = calibrated.post(f"/v1/quarantine/{item['item']}:release").json()
    assert (said["distance"], said["distance_threshold"]) == (item["distance"], item["distance_threshold"])


def test_an_uploaded_picture_that_lies_far_away_is_told_so(calibrated, archive, scores):
    with archive.rt.transaction() as db:  # the modality of a plain picture
        db.execute(sa.text("UPDATE calibration SET modality = 'OT'"))
    for score, verdict, stops in ((0.5, "passed", []), (FAR, "stopped", ["far-from-known"])):
        scores.append(score)
        query = calibrated.post("/v1/searches?k=2", files={"file": ("x", png(), "image/png")}).json()["query"]
        told = query["gates"][2]
        assert (told["verdict"], told["score"], [stop["reason"] for stop in query["stopped_by"]]) == (
            verdict, score, stops,
        )  # fmt: skip
        assert (told["distance"] > told["distance_threshold"]) == bool(stops)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "null-a", "modality": "MG", "rule": "log", "distance_threshold": 1}, 400),
        ({"model": "null-a", "modality": "CT"}, 409),
        ({"model": "null-a", "modality": "MG", "rule": "log", "threshold": 1}, 400),
        ({"model": "null-a", "modality": "MG", "calibration": 77}, 404),
        ({"model": "null-a", "modality": "MG", "rule": "mean"}, 400),
        ({"model": "null-a", "modality": "MG", "treshold": 1}, 400),
        ({"model": "null-a", "modality": "mg!"}, 400),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(calibrated, body, status):
    assert calibrated.post("/v1/quarantine:replay", json=body).status_code == status


def test_the_gates_of_an_uploaded_picture_are_told_with_its_answer(calibrated, archive, scores):
    with archive.rt.transaction() as db:  # the modality of a plain picture
        db.execute(sa.text("UPDATE calibration SET modality = 'OT'"))
    for score, verdict in ((0.5, "passed"), (9.0, "stopped")):
        scores.append(score)
        query = calibrated.post("/v1/searches?k=2", files={"file": ("x", png(), "image/png")}).json()["query"]
        told = {gate["gate"]: gate for gate in query["gates"]}
        assert list(told) == ["metadata", "pixels", "features"]
        features = told["features"]
        assert (features["verdict"], features["score"]) == (verdict, score)
        assert 0.5 < features["threshold"] < 0.6
        stops = [stop["reason"] for stop in query["stopped_by"] if stop["gate"] == "features"]
        assert stops == ([] if verdict == "passed" else ["out-of-distribution"])
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE calibration SET modality = 'MG'"))
    scores.append(9.0)
    query = calibrated.post("/v1/searches?k=2", files={"file": ("x", png(), "image/png")}).json()["query"]
    assert query["gates"][2] | {"score": None} == {
        "gate": "features", "verdict": "uncalibrated", "reason": None, "score": None, "threshold": None,
        "distance": None, "distance_threshold": None,
    }  # fmt: skip


def test_a_note_is_shown_to_reviewers_and_stands_in_no_log(stopped, archive, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    before = logging.getLogger().handlers[:]
    configure("test")
    try:
        (item,) = items(stopped)
        answers = [
            stopped.post(f"/v1/quarantine/{item['item']}:retry", json={"note": CANARY}),
            stopped.post(f"/v1/quarantine/{item['item']}:reject", json={"note": f"{CANARY}\0"}),
            stopped.post(f"/v1/quarantine/{item['item']}:reject", json={"note": CANARY * 200}),
            stopped.post(f"/v1/quarantine/{CANARY}:reject", json={"note": CANARY}),
            stopped.get(f"/v1/quarantine?reason={CANARY}"),
            stopped.get("/v1/quarantine"),
            stopped.get("/metrics"),
        ]
        archive.encode()
        said = stopped.post(f"/v1/quarantine/{item['item']}:reject", json={"note": CANARY})
    finally:
        logging.getLogger().handlers = before
    for answer in answers:
        assert CANARY not in answer.text, answer.request.url
    assert said.status_code in (200, 409)
    assert CANARY not in stream.getvalue()
    with archive.rt.store.reading() as connection:
        audited = connection.execute(sa.text("SELECT CAST(row(audit.*) AS text) FROM audit")).scalars().all()
    assert audited
    assert not any(CANARY in row for row in audited)


def test_what_a_replay_stopped_is_found_no_more(stopped, archive):
    asked = {"model": "null-a", "modality": "MG", "threshold": 0.1, "apply": True}
    stopped.post("/v1/quarantine:replay", json=asked)
    while replay.advance(archive.rt.transaction):
        pass
    project.drain(archive.rt.transaction, archive.rt.index, gather_s=0)
    assert len(items(stopped)) == 28
    assert stopped.get("/v1/studies/1.2.3.1/similar").status_code == 409
