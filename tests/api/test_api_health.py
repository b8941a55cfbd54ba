"""Health probes, metrics, documents and headers."""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest
import sqlalchemy as sa
import structlog
from fastapi import Response
from typing_extensions import is_typeddict

from services.api import auth, metrics
from services.api.app import ROUTERS
from services.api.routes import health
from shared.errors import Unavailable
from shared.pipeline import hashes
from shared.process import until
from shared.store import operations
from shared.store.keys import Scope
from shared.types import OperationKind, OperationState
from shared.version import software
from tests.api.conftest import serving

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture
def away(archive):
    """A function that makes a part of the runtime unreachable."""

    def fail():
        raise Unavailable("away")

    def take(part):
        target = {"vectors": archive.rt.indexes, "broker": archive.rt.queue, "postgres": archive.rt.store}[part]
        target.ping = fail

    return take


def ready(archive):
    with serving(archive) as client:
        answer = client.get("/readyz")
        assert client.get("/livez").json() == {"status": "alive"}
        return answer.status_code, answer.json()


def test_ready_names_each_part_the_model_and_the_version(archive):
    parts = dict.fromkeys(("postgres", "vectors", "broker"), "ready")
    assert ready(archive) == (
        200,
        {"status": "ready", "parts": parts, "model": "null-a", "version": software()},
    )


def test_a_missing_broker_degrades_and_no_more(archive, away):
    away("broker")
    code, body = ready(archive)
    assert (code, body["status"], body["parts"]["broker"]) == (200, "degraded", "away")


@pytest.mark.parametrize("part", ["postgres", "vectors"])
def test_without_an_engine_it_is_not_ready(archive, away, part):
    away(part)
    code, body = ready(archive)
    assert (code, body["status"], body["parts"][part]) == (503, "unavailable", "away")


def test_metrics_tell_what_is_done_and_what_waits(client, filled):
    client.get("/v1/studies/1.2.3.1/similar")
    client.post("/v1/generations", json={"model": "null-a"})  # nobody builds it
    filled.rt.settings.home.mkdir()
    text = client.get("/metrics").text
    route = "/v1/studies/{study_instance_uid}/similar"
    for line in (
        f'similis_http_request_duration_seconds_count{{code="200",method="GET",route="{route}"}} 1.0',
        'similis_search_duration_seconds_count{backend="memory",stage="total"} 1.0',
        'similis_search_results_hidden_total{reason="excluded"} 2.0',
        'similis_images{status="encoded"} 48.0',
        'similis_images{status="failed"} 0.0',
        'similis_queue_depth{queue="ingest"} 0.0',
        'similis_queue_depth{queue="reindex"} 0.0',
        'similis_index_coverage_ratio{generation="1",model="null-a",published="yes"} 1.0',
        'similis_index_coverage_ratio{generation="2",model="null-a",published="no"} 1.0',
        "similis_database_up 1.0",
    ):
        assert line in text.splitlines(), line
    aged = re.findall(r'^similis_queue_oldest_age_seconds\{queue="(\w+)"\} ', text, re.MULTILINE)
    assert aged == ["scan", "ingest", "index"]  # work beside the live index has no age
    assert "similis_build_info{version=" in text
    for place in ("home", "models"):  # of the embedded stack the home holds database and vectors
        assert re.search(rf'^similis_disk_free_bytes\{{place="{place}"\}} [1-9]', text, re.MULTILINE)
    assert "1.2.3." not in text


def test_scans_and_pulls_that_nobody_takes_grow_old(client, archive):
    """As when the scan worker or the broker has stopped: no image waits, so no other figure shows it."""
    with archive.rt.transaction() as db:
        for kind, age_s in ((OperationKind.SCAN, 60), (OperationKind.PULL, 700), (OperationKind.SCAN, 900)):
            begun = operations.create(db, kind, {})
            begun.created_at = sa.func.clock_timestamp() - sa.text(f"interval '{age_s} s'")
        begun.lease_until = sa.func.clock_timestamp() - sa.text("interval '30 s'")  # its worker was lost just now
    text = client.get("/metrics").text
    assert 'similis_queue_depth{queue="scan"} 3.0' in text
    found = re.search(r'^similis_queue_oldest_age_seconds\{queue="scan"\} ([\d.]+)', text, re.MULTILINE)
    assert found
    assert 700 <= float(found[1]) < 800


def test_a_watch_that_has_failed_at_night_is_counted(client, archive):
    """Nothing waits then and no image has failed, so that no other figure shows it."""
    with archive.rt.transaction() as db:
        operations.create(db, OperationKind.SCAN, {"watch": True}).state = OperationState.FAILED
        operations.create(db, OperationKind.SCAN, {}).state = OperationState.SUCCEEDED
    told = [line for line in client.get("/metrics").text.splitlines() if line.startswith("similis_operations_failed")]
    assert 'similis_operations_failed{kind="scan"} 1.0' in told
    assert 'similis_operations_failed{kind="erase"} 0.0' in told, "a rise from nothing would not be seen"


def test_a_scrape_waits_for_no_count_and_tells_how_old_its_numbers_are(client, archive, monkeypatch):
    archive.take_in(1)

    def told(text, name):
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        return float(line.rpartition(" ")[2])

    def scrape():
        text = client.get("/metrics").text
        return told(text, 'similis_images{status="encoded"}'), told(text, "similis_database_reading_age_seconds")

    assert scrape()[0] == 4
    archive.take_in(2)
    time.sleep(0.2)
    images, age_s = scrape()
    assert (images, age_s >= 0.2) == (4, True), "it stands for a while"
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    monkeypatch.setattr(metrics, "SHARE", 1e9)
    with ThreadPoolExecutor(1) as beside, archive.rt.store.engine.begin() as other:
        other.execute(sa.text("LOCK TABLE image IN ACCESS EXCLUSIVE MODE"))  # blocks every count
        assert beside.submit(scrape).result(timeout=10)[0] == 4
    assert until(lambda: scrape()[0] == 8, 5)
    client.app.state.metrics.stored.close()
    monkeypatch.setattr(metrics, "OLD_S", 0.0)
    archive.take_in(3)
    assert scrape()[0] == 12, "what is far too old is told to nobody"


def test_a_caller_cannot_make_labels(client):
    for method, address in (("CANARY", "/v1/models"), ("CANARY", "/CANARY"), ("GET", "/CANARY")):
        client.request(method, address)
    assert "CANARY" not in client.get("/metrics").text


def test_metrics_answer_without_the_database_to_a_key_that_was_valid_before(client, archive, monkeypatch):
    """It is then that somebody is woken: which disk is full, and whether the database is away."""
    revoked = archive.key(Scope.READ)
    number = client.get("/v1/keys").json()["keys"][-1]["id"]
    assert client.get("/metrics", headers=revoked).status_code == 200
    assert client.delete(f"/v1/keys/{number}").is_success
    monkeypatch.setattr(auth, "CACHE_S", 0.0)
    assert client.get("/metrics", headers=revoked).status_code == 401
    assert "similis_database_up 1.0" in client.get("/metrics").text
    monkeypatch.setattr(archive.rt.store, "reads", sa.create_engine("postgresql+psycopg://127.0.0.1:1/none"))
    told = client.get("/metrics")
    assert told.status_code == 200
    assert "similis_database_up 0.0" in told.text
    assert client.get("/metrics", headers=revoked).status_code == 503
    assert client.get("/metrics", headers={"Authorization": f"Bearer sml_{'x' * 43}"}).status_code == 503
    assert client.get("/v1/models").status_code == 503
    monkeypatch.setattr(auth, "OFFLINE_S", 0.0)
    assert client.get("/metrics").status_code == 503


def test_every_answer_has_safe_headers(client, archive):
    archive.take_in(1)
    for address in ("/livez", "/v1/studies", "/v1/instances/1.2.3.1.0/thumbnail", "/nowhere", "/docs"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff", address
        assert headers["cache-control"] == "no-store", address
        assert headers["referrer-policy"] == "no-referrer", address
        assert "default-src 'none'" in headers["content-security-policy"], address
        assert len(headers["x-trace-id"]) == 16, address
        assert "access-control-allow-origin" not in headers, address


def test_the_documents_name_every_route_and_load_nothing_from_elsewhere(client):
    page = client.get("/docs").text
    for path in client.app.openapi()["paths"]:
        assert path in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_servers_bare_address_leads_to_the_documents(client):
    page = client.get("/")
    assert (page.status_code, page.url.path, "<h1>Similis" in page.text) == (200, "/docs", True)


def test_the_documents_show_names_as_code(client):
    assert "`" in client.get("/openapi.json").text
    assert "`" not in client.get("/docs").text


def test_the_documents_name_what_a_body_holds(client):
    page = client.get("/docs").text
    assert "application/json: path, labels, dataset, watch" in page
    assert "application/json: name, scopes, days" in page
    assert "application/json: note, since" in page, "a body that may be left out"
    assert "multipart/form-data: file" in page
    assert "application/dicom" in page


def test_the_openapi_document_is_the_one_that_was_agreed(client):
    """UPDATE_OPENAPI=1 writes the snapshot anew; look at the difference before committing."""
    described = client.get("/openapi.json").json()
    described["info"]["version"] = "0"
    if os.environ.get("UPDATE_OPENAPI"):
        SNAPSHOT.write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert described == json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert described["openapi"].startswith("3.1")


def test_every_route_documents_its_scope_and_its_refusals(client):
    for path, methods in client.app.openapi()["paths"].items():
        for what in methods.values():
            assert ("security" in what) == ("x-scope" in what) == (path not in ("/livez", "/readyz")), path
            assert "application/problem+json" in what["responses"]["default"]["content"]


def test_every_route_returns_the_shape_that_it_documents_so_that_mypy_checks_each_field():
    for route in (route for router in ROUTERS for route in router.routes):
        returned = get_type_hints(route.endpoint)["return"]
        if not issubclass(get_origin(returned) or returned, Response):
            assert is_typeddict(returned), route.path
            assert returned is route.response_model, route.path


def media_types(client, answer, path):
    """Check that the document names status and media type of this answer to a GET; return its schema."""
    responses = client.app.openapi()["paths"][path]["get"]["responses"]
    content = responses.get(str(answer.status_code), responses["default"]).get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in content or (not kind and str(answer.status_code) in responses), (path, answer.status_code, kind)
    return content.get(kind, {}).get("schema")


def test_the_document_describes_the_answers_of_probes_and_metrics(client, away):
    shapes = client.app.openapi()["components"]["schemas"]
    for path in ("/livez", "/readyz"):
        answer = client.get(path)
        name = media_types(client, answer, path)["$ref"].rpartition("/")[2]
        assert set(answer.json()) == set(shapes[name]["required"])
    assert media_types(client, client.get("/metrics"), "/metrics") == {"type": "string"}
    away("vectors")
    time.sleep(health.REMEMBERED_S)
    assert "$ref" in media_types(client, client.get("/readyz"), "/readyz"), "503 of a probe is no problem document"


def test_the_document_describes_a_thumbnail_that_has_not_changed_and_dicom_json_as_json(client, filled):
    path = "/v1/instances/{sop_instance_uid}/thumbnail"
    sop = client.get("/v1/studies/1.2.3.1").json()["series"][0]["images"][0]["sop_instance_uid"]
    address = path.replace("{sop_instance_uid}", sop)
    tag = client.get(address).headers["etag"]
    media_types(client, client.get(address, headers={"If-None-Match": tag}), path)
    for path in ("/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances"):
        media_types(client, client.get(path, headers={"Accept": "application/json"}), path)


def test_the_document_names_the_headers_that_a_client_goes_on_with(client, filled):
    paths = client.app.openapi()["paths"]
    thumbnail = "/v1/instances/1.2.3.1.0/thumbnail"
    tag = client.get(thumbnail).headers["etag"]
    rule = {"model": "null-a", "modality": "MG", "threshold": 5.0, "apply": True}
    for path, answer in (
        ("/v1/ingest/scans", client.post("/v1/ingest/scans", json={"path": str(filled.folder)})),
        ("/v1/generations", client.post("/v1/generations", json={"model": "null-a"})),
        ("/v1/models", client.post("/v1/models", json={"card": "null-a"})),
        ("/v1/models", client.post("/v1/models", json={"card": "null-b"})),
        ("/v1/models/{name}:hash", client.post("/v1/models/null-a:hash", json={"name": "hashed", "bits": 8})),
        ("/v1/keys", client.post("/v1/keys", json={"name": "other", "scopes": ["read"]})),
        ("/v1/quarantine:replay", client.post("/v1/quarantine:replay", json=rule)),
        ("/v1/studies/{study_instance_uid}", client.delete("/v1/studies/1.2.3.9")),
        ("/v1/studies/{study_instance_uid}/similar", client.get("/v1/studies/1.2.3.1/similar?k=2")),
        ("/v1/instances/{sop_instance_uid}/thumbnail", client.get(thumbnail)),
        ("/v1/instances/{sop_instance_uid}/thumbnail", client.get(thumbnail, headers={"If-None-Match": tag})),
        ("/dicom-web/studies", client.get("/dicom-web/studies?fuzzymatching=true")),
        ("/dicom-web/studies", client.get("/dicom-web/studies?fuzzymatching=true&StudyInstanceUID=9")),
    ):
        sent = {name.title() for name in answer.headers} & {"Location", "Link", "Etag", "Warning"}
        told = paths[path][answer.request.method.lower()]["responses"][str(answer.status_code)].get("headers", {})
        assert sent, (path, answer.text)
        assert sent == {name.title() for name in told}, path


def test_the_document_describes_a_second_success_of_a_route(client):
    paths = client.app.openapi()["paths"]
    again = client.post("/v1/models", json={"card": "null-a"})
    assert again.status_code == 200
    for path, code in (("/v1/models", "200"), ("/v1/models", "201"), ("/v1/quarantine:replay", "202")):
        assert "$ref" in paths[path]["post"]["responses"][code]["content"]["application/json"]["schema"]


def test_the_document_describes_every_field_of_a_problem_and_when_to_come_again(client):
    described = client.app.openapi()
    shape = described["components"]["schemas"]["ProblemOut"]
    refused = client.post("/v1/searches", content=b"no picture", headers={"Content-Type": "image/png"})
    assert refused.status_code == 422
    assert set(refused.json()) == set(shape["properties"]) > set(shape["required"])
    wrong = client.get("/v1/studies?limit=0").json()["errors"][0]
    assert set(wrong) == set(described["components"]["schemas"]["WrongOut"]["properties"])
    for methods in described["paths"].values():
        assert all("Retry-After" in what["responses"]["default"]["headers"] for what in methods.values())


def test_every_reference_in_the_openapi_document_leads_somewhere(client):
    described = client.app.openapi()
    text = json.dumps(described)
    for part in text.split('"$ref": "')[1:]:
        name = part.partition('"')[0].removeprefix("#/components/schemas/")
        assert name in described["components"]["schemas"], name


def test_a_key_that_may_only_search_does_not_see_the_numbers(archive):
    with serving(archive) as client:
        assert client.get("/metrics", headers=archive.key(Scope.SEARCH)).status_code == 403


def test_the_end_waits_for_the_first_look_at_the_engines(archive):
    """Otherwise it would open connections after all were closed."""
    told = []

    def slow():
        time.sleep(0.3)
        told.append("looked")

    archive.rt.queue.ping = slow
    archive.rt.indexes.close, close = lambda: (told.append("closed"), close()), archive.rt.indexes.close
    with serving(archive):
        pass
    assert told == ["looked", "closed"]


def test_the_published_index_is_tried_while_the_api_starts(archive, monkeypatch):
    """An engine with wrong Hamming distances is logged at the start, not found by the first search."""
    tried: list[int] = []

    def wrong(index):
        tried.append(index.spec.dim)
        raise Unavailable("wrong Hamming distances")

    monkeypatch.setattr(hashes, "trusted", wrong)
    with structlog.testing.capture_logs() as logs, serving(archive) as client:
        assert client.get("/livez").status_code == 200
    assert tried == [64]
    assert [entry["error"] for entry in logs if entry["event"] == "warm_up_failed"] == ["wrong Hamming distances"]
