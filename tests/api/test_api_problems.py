"""Refusals have one shape and one table, and repeat nothing of the request."""

import base64
import re
import time

import pytest
from fastapi.testclient import TestClient

import shared.errors
from services.api import errors
from services.api.app import create
from services.api.routes import health
from services.api.schemas import WRITTEN
from services.embedded.postgres import Postgres
from shared.errors import Gate, Outcome, Rejected, SimilisError, Throttled, Unavailable
from shared.store import generations
from tests.api.conftest import serving


def test_every_error_has_its_place_in_the_table():
    kinds = [v for v in vars(shared.errors).values() if isinstance(v, type) and issubclass(v, SimilisError)]
    assert set(kinds) <= set(errors.KINDS)


def test_statuses_say_what_the_caller_can_do():
    listed = {kind.__name__: errors.KINDS[kind].status for kind in errors.KINDS}
    assert listed == {
        "Invalid": 400, "Rejected": 422, "TooLarge": 413, "UnsupportedMedia": 415, "NotAcceptable": 406, "Full": 507,
        "NotFound": 404, "Gone": 410, "Conflict": 409, "Denied": 403, "Unidentified": 401,
        "Throttled": 429, "Unavailable": 503, "SimilisError": 500,
    }  # fmt: skip


def test_a_problem_has_every_member(client):
    refused = client.get("/v1/studies/1.2.99/similar")
    body = refused.json()
    assert refused.headers["content-type"] == "application/problem+json"
    assert body | {"trace_id": ""} == {
        "type": "urn:similis:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "no such study",
        "instance": "/v1/studies/{study_instance_uid}/similar",
        "code": "not-found",
        "trace_id": "",
        "errors": [],
    }
    assert body["trace_id"] == refused.headers["x-trace-id"]


def test_a_wrong_field_is_named_and_its_value_is_not_repeated(client):
    refused = client.get("/v1/studies/1.2.3/similar?k=SECRETVALUE&StudyDate=SECRETVALUE&SECRET-VALUE=1")
    assert refused.status_code == 400
    assert "SECRET" not in refused.text
    assert {e["where"] for e in refused.json()["errors"]} == {"query.k", "query.StudyDate", "query.?"}


def test_very_many_wrong_fields_are_not_all_told(client):
    unknown = {f"name{number}": 1 for number in range(20_000)}
    refused = client.post("/v1/searches", json={"studies": ["1.2"]} | unknown)
    assert (refused.status_code, len(refused.json()["errors"])) == (400, errors.MOST_TOLD)


@pytest.mark.parametrize("values", ["," * 100_000, [""] * 100_000])
def test_a_list_that_is_too_long_is_one_error(client, values):
    refused = client.post("/v1/searches", json={"studies": ["1.2"], "Modality": values})
    assert refused.status_code == 400
    assert [e["message"] for e in refused.json()["errors"]] == ["a list may have at most 200 values"]


@pytest.mark.parametrize(
    ("method", "address", "body", "where"),
    [
        ("POST", "/v1/searches", {"studies": ["1.2"], "k": True}, "body.k"),
        ("POST", "/v1/searches", {"studies": ["1.2"], "radius": False}, "body.radius"),
        ("POST", "/v1/searches", {"studies": ["1.2"], "birads": [4, True]}, "body.birads"),
        ("GET", "/v1/studies/1.2/similar?k=true", None, "query.k"),
        ("POST", "/v1/generations", {"model": "null-a", "throttle": True}, "body.throttle"),
        ("POST", "/v1/keys", {"name": "viewer", "scopes": ["read"], "days": True}, "body.days"),
        ("POST", "/v1/ingest/backfills", {"dicomweb": "http://pacs", "rate": True}, "body.rate"),
    ],
)
def test_true_is_no_number(client, method, address, body, where):
    refused = client.request(method, address, json=body)
    assert refused.status_code == 400
    assert [e["where"] for e in refused.json()["errors"]] == [where]


MALFORMED = (
    ("GET", "/v1/studies/SECRET/similar", None),
    ("GET", "/v1/operations/SECRET", None),
    ("GET", "/v1/generations/SECRET", None),
    ("GET", "/v1/studies?status=SECRET", None),
    ("GET", "/v1/studies?cursor=SECRET", None),
    ("GET", "/v1/studies?birads=SECRET", None),
    ("GET", "/v1/models/SECRET%00", None),
    ("GET", "/v1/models/null-a/calibrations?modality=%00SECRET", None),
    ("GET", "/v1/studies/1.2.3/similar?StudyDate=2024010120241231", None),
    ("GET", "/v1/studies/1.2.3/similar?StudyDate=20241231-20240101", None),
    ("GET", "/dicom-web/studies?StudyDate=20241231-20240101", None),
    ("POST", "/v1/ingest/scans", {"path": "SECRET"}),
    ("POST", "/v1/ingest/scans", {"path": "/SECRET\0"}),
    ("POST", "/v1/ingest/scans", {"path": "/SECRET"}),
    ("POST", "/v1/ingest/scans", {"SECRET": "/x"}),
    ("POST", "/v1/models", {"card": "../SECRET"}),
    ("POST", "/v1/keys", {"name": "x", "scopes": ["SECRET"]}),
    ("POST", "/v1/searches", {"studies": ["SECRET"]}),
    ("POST", "/v1/searches", {"studies": []}),
    ("POST", "/v1/searches", {"studies": ["1.2"], "k": "SECRET"}),
    ("POST", "/v1/searches", ["SECRET"]),
)


def test_what_is_malformed_is_a_400_without_the_value(client):
    for method, address, body in MALFORMED:
        refused = client.request(method, address, json=body)
        assert refused.status_code == 400, (address, refused.text)
        assert "SECRET" not in refused.text, address


OF_PYDANTIC = re.compile(
    r"\b(input|string|list|value)s? should\b|field required|\bvalid (int|uuid|bool)\b|\^", re.IGNORECASE
)


def test_what_is_malformed_is_told_in_words_of_our_own(client):
    for method, address, body in MALFORMED:
        for error in client.request(method, address, json=body).json()["errors"]:
            assert not OF_PYDANTIC.search(error["message"]), (address, error)


def test_every_pattern_that_a_caller_can_miss_has_words(client):
    def patterns(part):
        for name, inside in part.items() if isinstance(part, dict) else enumerate(part):
            if name == "pattern" and isinstance(inside, str):
                yield inside
            elif isinstance(inside, dict | list):
                yield from patterns(inside)

    described = client.get("/openapi.json").json()
    described["paths"] = {path: what for path, what in described["paths"].items() if path.startswith("/v1/")}
    assert set(patterns(described)) - WRITTEN.keys() == set()


def test_a_misspelt_filter_is_refused_and_the_right_name_is_offered(client):
    refused = client.get("/v1/studies/1.2.3/similar?Modalty=MG")
    assert refused.json()["errors"][0]["message"] == "unknown name; do you mean Modality?"


@pytest.mark.parametrize(
    ("address", "body", "meant"),
    [
        ("/v1/models/null-a:hash", {"name": "other", "bitss": 8}, "bits"),
        ("/v1/dead-letters:retry", {"kindd": "image"}, "kind"),
        ("/v1/ingest/backfills", {"dicomwebb": "pacs"}, "dicomweb"),
        ("/v1/quarantine:retry", {"modalityy": "MG"}, "modality"),
    ],
)
def test_the_right_name_is_offered_wherever_one_is_misspelt(client, address, body, meant):
    told = client.post(address, json=body).json()["errors"]
    assert f"unknown name; do you mean {meant}?" in [one["message"] for one in told]


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/v1/operations?state=failed"),
        ("GET", "/v1/models?name=null-a"),
        ("GET", "/v1/models/null-a/calibrations?modalty=MG"),
        ("GET", "/v1/generations?model=null-a"),
        ("GET", "/v1/studies/1.2.3/journal?cursor=x"),
        ("GET", "/v1/instances/1.2.3/rendered?frames=2"),
        ("POST", "/v1/generations/1:publish?force=true"),
        ("DELETE", "/v1/studies/1.2.3?dry_run=true"),
    ],
)
def test_a_parameter_that_a_route_does_not_have_is_refused_and_not_ignored(client, method, address):
    refused = client.request(method, address)
    assert refused.status_code == 400, refused.text
    assert [one["where"] for one in refused.json()["errors"]] == ["query.?"]
    assert client.get("/v1/operations?limit=1").status_code == 200


def test_only_a_name_that_the_route_has_is_offered_in_place_of_one_that_it_does_not(client):
    def told(name):
        return client.get(f"/v1/operations?{name}=1").json()["errors"][0]["message"]

    assert told("limt") == "unknown name; do you mean limit?"
    assert told("state") == "unknown name"  # the attribute of studies is named `status`


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/v1/models", "folder"),
        ("/v1/generations/1:throttle", "rate"),
        ("/v1/searches", "study_instance_uid"),
        ("/v1/ingest/scans", "patient_id"),
    ],
)
def test_a_name_that_only_another_route_has_is_not_offered(client, address, name):
    told = client.post(address, json={name: "x"}).json()["errors"]
    assert "unknown name" in [one["message"] for one in told]


@pytest.mark.parametrize(
    "address",
    [
        "/v1/studies/1.2.3/similar?StudyDate=20240101-&StudyDate=20250101-",
        "/v1/studies?StudyDate=20240101-&StudyDate=20250101-",
        "/v1/quarantine?gate=pixels&gate=metadata",
        "/v1/operations?limit=1&limit=2",
    ],
)
def test_of_two_values_of_one_parameter_none_is_ignored(client, address):
    (told,) = client.get(address).json()["errors"]
    assert told["message"] == "is given more than once, but takes one value"


def test_a_rule_of_ours_is_told_in_our_words_alone(client):
    (told,) = client.get("/v1/studies?StudyDate=20250101-20240101").json()["errors"]
    assert told["message"] == "the date range ends before it begins"


def test_a_list_may_still_be_repeated(client):
    assert client.get("/v1/studies?birads=4&birads=5&ModalitiesInStudy=MG&ModalitiesInStudy=CT").status_code == 200


BEYOND = 2**63  #: the least integer beyond a bigint column


@pytest.mark.parametrize(
    ("method", "address", "body"),
    [
        ("GET", f"/v1/generations/{BEYOND}", None),
        ("POST", f"/v1/generations/{BEYOND}:publish", None),
        ("GET", "/v1/generations/0", None),
        ("DELETE", f"/v1/keys/{BEYOND}", None),
        ("POST", "/v1/quarantine:replay", {"model": "null-a", "modality": "MG", "calibration": BEYOND}),
        *(
            ("GET", f"{address}?cursor={base64.urlsafe_b64encode(b's%d' % number).decode().rstrip('=')}", None)
            for address in ("/v1/audit", "/v1/studies", "/v1/operations")
            for number in (BEYOND, 10**18)
            if address == "/v1/operations" or number == BEYOND
        ),
    ],
)
def test_a_number_that_no_row_can_have_is_a_400(client, method, address, body):
    refused = client.request(method, address, json=body)
    assert refused.status_code == 400, refused.text


def test_a_body_that_is_not_sent_as_json_is_told_how_to_be_sent(client):
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):  # curl's default
        refused = client.post("/v1/keys", content=b'{"name": "SECRET", "scopes": ["read"]}', headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported-media")
        assert "Content-Type: application/json" in refused.json()["detail"]
        assert "SECRET" not in refused.text


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b"[" * 100_000])
def test_a_body_that_cannot_even_be_parsed_is_told_so(client, body):
    refused = client.post("/v1/keys", content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["detail"][:20]) == (400, "the body is not JSON")


def test_broken_json_is_a_400(client):
    for address in ("/v1/searches", "/v1/keys"):
        refused = client.post(address, content=b'{"SECRET', headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert "SECRET" not in refused.text


def test_unknown_addresses_and_methods_are_problems_too(client):
    assert client.get("/nowhere").json()["code"] == "not-found"
    refused = client.delete("/v1/models")
    assert (refused.status_code, refused.json()["code"]) == (405, "method-not-allowed")
    assert refused.headers["Allow"] == "GET, HEAD, POST"
    assert client.put("/v1/studies/1.2.3").headers["Allow"] == "DELETE, GET, HEAD"


def test_head_answers_as_get_does_but_without_the_body(client, filled):
    for address in ("/livez", "/docs", "/v1/studies/1.2.3.1", "/v1/instances/1.2.3.1.0/thumbnail", "/v1/nothing"):
        asked, got = client.head(address), client.get(address)
        assert (asked.status_code, asked.content) == (got.status_code, b""), address
        for name in ("content-type", "content-length", "x-content-type-options"):
            assert asked.headers[name] == got.headers[name], address
    assert 'method="HEAD",route="/livez"' in client.get("/metrics").text


def test_an_unexpected_error_is_a_500_without_its_text(client, monkeypatch, capsys, caplog):
    def fail(*_):
        raise RuntimeError("SECRET")

    monkeypatch.setattr(generations, "models", fail)
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.json()["code"]) == (500, "internal")
    assert refused.headers["x-content-type-options"] == "nosniff"
    logged = capsys.readouterr()
    assert "SECRET" not in refused.text
    assert refused.json()["trace_id"] in logged.out + logged.err + caplog.text


def test_a_busy_place_says_when_to_come_back(archive):
    app = create(archive.rt)

    def raises(error):
        def fail():
            raise error

        return fail

    for name, error in (
        ("busy", Unavailable("x", 7)),
        ("fast", Throttled("x", 3)),
        ("bad", Rejected(Outcome.QUARANTINED, "memory-limit", Gate.LIMITS)),
    ):
        app.get(f"/{name}")(raises(error))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/busy").headers["Retry-After"] == "7"
        assert client.get("/fast").headers["Retry-After"] == "3"
        body = client.get("/bad").json()
        assert (body["status"], body["gate"], body["reason"]) == (422, "limits", "memory-limit")
        assert body["explanation"]


def test_a_commit_that_fails_is_told_to_the_client(archive, postgres, database_url):
    with serving(archive) as client:
        key = archive.key()
        client.get("/v1/keys", headers=key)
        import sqlalchemy as sa

        with archive.rt.transaction() as db:  # a deferred constraint, checked at commit
            db.execute(
                sa.text(
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '57P03'; END $$"
                )
            )
            db.execute(
                sa.text(
                    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON api_key DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION refuse()"
                )
            )
        refused = client.post("/v1/keys", json={"name": "never", "scopes": ["read"]}, headers=key)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
        assert "never" not in client.get("/v1/keys", headers=key).text


def test_while_postgres_is_away_it_is_a_503_and_then_a_200_again(archive, tmp_path):
    quick = {"fsync": "off", "synchronous_commit": "off"}
    folder = tmp_path / "pg"
    folder.mkdir()
    from migrations import run

    with Postgres(folder, quick) as server:
        run.upgrade(server.url_of("similis"))
        rt = type(archive.rt)(
            archive.rt.settings.model_copy(
                update={
                    "database": archive.rt.settings.database.model_copy(
                        update={"url": type(archive.rt.settings.database.url)(server.url_of("similis"))}
                    )
                }
            )
        )
        other = type(archive)(rt, tmp_path)
        client = serving(other)
        client.__enter__()
        key = other.key()
        assert client.get("/v1/models", headers=key).status_code == 200
    try:
        refused = client.get("/v1/models", headers=key)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/livez").status_code == 200
        time.sleep(health.REMEMBERED_S)
        assert client.get("/readyz").status_code == 503
        with Postgres(folder, quick):
            assert client.get("/v1/models", headers=key).status_code == 200
            client.__exit__(None, None, None)
    finally:
        rt.close()
