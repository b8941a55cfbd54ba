"""Every route with every kind of key, from one table."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import APIRouter

from services.api import auth
from services.api.app import create
from services.api.auth import refuse_undeclared, scopes_of
from shared.errors import Denied
from shared.store import keys
from shared.store.keys import Scope
from tests.api.conftest import serving

ID = "00000000-0000-4000-8000-000000000000"
PUBLIC = None
WATCH = (Scope.INGEST, Scope.REVIEW, Scope.REINDEX, Scope.ERASE, Scope.ADMIN)  #: any of them
TAKE_IN = (Scope.INGEST, Scope.ADMIN)
BUILDS = (Scope.READ, Scope.REINDEX)

DICOM_STUDY = "/studies/{study_instance_uid}"
DICOM_SERIES = DICOM_STUDY + "/series/{series_instance_uid}"
DICOM_INSTANCE = DICOM_SERIES + "/instances/{sop_instance_uid}"

#: (method, template) -> (address, scope or scopes that open it, JSON body). The test fails for a missing route.
ROUTES = {
    ("GET", "/livez"): ("/livez", PUBLIC, None),
    ("GET", "/readyz"): ("/readyz", PUBLIC, None),
    ("GET", "/openapi.json"): ("/openapi.json", PUBLIC, None),
    ("GET", "/"): ("/", PUBLIC, None),
    ("GET", "/docs"): ("/docs", PUBLIC, None),
    ("GET", "/metrics"): ("/metrics", Scope.READ, None),
    ("GET", "/v1/studies/{study_instance_uid}/similar"): ("/v1/studies/1.2.3.1/similar", Scope.SEARCH, None),
    ("POST", "/v1/searches"): ("/v1/searches", Scope.SEARCH, {"studies": ["1.2.3.1"]}),
    ("GET", "/v1/studies"): ("/v1/studies", Scope.READ, None),
    ("GET", "/v1/studies/{study_instance_uid}"): ("/v1/studies/1.2.3.1", Scope.READ, None),
    ("GET", "/v1/instances/{sop_instance_uid}/thumbnail"): ("/v1/instances/1.2.3.1.0/thumbnail", Scope.READ, None),
    ("GET", "/v1/instances/{sop_instance_uid}/rendered"): ("/v1/instances/1.2.3.1.0/rendered", Scope.READ, None),
    ("POST", "/v1/ingest/scans"): ("/v1/ingest/scans", Scope.INGEST, {"path": "/nowhere"}),
    ("POST", "/v1/ingest/backfills"): ("/v1/ingest/backfills", Scope.ADMIN, {}),
    ("GET", "/v1/operations"): ("/v1/operations", WATCH, None),
    ("GET", "/v1/operations/{operation_id}"): (f"/v1/operations/{ID}", WATCH, None),
    ("GET", "/v1/operations/{operation_id}/files"): (f"/v1/operations/{ID}/files", TAKE_IN, None),
    ("POST", "/v1/operations/{operation_id}:cancel"): (f"/v1/operations/{ID}:cancel", TAKE_IN, None),
    ("POST", "/v1/operations/{operation_id}:retry"): (f"/v1/operations/{ID}:retry", TAKE_IN, None),
    ("GET", "/v1/models"): ("/v1/models", Scope.READ, None),
    ("POST", "/v1/models"): ("/v1/models", Scope.ADMIN, {"card": "nothing-here"}),
    ("GET", "/v1/models/{name}"): ("/v1/models/null-a", Scope.READ, None),
    ("POST", "/v1/models/{name}:hash"): ("/v1/models/nobody:hash", Scope.ADMIN, {"name": "other"}),
    ("GET", "/v1/generations"): ("/v1/generations", BUILDS, None),
    ("GET", "/v1/generations/{generation_id}"): ("/v1/generations/1", BUILDS, None),
    ("POST", "/v1/generations"): ("/v1/generations", Scope.REINDEX, {"model": "nobody"}),
    **{
        ("POST", f"/v1/generations/{{generation_id}}:{verb}"): (f"/v1/generations/99:{verb}", Scope.REINDEX, None)
        for verb in ("pause", "resume", "cancel", "publish", "rollback", "retire")
    },
    ("POST", "/v1/generations/{generation_id}:throttle"): ("/v1/generations/99:throttle", Scope.REINDEX, {"per_s": 5}),
    ("GET", "/v1/studies/{study_instance_uid}/journal"): ("/v1/studies/1.2.3.1/journal", Scope.READ, None),
    ("GET", "/v1/dead-letters"): ("/v1/dead-letters", Scope.INGEST, None),
    ("POST", "/v1/dead-letters/{letter}:retry"): ("/v1/dead-letters/image-99:retry", Scope.INGEST, None),
    ("POST", "/v1/dead-letters:retry"): ("/v1/dead-letters:retry", Scope.INGEST, {"kind": "image"}),
    **{
        ("GET", f"/dicom-web{template}"): (f"/dicom-web{address}", scope, None)
        for template, address, scope in (
            ("/studies", "/studies", Scope.READ),
            ("/series", "/series", Scope.READ),
            ("/instances", "/instances", Scope.READ),
            (DICOM_STUDY, "/studies/1.2", Scope.RETRIEVE),
            (f"{DICOM_STUDY}/metadata", "/studies/1.2/metadata", Scope.READ),
            (f"{DICOM_STUDY}/series", "/studies/1.2/series", Scope.READ),
            (f"{DICOM_STUDY}/instances", "/studies/1.2/instances", Scope.READ),
            (DICOM_SERIES, "/studies/1.2/series/1.3", Scope.RETRIEVE),
            (f"{DICOM_SERIES}/metadata", "/studies/1.2/series/1.3/metadata", Scope.READ),
            (f"{DICOM_SERIES}/instances", "/studies/1.2/series/1.3/instances", Scope.READ),
            (DICOM_INSTANCE, "/studies/1.2/series/1.3/instances/1.4", Scope.RETRIEVE),
            *(
                (
                    f"{DICOM_INSTANCE}/{what.replace('1', '{frame}')}",
                    f"/studies/1.2/series/1.3/instances/1.4/{what}",
                    Scope.READ,
                )
                for what in ("metadata", "thumbnail", "rendered", "frames/1/rendered")
            ),
        )
    },
    ("POST", "/dicom-web/studies"): ("/dicom-web/studies", Scope.INGEST, None),
    ("POST", "/dicom-web/studies/{study_instance_uid}"): ("/dicom-web/studies/1.2.3.1", Scope.INGEST, None),
    ("DELETE", "/v1/studies/{study_instance_uid}"): ("/v1/studies/1.2.3.99", Scope.ERASE, None),
    ("POST", "/v1/studies/{study_instance_uid}:lift"): ("/v1/studies/1.2.3.99:lift", Scope.ERASE, None),
    ("POST", "/v1/patients:erase"): ("/v1/patients:erase", Scope.ERASE, {"patient_id": "nobody"}),
    ("POST", "/v1/patients:lift"): ("/v1/patients:lift", Scope.ERASE, {"patient_id": "nobody"}),
    ("GET", "/v1/quarantine"): ("/v1/quarantine", Scope.REVIEW, None),
    ("GET", "/v1/quarantine/{item}"): ("/v1/quarantine/image-99", Scope.REVIEW, None),
    **{
        ("POST", f"/v1/quarantine/{{item}}:{verb}"): (f"/v1/quarantine/image-99:{verb}", Scope.REVIEW, None)
        for verb in ("release", "reject", "retry")
    },
    ("POST", "/v1/quarantine:retry"): ("/v1/quarantine:retry", Scope.REVIEW, {"gate": "decode"}),
    ("POST", "/v1/quarantine:replay"): ("/v1/quarantine:replay", Scope.REVIEW, {"model": "nobody", "modality": "MG"}),
    ("GET", "/v1/models/{name}/calibrations"): ("/v1/models/null-a/calibrations", Scope.READ, None),
    ("POST", "/v1/models/{name}/calibrations"): ("/v1/models/nobody/calibrations", Scope.REVIEW, {}),
    ("GET", "/v1/audit"): ("/v1/audit", Scope.AUDIT, None),
    ("GET", "/v1/keys"): ("/v1/keys", Scope.ADMIN, None),
    ("POST", "/v1/keys"): ("/v1/keys", Scope.ADMIN, {"name": "other", "scopes": ["read"]}),
    ("GET", "/v1/keys/{key_id}"): ("/v1/keys/999", Scope.ADMIN, None),
    ("DELETE", "/v1/keys/{key_id}"): ("/v1/keys/999", Scope.ADMIN, None),
}


def scopes(needed):
    return frozenset() if needed is PUBLIC else frozenset({needed} if isinstance(needed, Scope) else needed)


def test_every_route_with_every_kind_of_key_answers_as_the_table_says(archive):
    archive.take_in(1)
    past = datetime.now(UTC) - timedelta(seconds=1)
    with serving(archive) as client:
        app = client.app
        assert {(m, r.path) for r in app.routes for m in r.methods} == set(ROUTES)
        revoked = archive.key()
        with archive.rt.transaction() as db:
            keys.revoke(db, max(row.id for row in keys.every(db)))
        strangers = {
            "none": {},
            "garbage": {"Authorization": "Bearer " + "x" * 47},
            "another scheme": {"Authorization": "Basic " + "x" * 47},
            "expired": archive.key(expires_at=past),
            "revoked": revoked,
        }
        single = {scope: archive.key(scope) for scope in Scope}
        wrong = []
        for (method, template), (address, needed, body) in ROUTES.items():
            for name, headers in strangers.items():
                status = client.request(method, address, json=body, headers=headers).status_code
                if (status == 401) != (needed is not PUBLIC):
                    wrong.append((method, template, name, status))
            for scope, headers in single.items():
                status = client.request(method, address, json=body, headers=headers).status_code
                expected = needed is PUBLIC or scope in scopes(needed)
                if status == 401 or (status != 403) != expected or status >= 500:
                    wrong.append((method, template, scope, status))
        assert wrong == []


def test_the_table_of_scopes_is_what_the_routes_declare(archive):
    app = create(archive.rt)
    declared = {(m, r.path): scopes_of(r) for r in app.routes for m in r.methods}
    assert declared == {route: scopes(needed) for route, (_, needed, _) in ROUTES.items()}


def test_whoever_begins_long_work_may_follow_it_to_its_end():
    """For a POST that begins an operation or a generation: its key may read what the answer names."""
    begun = {
        ("POST", "/v1/ingest/scans"): ("/v1/operations/{operation_id}", True),
        ("POST", "/v1/ingest/backfills"): ("/v1/operations/{operation_id}", True),
        ("POST", "/v1/generations"): ("/v1/generations/{generation_id}", False),
        ("POST", "/v1/quarantine:replay"): ("/v1/operations/{operation_id}", False),
        ("DELETE", "/v1/studies/{study_instance_uid}"): ("/v1/operations/{operation_id}", False),
        ("POST", "/v1/patients:erase"): ("/v1/operations/{operation_id}", False),
    }
    for route, (made, takes_in) in begun.items():
        needed = scopes(ROUTES[route][1])
        assert needed <= scopes(ROUTES["GET", made][1]), route
        assert needed <= scopes(ROUTES["GET", "/v1/operations/{operation_id}"][1]), route
        for verb in (":cancel", ":retry") if takes_in else ():
            assert needed <= scopes(ROUTES["POST", made + verb][1]), (route, verb)


def test_a_route_that_declares_no_scope_keeps_the_app_from_starting():
    router = APIRouter()

    @router.get("/forgotten")
    def forgotten() -> None: ...

    with pytest.raises(Denied, match="/forgotten"):
        refuse_undeclared(router.routes)


def test_a_revoked_key_is_refused_within_a_second(client):
    answer = client.post("/v1/keys", json={"name": "viewer", "scopes": ["read"]})
    made = answer.json()
    assert {**client.get(answer.headers["Location"]).json(), "secret": made["secret"]} == made
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.delete(f"/v1/keys/{made['id']}").status_code == 204
    time.sleep(1)
    assert client.get("/v1/models", headers=headers).status_code == 401


def test_a_key_that_is_revoked_twice_was_revoked_the_first_time(client, archive):
    archive.key(Scope.READ)

    def shown():
        return client.get("/v1/keys").json()["keys"][-1]

    seen = []
    for _ in range(2):
        assert client.delete(f"/v1/keys/{shown()['id']}").status_code == 204
        seen.append(shown()["revoked_at"])
    assert seen[0] is not None
    assert seen[0] == seen[1]


def test_a_key_is_not_looked_up_for_each_request(archive, monkeypatch):
    asked = []
    real = keys.identify
    monkeypatch.setattr(auth.keys, "identify", lambda *a: asked.append(1) or real(*a))
    monkeypatch.setattr(auth, "CACHE_S", 60.0)
    with serving(archive) as client:
        headers = archive.key(Scope.READ)
        for _ in range(5):
            assert client.get("/v1/models", headers=headers).status_code == 200
    assert len(asked) == 1


def test_the_last_use_of_a_key_is_kept(archive):
    with serving(archive) as client:
        headers = archive.key(Scope.READ)
        assert client.get("/v1/models", headers=headers).status_code == 200
        client.app.state.callers.close()  # close waits for calls in progress
    with archive.rt.transaction() as db:
        assert keys.every(db)[-1].last_used_at is not None


def test_the_key_may_come_in_a_header_of_its_own(archive):
    with serving(archive) as client:
        secret = archive.key(Scope.READ)["Authorization"].removeprefix("Bearer ")
        assert client.get("/v1/models", headers={"X-API-Key": secret}).status_code == 200
        schemes = client.app.openapi()["components"]["securitySchemes"]
        assert [one.get("name") for one in schemes.values()] == [None, "X-API-Key"]


def test_without_keys_only_loopback_is_served(archive):
    api = archive.rt.settings.api.model_copy(update={"require_key": False, "host": "0.0.0.0"})
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    with pytest.raises(Denied, match="loopback"):
        create(archive.rt)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_without_keys_every_address_of_loopback_is_served(archive, host):
    api = archive.rt.settings.api.model_copy(update={"require_key": False, "host": host})
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    with serving(archive) as client:
        assert client.get("/v1/models").status_code == 200


def test_without_keys_a_name_that_points_at_us_is_not_answered(archive):
    api = archive.rt.settings.api.model_copy(update={"require_key": False})
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    with serving(archive) as client:
        for host, expected in (
            ("127.0.0.1:8000", 200),
            ("localhost", 200),
            ("[::1]:8000", 200),
            ("[::1]", 200),
            ("evil.example", 403),
            ("127.0.0.1.evil.example:8000", 403),
        ):
            assert client.get("/v1/models", headers={"Host": host}).status_code == expected, host
