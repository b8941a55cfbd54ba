"""Erasing over HTTP: effective with the answer, proved soon after, and the images are refused if sent again."""

from shared.pipeline import project, scan
from tests.api.conftest import CANARY


def settle(archive):
    project.drain(archive.rt.transaction, archive.rt.index, gather_s=0)


def found(client, uid):
    return [one["study_instance_uid"] for one in client.get(f"/v1/studies/{uid}/similar").json()["studies"]]


def again(archive):
    """Scans every file again."""
    with archive.rt.transaction() as db:
        return scan.register(db, archive.files, archive.rt.rules, None)


def test_an_erased_study_is_gone_with_the_answer(client, filled):
    assert "1.2.3.4" in found(client, "1.2.3.5")
    answer = client.delete("/v1/studies/1.2.3.4")
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["Location"] == f"/v1/operations/{body['id']}"
    assert (body["kind"], body["state"], body["phase"], body["total"]) == ("erase", "pending", "waiting", 4)
    assert "1.2.3.4" not in found(client, "1.2.3.5")
    for path in ("/v1/studies/1.2.3.4", "/v1/studies/1.2.3.4/similar", "/v1/instances/1.2.3.4.0/thumbnail"):
        assert client.get(path).status_code == 404, path
    settle(filled)
    ended = client.get(answer.headers["Location"]).json()
    assert (ended["state"], ended["progress"], ended["done"]) == ("succeeded", 100, 4)
    assert ended["counts"] == {"images": 4, "studies": 1, "points": 4, "generations": 1}
    assert client.delete("/v1/studies/1.2.3.4").json()["id"] == body["id"]
    assert client.delete("/v1/studies/1.2.3.999").status_code == 404


def test_what_was_erased_is_refused_until_it_is_lifted(client, filled):
    client.delete("/v1/studies/1.2.3.4")
    assert again(filled)["kept"] == 4
    assert client.post("/v1/studies/1.2.3.4:lift").status_code == 409  # its points may still be in the index
    settle(filled)
    assert client.post("/v1/studies/1.2.3.4:lift").json() == {"tombstones": 5}
    assert client.post("/v1/studies/1.2.3.4:lift").status_code == 404
    assert "kept" not in again(filled)
    filled.encode()
    assert "1.2.3.4" in found(client, "1.2.3.5")


def test_a_patient_is_erased_by_what_the_header_says_and_nothing_repeats_it(client, filled):
    who = {"patient_id": f"{CANARY}-1", "issuer": CANARY}
    answer = client.post("/v1/patients:erase", json=who)
    assert (answer.status_code, answer.json()["counts"]) == (202, {"images": 8, "studies": 2})
    assert CANARY not in answer.text
    settle(filled)
    listed = client.get("/v1/operations")
    assert listed.json()["operations"][0]["state"] == "succeeded"
    assert CANARY not in listed.text
    for uid in ("1.2.3.1", "1.2.3.2"):
        assert client.get(f"/v1/studies/{uid}").status_code == 404
    refused = client.post("/v1/patients:erase", json={"patient_id": f"{CANARY}-99"})
    assert (refused.status_code, CANARY in refused.text) == (404, False)
    assert client.post("/v1/studies/1.2.3.1:lift").status_code == 409
    assert client.post("/v1/patients:lift", json=who).json() == {"tombstones": 11}


def test_an_erasure_cannot_be_taken_back(client, filled):
    operation = client.delete("/v1/studies/1.2.3.4").json()["id"]
    for verb in ("cancel", "retry"):
        assert client.post(f"/v1/operations/{operation}:{verb}").status_code == 409
