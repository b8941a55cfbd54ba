"""Generations over HTTP: built beside the live one, published, rolled back, retired; refusals state the numbers."""

import pytest
import sqlalchemy as sa

from shared.pipeline import canary, catchup, project, reindex
from shared.store import coverage
from shared.store.keys import Scope
from shared.types import Job
from tests.api.conftest import Painter, serving

#: Counts transactions that have written or hold an exclusive lock.
LOCKED = sa.text(
    "SELECT count(*) FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend') "
    "AND ((locktype = 'advisory' AND mode = 'ExclusiveLock') OR (locktype = 'relation' AND mode = 'RowExclusiveLock'))"
)


@pytest.fixture
def two_models(client, archive):
    for study in (1, 2, 3):
        archive.take_in(study)
    assert client.post("/v1/models", json={"card": "null-b"}).status_code == 201
    return client


def work(archive, rounds=6):
    """Runs the workers in this thread."""
    rt = archive.rt
    for _ in range(rounds):
        with rt.transaction() as db:
            db.execute(sa.text("UPDATE operation SET not_before = NULL"))
        reindex.advance(rt.transaction, rt.index)
        catchup.drain(rt.transaction, Painter(), rt.encoder, rt.effort)
        project.drain(rt.transaction, rt.index, gather_s=0)


def test_a_generation_tells_how_much_it_holds(client, archive):
    archive.take_in(1)
    (listed,) = client.get("/v1/generations").json()["generations"]
    assert listed["coverage"] == {"applied": 4, "pending": 0, "failed": 0, "ratio": 1.0}
    told = {name: listed[name] for name in ("id", "model", "live", "rollback_target", "state", "progress", "recall")}
    assert told == {
        "id": 1, "model": "null-a", "live": True, "rollback_target": False, "state": "ready", "progress": 100,
        "recall": None,
    }  # fmt: skip
    shown = client.get("/v1/generations/1").json()
    assert listed.items() <= shown.items()
    assert shown["index"] == {"points": 4, "indexed": 4}
    assert shown["images"] == {"total": 4, "covered": 4, "coming": 0, "exceptions": 0, "by_reason": {"covered": 4}}
    assert client.get("/v1/generations/7").status_code == 404


def test_the_canary_is_told_and_measured(client, archive):
    for study in (1, 2, 3):
        archive.take_in(study)
    assert client.get("/v1/generations/1").json()["canary"] is None
    canary.ask(archive.rt.transaction, archive.rt.index, 300.0)
    told = client.get("/v1/generations/1").json()["canary"]
    assert (told["recall"], told["k"]) == (1.0, 10)
    assert 1 <= told["queries"] <= canary.QUERIES
    assert client.get("/v1/generations").json()["generations"][0]["canary"] == told
    assert 'similis_ann_recall_ratio{k="10",model="null-a"} 1.0' in client.get("/metrics").text


def test_while_the_engine_is_away_the_generation_is_still_told(client, archive):
    archive.rt.indexes.drop("g1-m1")
    archive.rt._indexes.clear()
    assert client.get("/v1/generations/1").json()["index"] is None


def test_the_archive_changes_its_model_and_back(two_models, archive):
    client = two_models
    begun = client.post("/v1/generations", json={"model": "null-b", "m": 8, "throttle": 1000})
    assert (begun.status_code, begun.headers["Location"]) == (202, "/v1/generations/2")
    assert Job.REINDEX in archive.rt.queue.rung
    body = begun.json()
    assert (body["state"], body["progress"], body["spec"]["m"], body["throttle"]) == ("building", 0, 8, 1000.0)
    refused = client.post("/v1/generations/2:publish")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "not filled yet" in refused.json()["detail"]
    work(archive)
    built = client.get("/v1/generations/2").json()
    assert (built["state"], built["progress"], built["live"]) == ("ready", 100, False)
    assert built["recall"] == {"recall": 1.0, "k": 10, "sample": 12, "points": 12}
    operation = client.get(f"/v1/operations/{built['operation']}").json()
    assert (operation["kind"], operation["state"], operation["done"]) == ("reindex", "succeeded", 12)
    before = client.get("/v1/studies/1.2.3.1/similar?k=1").json()
    assert client.post("/v1/generations/2:publish").json()["live"] is True
    after = client.get("/v1/studies/1.2.3.1/similar").json()
    assert (after["generation"], after["model"]["name"]) == (2, "null-b")
    stale = client.get("/v1/studies/1.2.3.1/similar", params={"k": 1, "cursor": before["next"]})
    assert (stale.status_code, "stale" in stale.json()["detail"]) == (409, True)
    assert client.get("/v1/generations/1").json()["rollback_target"] is True
    assert client.post("/v1/generations/1:rollback").status_code == 409  # not published
    assert client.post("/v1/generations/2:rollback").json()["id"] == 1
    assert client.get("/v1/studies/1.2.3.1/similar").json()["model"]["name"] == "null-a"
    assert client.post("/v1/generations/2:retire").status_code == 409
    assert client.post("/v1/generations/2:retire", json={"force": True}).json()["state"] == "retiring"
    assert client.post("/v1/generations/1:retire", json={"force": True}).status_code == 409


def test_pause_resume_and_cancel(two_models, archive):
    client = two_models
    client.post("/v1/generations", json={"model": "null-b"})
    assert client.post("/v1/generations/2:pause").json()["state"] == "paused"
    work(archive, rounds=1)
    assert client.get("/v1/generations/2").json()["coverage"]["applied"] == 0
    assert client.post("/v1/generations/2:resume").json()["state"] == "building"
    assert client.post("/v1/generations/2:cancel").json()["state"] == "retiring"
    assert client.post("/v1/generations/2:resume").status_code == 409
    assert client.post("/v1/generations/1:cancel").status_code == 409
    assert client.post("/v1/generations/1:pause").status_code == 409  # no build is running


def test_the_same_idempotency_key_begins_one_generation(two_models):
    sent = [
        two_models.post("/v1/generations", json={"model": "null-b"}, headers={"Idempotency-Key": "one"})
        for _ in range(2)
    ]
    assert [answer.json()["id"] for answer in sent] == [2, 2]
    other = two_models.post("/v1/generations", json={"model": "null-a"}, headers={"Idempotency-Key": "one"})
    assert other.status_code == 409
    assert len(two_models.get("/v1/generations").json()["generations"]) == 2


def test_a_gate_that_no_column_could_hold_is_rounded(two_models):
    begun = two_models.post("/v1/generations", json={"model": "null-b", "gate": 5e-324})
    assert (begun.status_code, begun.json()["gate"]) == (202, 0.0)


def test_what_it_lacks_is_named_and_can_be_accepted_by_name(two_models, archive):
    client = two_models
    client.post("/v1/generations", json={"model": "null-b"})
    work(archive)
    with archive.rt.transaction() as db:
        db.execute(
            sa.text(
                "UPDATE ledger SET state = 'failed', last_error = 'refused' WHERE generation_id = 2 AND image_id = 3"
            )
        )
    shown = client.get("/v1/generations/2").json()
    assert (shown["state"], shown["progress"]) == ("ready", 91)
    (lacking,) = shown["exceptions"]
    assert (lacking["image"], lacking["reason"]) == (3, "refused")
    assert shown["images"]["exceptions"] == 1
    refused = client.post("/v1/generations/2:publish")
    assert "covers 11 of 12 images" in refused.json()["detail"]
    assert lacking["sop_instance_uid"] not in refused.text
    accepted = client.post("/v1/generations/2:publish", json={"accept": [lacking["sop_instance_uid"]]})
    assert accepted.json()["live"] is True
    assert client.post("/v1/generations/2:rollback").json()["id"] == 1
    assert client.post("/v1/generations/2:retire", json={"force": True}).status_code == 202
    entries = client.get("/v1/audit").json()["entries"]
    assert [(one["action"], one["details"]) for one in entries[:3]] == [
        ("generation-retire", {"generation": 2}),
        ("generation-rollback", {"generation": 1}),
        ("generation-publish", {"generation": 2, "accepted": [3]}),
    ]


def test_a_generation_is_at_100_percent_only_where_it_lacks_nothing(two_models, archive):
    client = two_models
    client.post("/v1/generations", json={"model": "null-b"})
    reindex.advance(archive.rt.transaction, archive.rt.index)
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE catch_up SET state = 'failed', reason = 'encoder-error' WHERE image_id = 3"))
    work(archive)
    built = client.get("/v1/generations/2").json()
    assert (built["state"], built["images"]["exceptions"], built["progress"]) == ("ready", 1, 91)
    client.post("/v1/generations/2:resume")
    work(archive)
    built = client.get("/v1/generations/2").json()
    assert (built["state"], built["images"]["exceptions"], built["progress"]) == ("ready", 0, 100)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"model": "null-b", "m": 1}, 400),
        ({"model": "null-b", "metric": "hamming"}, 400),
        ({"model": "null-b", "trottle": 3}, 400),
        ({"model": "null-b", "throttle": 0}, 400),
    ],
)
def test_a_wrong_request_opens_nothing(two_models, body, status):
    refused = two_models.post("/v1/generations", json=body)
    assert refused.status_code == status
    assert len(two_models.get("/v1/generations").json()["generations"]) == 1


def test_the_pace_of_a_build_is_set_while_it_runs(two_models):
    asked = {"model": "null-b", "throttle": 5, "between": "20:00-06:00"}
    body = two_models.post("/v1/generations", json=asked).json()
    assert (body["throttle"], body["between"]) == (5.0, "20:00-06:00")
    for change, expected in (
        ({"per_s": 50}, (50.0, "20:00-06:00")),
        ({"between": None}, (50.0, None)),
        ({"per_s": None, "between": "01:00-02:30"}, (None, "01:00-02:30")),
    ):
        answer = two_models.post("/v1/generations/2:throttle", json=change)
        assert (answer.status_code, answer.json()["throttle"], answer.json()["between"]) == (200, *expected)
    for wrong in ({"per_s": 0}, {"between": "25:00-01:00"}, {"between": "01:00-01:00"}, {"rate": 1}):
        assert two_models.post("/v1/generations/2:throttle", json=wrong).status_code == 400
    assert two_models.post("/v1/generations/99:throttle", json={"per_s": 1}).status_code == 404


def test_nobody_waits_while_the_answer_counts(two_models, archive, monkeypatch):
    """Counting coverage takes half a minute on a large archive; no lock may be held meanwhile."""
    client, count, held = two_models, coverage.count, []

    def counting(db, *of):
        with archive.rt.store.reading() as connection:
            held.append(connection.execute(LOCKED).scalar_one())
        return count(db, *of)

    def act(path, **body):
        with monkeypatch.context() as patched:
            patched.setattr(coverage, "count", counting)
            assert client.post(f"/v1/generations{path}", json=body).status_code in (200, 202)

    act("", model="null-b")
    act("/2:pause")
    act("/2:resume")
    act("/2:throttle", per_s=500)
    work(archive)
    act("/2:publish")
    act("/2:rollback")
    act("/2:retire", force=True)
    assert held == [0] * 7


def test_a_build_is_steered_by_its_generation(two_models, archive):
    operation = two_models.post("/v1/generations", json={"model": "null-b"}).json()["operation"]
    with serving(archive) as client:
        headers = archive.key(Scope.REINDEX)
        assert client.get(f"/v1/operations/{operation}", headers=headers).json()["phase"] == "waiting"
    for verb in ("cancel", "retry"):
        assert two_models.post(f"/v1/operations/{operation}:{verb}").status_code == 409
