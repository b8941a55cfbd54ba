"""Models and keys."""

import json
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from shared import process
from shared.encoder import cards, derive
from shared.encoder.cards import CARD
from shared.pipeline import lifecycle
from shared.types import Job
from tests.api.conftest import serving


def test_the_first_model_is_verified_published_and_served(bare):
    with serving(bare) as client:
        client.headers.update(bare.key())
        assert client.get("/readyz").json()["model"] == "none yet"
        assert client.get("/v1/models").json() == {"models": []}
        made = client.post("/v1/models", json={"card": "null-a"})
        assert (made.status_code, made.headers["Location"]) == (201, "/v1/models/null-a")
        assert (made.json()["published"], made.json()["generations"]) == (True, [1])
        assert Job.ENCODE in bare.rt.queue.rung
        assert client.post("/v1/models", json={"card": "null-a"}).status_code == 200
        second = client.post("/v1/models", json={"card": "null-b"}).json()
        assert (second["published"], second["generations"]) == (True, [2])  # nothing is encoded


def test_a_model_that_two_add_at_once_is_new_to_one_of_them(bare):
    """The second request arrives before the first has committed."""
    waits = sa.text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    with serving(bare) as client, ThreadPoolExecutor(1) as pool:
        client.headers.update(bare.key())
        with bare.rt.transaction() as db:
            lifecycle.add_model(db, bare.rt.indexes, "null-a", cards.read(bare.rt.folder("null-a")))
            second = pool.submit(client.post, "/v1/models", json={"card": "null-a"})
            while not second.done():
                with bare.rt.store.reading() as connection:
                    if connection.execute(waits).first():
                        break
                time.sleep(0.01)
            assert not second.done()
        answer = second.result()
        assert (answer.status_code, answer.json().get("generations")) == (200, [1])
        assert client.get("/v1/audit?action=model-add").json()["entries"] == []


def test_a_model_is_found_by_name_and_by_fingerprint(client, archive):
    card = cards.read(archive.rt.folder("null-a"))
    by_name = client.get("/v1/models/null-a").json()
    assert by_name["card"] == card.to_json() | {"mean": [0.0], "std": [1.0]}
    assert client.get(f"/v1/models/{card.fingerprint[:12]}").json() == by_name
    assert client.get("/v1/models/other").status_code == 404
    (listed,) = client.get("/v1/models").json()["models"]
    assert listed.items() <= by_name.items()


def test_a_card_that_was_changed_is_refused(client, archive, tmp_path):
    shutil.copytree(archive.rt.folder("null-b"), tmp_path / "models" / "null-b")
    archive.rt.settings = archive.rt.settings.model_copy(update={"models": tmp_path / "models"})
    weights = tmp_path / "models" / "null-b" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    refused = client.post("/v1/models", json={"card": "null-b"})
    assert refused.status_code == 400
    assert "weights" in refused.json()["detail"]
    assert client.post("/v1/models", json={"card": "absent"}).status_code == 404


def test_a_new_key_is_shown_once_and_opens_what_it_may(client, archive):
    made = client.post("/v1/keys", json={"name": "viewer", "scopes": ["read"], "days": 7})
    assert made.status_code == 201, made.text
    body = made.json()
    secret = body.pop("secret")
    ends = datetime.fromisoformat(body["expires_at"])
    assert timedelta(days=6) < ends - datetime.now(UTC) <= timedelta(days=7)
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.get("/v1/keys", headers=headers).status_code == 403
    listed = client.get("/v1/keys")
    assert secret not in listed.text
    assert listed.json()["keys"][-1] | {"last_used_at": None} == body | {"last_used_at": None}


def test_a_key_that_is_not_there_cannot_be_revoked(client):
    assert client.delete("/v1/keys/12345").status_code == 404


def test_a_key_that_is_revoked_twice_was_revoked_once(client):
    made = client.post("/v1/keys", json={"name": "viewer", "scopes": ["read"]}).json()["id"]
    revoked = []
    for _ in range(2):
        assert client.delete(f"/v1/keys/{made}").status_code == 204
        revoked += [key["revoked_at"] for key in client.get("/v1/keys").json()["keys"] if key["id"] == made]
    assert revoked[0] == revoked[1] is not None
    entries = client.get("/v1/audit?action=key-revoke").json()["entries"]
    assert [entry["details"] for entry in entries] == [{"key": made}]


def test_a_model_gets_a_code_fitted_to_what_the_archive_holds(client, archive):
    for study in range(1, 6):
        archive.take_in(study)
    name = f"fitted-{uuid.uuid4().hex[:8]}"  # all tests share the models folder
    made = client.post("/v1/models/null-a:hash", json={"name": name, "bits": 16})
    assert made.status_code == 201, made.text
    assert (made.json()["bits"], made.json()["published"]) == (16, False)
    assert made.json()["fingerprint"] != client.get("/v1/models/null-a").json()["fingerprint"]
    again = client.post("/v1/models/null-a:hash", json={"name": name, "bits": 16})
    assert again.status_code == 409
    too_many = client.post("/v1/models/null-a:hash", json={"name": f"{name}-64", "bits": 64})
    assert too_many.status_code == 400
    assert "fewer than the encoded images (20)" in too_many.json()["detail"]
    assert not (archive.rt.folder(f"{name}-64")).exists()


def test_a_hashed_model_whose_name_is_taken_is_refused_before_anything_is_fitted_or_written(client, archive):
    for study in range(1, 6):
        archive.take_in(study)
    name = f"fitted-{uuid.uuid4().hex[:8]}"
    assert client.post("/v1/models/null-a:hash", json={"name": name, "bits": 8}).status_code == 201
    shutil.move(archive.rt.folder(name), archive.rt.folder(f"{name}-moved"))
    taken = client.post("/v1/models/null-a:hash", json={"name": name, "bits": 8})
    assert (taken.status_code, taken.json()["detail"]) == (409, "a model of this name exists already")
    assert not archive.rt.folder(name).exists()


def test_while_a_code_is_fitted_no_transaction_is_open(client, archive, monkeypatch):
    for study in range(1, 6):
        archive.take_in(study)
    open_ones = []
    fit = derive.build_hashed

    def count():
        statement = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start < now() "
            "AND backend_type = 'client backend'"  # ignores autovacuum
        )
        with archive.rt.store.reading() as connection:
            return connection.execute(sa.text(statement)).scalar_one()

    def watched(*arguments, **more):
        process.until(lambda: count() == 0, 5)  # others' short ones, such as the key's last use, end meanwhile
        open_ones.append(count())
        return fit(*arguments, **more)

    monkeypatch.setattr(derive, "build_hashed", watched)
    made = client.post("/v1/models/null-a:hash", json={"name": f"fitted-{uuid.uuid4().hex[:8]}", "bits": 8})
    assert (made.status_code, open_ones) == (201, [0])


def test_a_name_that_is_written_wrong_is_told_in_words_and_not_as_a_pattern(client):
    told = client.post("/v1/quarantine/foo:release").json()
    (error,) = told["errors"]
    assert error["message"] == "an item must be image-NUMBER or file-NUMBER, as `similis quarantine list` shows it"
    named = client.post("/v1/models/null-a:hash", json={"name": "No Name", "bits": 8}).json()
    (error,) = named["errors"]
    assert error["message"].startswith("a name has 1 to 64 characters: a-z")
    other = client.get("/v1/studies", params={"cursor": "?"}).json()
    assert "^" not in str([told, named, other])


def test_a_model_that_does_not_run_here_does_not_become_the_one_that_serves(client, archive):
    models = archive.rt.settings.models_dir
    shutil.copytree(models / "null-b", models / "broken")
    card = json.loads((models / "broken" / CARD).read_text())
    card.pop("fingerprint")
    (models / "broken" / CARD).write_text(json.dumps(card | {"name": "broken", "dim": 7}))
    try:
        refused = client.post("/v1/models", json={"card": "broken"})
    finally:
        shutil.rmtree(models / "broken")
    assert refused.status_code == 400
    assert "another shape than its card says" in refused.json()["detail"]
    assert [(one["name"], one["published"]) for one in client.get("/v1/models").json()["models"]] == [("null-a", True)]
