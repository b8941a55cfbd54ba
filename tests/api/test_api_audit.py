"""The audit over HTTP."""

from shared.store.keys import Scope
from tests.api.conftest import CANARY, serving
from tests.api.test_api_erase import settle


def test_what_was_done_is_listed_the_latest_first_page_by_page(client, archive):
    archive.take_in(1)
    assert client.delete("/v1/studies/1.2.3.1").status_code == 202
    settle(archive)
    assert client.post("/v1/studies/1.2.3.1:lift").status_code == 200
    assert client.post("/v1/patients:erase", json={"patient_id": CANARY}).status_code in (202, 404)
    every = client.get("/v1/audit").json()
    assert every["next"] is None
    actions = [one["action"] for one in every["entries"]]
    assert actions[-2:] == ["lift", "erase"]
    first = every["entries"][-1]
    assert set(first["details"]) == {"operation", "of"}
    assert (first["item"], first["actor"]) == (None, every["entries"][-2]["actor"])
    walked, cursor = [], None
    for _ in actions:
        page = client.get("/v1/audit", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        walked += page["entries"]
        cursor = page["next"]
    assert cursor is None
    assert walked == every["entries"]
    assert [one["action"] for one in client.get("/v1/audit?action=lift").json()["entries"]] == ["lift"]
    assert CANARY not in client.get("/v1/audit").text
    assert "1.2.3.1" not in client.get("/v1/audit").text


def test_who_gave_and_took_access_and_brought_a_model_is_on_record(client):
    number = client.post("/v1/keys", json={"name": "viewer", "scopes": ["search", "read"]}).json()["id"]
    assert client.delete(f"/v1/keys/{number}").status_code == 204
    assert client.delete("/v1/keys/999").status_code == 404
    assert [client.post("/v1/models", json={"card": "null-b"}).status_code for _ in range(2)] == [201, 200]
    entries = client.get("/v1/audit").json()["entries"]
    assert [(one["action"], one["details"]) for one in entries] == [
        ("model-add", {"model": "null-b", "published": True}),  # nothing is encoded, so it is published
        ("key-revoke", {"key": number}),
        ("key-create", {"key": number, "scopes": ["search", "read"]}),
    ]
    assert {one["actor"] for one in entries} == {"test"}


def test_only_a_key_with_its_scope_reads_the_audit(archive):
    with serving(archive) as client:
        assert client.get("/v1/audit", headers=archive.key(Scope.AUDIT)).json() == {"entries": [], "next": None}
        assert client.get("/v1/audit", headers=archive.key(Scope.ADMIN)).status_code == 403
