"""Backfill as an operation: who may begin one, from which archive, and how a worker continues it."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

import workers.pull
from services.api.app import create
from shared.config import DicomwebSource
from shared.pipeline import encode, project, pull, turns
from shared.store import operations
from shared.store.keys import Scope
from shared.types import Job, OperationKind
from tests.api.conftest import CANARY, serving
from tests.conftest import ROOT
from tests.dicomweb import RELATED, instance, related, served, sop_uid, study_uid

EVERY = {"StudyDate": "20240101-20241231"}


def allow(archive, **more):
    intake = archive.rt.settings.intake.model_copy(update=more)
    archive.rt.settings = archive.rt.settings.model_copy(update={"intake": intake})


@pytest.fixture
def client(roomy):
    with serving(roomy) as client:
        client.headers.update(roomy.key())
        yield client


@pytest.fixture
def worker(roomy, monkeypatch):
    """Runs whatever is due, with this archive's runtime."""
    monkeypatch.setattr(workers.pull, "runtime", lambda: roomy.rt)
    return workers.pull.pull_studies


@pytest.fixture
def other(postgres, migrated, models, tmp_path):
    """Another Similis with two studies of two images, on its own database, behind a real server."""
    from shared.config import Api, Database, Intake, Settings
    from tests.api.conftest import Archive, TwinRuntime
    from tests.engines import _fresh

    for url in _fresh(postgres, migrated):
        settings = Settings(
            home=tmp_path / "other", models=models, pseudonym_key="o" * 40,
            database=Database(url=url, pool_size=2), intake=Intake(reserve_mb=0), api=Api(rate_per_s=1e4, burst=10_000),
        )  # fmt: skip
        rt = TwinRuntime(settings)
        there = Archive(rt, tmp_path)
        with served(create(rt)) as address:
            yield there, f"{address}/dicom-web"
        rt.close()


@pytest.fixture
def source(roomy, other, tmp_path):
    """The other archive as a configured source of this one."""
    there, url = other
    key = there.key()
    with serving(there) as client:
        body = related(*(instance(study, n) for study in (1, 2) for n in (1, 2)))
        assert client.post("/dicom-web/studies", content=body, headers=RELATED | key).status_code == 200
    secret = tmp_path / "token"
    secret.write_text(key["Authorization"].removeprefix("Bearer "))
    allow(roomy, dicomweb_sources=(DicomwebSource(name="pacs", url=url, token_file=secret),))
    return url


def begin(client, dicomweb="pacs", **more):
    return client.post("/v1/ingest/backfills", json={"dicomweb": dicomweb, "query": EVERY} | more)


def show(client, operation_id):
    return client.get(f"/v1/operations/{operation_id}").json()


def settle(archive):
    rt = archive.rt
    encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
    project.drain(rt.transaction, rt.index, gather_s=0)
    with rt.transaction() as db:
        operations.finish_settled(db)


def test_another_archive_is_pulled_from_to_the_end(client, roomy, source, worker):
    answer = begin(client)
    assert (answer.status_code, answer.json()["kind"], answer.json()["phase"]) == (202, OperationKind.PULL, "waiting")
    assert Job.PULL in roomy.rt.queue.rung
    worker()
    settle(roomy)
    told = show(client, answer.json()["id"])
    assert (told["state"], told["done"], told["total"], told["progress"]) == ("succeeded", 4, 4, 100)
    assert told["counts"] == {"studies": 2, "pulled": 4, "held": 0, "turned_away": 0, "missing": 0, "unnamed": 0}
    assert told["outcomes"] == [{"outcome": "encoded", "gate": None, "reason": None, "explanation": None, "count": 4}]
    assert told["path"] == source
    assert client.get(f"/v1/studies/{study_uid(1)}/similar").json()["studies"]


def test_a_second_pull_brings_nothing_twice_and_a_retry_is_one(client, roomy, source, worker):
    first = begin(client).json()["id"]
    worker()
    settle(roomy)
    assert client.post(f"/v1/operations/{first}:retry").status_code == 202
    worker()
    settle(roomy)
    told = show(client, first)
    assert (told["state"], told["counts"]["pulled"], told["counts"]["held"]) == ("succeeded", 0, 4)


def test_turn_by_turn_it_goes_on_where_the_row_says(client, roomy, source, worker, monkeypatch):
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    operation_id = begin(client).json()["id"]
    worker()
    told = show(client, operation_id)
    assert (told["state"], told["done"], told["total"], told["phase"]) == ("running", 2, 4, "pulling")
    with roomy.rt.transaction() as db:
        row = operations.get(db, operation_id)
        assert (row.lease_until, row.cursor["after"]) == (None, study_uid(1))
        assert operations.due(db, OperationKind.PULL) == 1
    for _ in range(3):
        worker()
    settle(roomy)
    assert show(client, operation_id)["state"] == "succeeded"


def test_a_cancelled_pull_stops_and_keeps_what_it_has(client, roomy, source, worker, monkeypatch):
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    operation_id = begin(client).json()["id"]
    worker()
    assert client.post(f"/v1/operations/{operation_id}:cancel").json()["state"] == "cancelled"
    worker()
    assert show(client, operation_id)["done"] == 2


def test_outside_its_hours_it_rests(client, roomy, source, worker):
    now = datetime.now().astimezone()
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    operation_id = begin(client, between=closed).json()["id"]
    worker()
    assert show(client, operation_id)["done"] == 0
    with roomy.rt.transaction() as db:
        row = operations.get(db, operation_id)
        wait_s = (row.not_before - datetime.now(UTC)).total_seconds()
    assert 0 < wait_s <= turns.LOOK_S
    assert row.state == "running"


def test_an_archive_that_is_away_makes_it_wait_and_says_so(client, roomy, worker, monkeypatch):
    monkeypatch.setattr(pull, "PATIENCE_S", 0.01)
    allow(roomy, dicomweb_sources=(DicomwebSource(name="pacs", url="http://127.0.0.1:1/web"),))
    operation_id = begin(client).json()["id"]
    worker()
    told = show(client, operation_id)
    assert (told["state"], told["error"]) == ("running", "the archive does not answer (ConnectError)")


def test_only_configured_sources_are_asked(client, roomy, source):
    for address in ("http://169.254.169.254/latest", "nowhere", source + "/more"):
        assert begin(client, address).status_code == 403, address
    assert begin(client, source).status_code == 202
    assert begin(client, source + "/").status_code == 202
    assert begin(client, user="me").status_code == 400
    assert begin(client, token_file="/etc/passwd").status_code == 400


def test_where_any_source_is_allowed_its_secrets_are_named_not_sent(client, roomy, other, worker, tmp_path):
    allow(roomy, any_source=True)
    there, url = other
    secret = tmp_path / "own-token"
    secret.write_text(there.key()["Authorization"].removeprefix("Bearer "))
    answer = begin(client, url, token_file=str(secret))
    assert answer.status_code == 202
    worker()
    settle(roomy)
    told = show(client, answer.json()["id"])
    assert told["state"] == "succeeded"
    assert secret.read_text() not in json.dumps(told)
    assert str(secret) not in json.dumps(told)
    with roomy.rt.transaction() as db:
        kept = db.scalar(sa.text("SELECT params::text FROM operation"))
    assert secret.read_text() not in kept
    for address in ("ftp://host", "http://me:word@127.0.0.1/", "http://127.0.0.1/?x"):
        assert begin(client, address).status_code == 400, address


def test_a_source_that_refuses_us_ends_it(client, roomy, source, worker, tmp_path):
    (tmp_path / "token").write_text("x" * 47)
    operation_id = begin(client).json()["id"]
    worker()
    told = show(client, operation_id)
    assert (told["state"], told["error"]) == ("failed", "the archive rejects our credentials (status 401)")


def test_a_wrong_request_begins_nothing(client, source):
    for wrong in (
        {"query": {"PatientID": CANARY}}, {"query": {"StudyDate": "2024"}}, {"rate": 0}, {"between": "22-06"},
        {"query": {"StudyDate": "20240102-20240101"}}, {"between": "22:00-22:00"},
        {"query": {"StudyDate": "-"}}, {"query": {"StudyDate": ""}},
        {"query": {"StudyInstanceUID": ["1.2"], "StudyDate": "20240101"}}, {"password": CANARY},
    ):  # fmt: skip
        answer = begin(client, **wrong)
        assert answer.status_code == 400, wrong
        assert CANARY not in answer.text
    assert client.get("/v1/operations").json()["operations"] == []


def test_without_a_last_day_today_is_pulled_wherever_it_has_begun(client, roomy, source):
    """Clocks are up to 14 hours ahead of UTC."""
    operation_id = begin(client, query={}).json()["id"]
    with roomy.rt.transaction() as db:
        params = operations.get(db, operation_id).params
    assert (params["first"], date.fromisoformat(params["last"])) == (
        "1970-01-01", (datetime.now(UTC) + timedelta(hours=24)).date(),
    )  # fmt: skip


def test_to_begin_one_takes_an_admin(client, roomy, source):
    client.headers.update(roomy.key(*(scope for scope in Scope if scope is not Scope.ADMIN)))
    assert begin(client).status_code == 403


def test_the_same_idempotency_key_begins_it_once(client, source, worker):
    headers = {"Idempotency-Key": "once"}
    asked = {"dicomweb": "pacs", "query": EVERY}
    first = client.post("/v1/ingest/backfills", json=asked, headers=headers).json()["id"]
    worker()
    assert client.post("/v1/ingest/backfills", json=asked, headers=headers).json()["id"] == first


def test_what_was_erased_does_not_come_back(client, roomy, source, worker):
    begin(client)
    worker()
    settle(roomy)
    assert client.delete(f"/v1/studies/{study_uid(1)}").status_code in (200, 202)
    operation_id = begin(client).json()["id"]
    worker()
    told = show(client, operation_id)
    assert told["counts"] == {"studies": 2, "pulled": 0, "held": 2, "turned_away": 2, "missing": 0, "unnamed": 0}
    with roomy.rt.transaction() as db:
        left = set(db.scalars(sa.text("SELECT sop_uid FROM image WHERE status <> 'deleted'")))
    assert left == {sop_uid(2, 1), sop_uid(2, 2)}


WORKER = "import workers.pull; workers.pull.pull_studies()"


def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(client, roomy, source, worker, models, tmp_path):
    """The worker is a real process, killed after two of four instances."""
    operation_id = begin(client, rate=1).json()["id"]
    rt = roomy.rt
    environment = os.environ | {
        "SIMILIS_HOME": str(rt.settings.home),
        "SIMILIS_MODELS": str(models),
        "SIMILIS_PSEUDONYM_KEY": rt.settings.pseudonym_key.get_secret_value(),
        "SIMILIS_DATABASE__URL": rt.settings.database.url.get_secret_value(),
        "SIMILIS_BROKER__URL": "redis://127.0.0.1:1/0",
        "SIMILIS_INTAKE__RESERVE_MB": "0",
        "SIMILIS_INTAKE__DICOMWEB_SOURCES": json.dumps(
            [{"name": "pacs", "url": source, "token_file": str(tmp_path / "token")}]
        ),
    }
    with subprocess.Popen([sys.executable, "-c", WORKER], env=environment, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not 0 < show(client, operation_id)["done"] < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert show(client, operation_id)["state"] == "running"
    worker()
    assert show(client, operation_id)["done"] < 4  # the lease still holds
    with rt.transaction() as db:
        db.execute(sa.text("UPDATE operation SET lease_until = clock_timestamp()"))
        db.execute(sa.text("UPDATE operation SET params = params - 'rate'"))
    worker()
    settle(roomy)
    told = show(client, operation_id)
    assert (told["state"], told["done"]) == ("succeeded", 4)
    with rt.transaction() as db:
        assert db.scalar(sa.text("SELECT count(*) FROM image")) == 4
        assert db.scalar(sa.text("SELECT count(*) FROM arrival WHERE outcome = 'taken'")) == 4
