"""`similis generations` and `similis erase`: requests, output and exit codes."""

import io

import pytest

BUILT = {
    "id": 2, "model": "better", "state": "ready", "live": False, "rollback_target": False, "progress": 100,
    "operation": "op-1", "coverage": {"applied": 12, "pending": 0, "failed": 0, "ratio": 1.0},
    "images": {"total": 12, "covered": 11, "coming": 0, "exceptions": 1, "by_reason": {}},
    "recall": {"recall": 0.9875, "k": 10, "sample": 100, "points": 12}, "error": None,
    "exceptions": [{"image": 3, "sop_instance_uid": "1.2.3", "reason": "blank", "explanation": "All pixels ..."}],
}  # fmt: skip
BUILDING = BUILT | {"state": "building", "progress": 0, "recall": None, "exceptions": []}
OPERATION = {"id": "op-1", "kind": "reindex", "state": "running", "done": 3, "total": 12, "counts": {}}


def test_create_follows_the_build_to_its_end(similis, server, home):
    server.on("POST /v1/generations", BUILDING, 202)
    server.on("GET /v1/operations/op-1", OPERATION)
    server.on("GET /v1/operations/op-1", OPERATION | {"state": "succeeded", "done": 12})
    server.on("GET /v1/generations/2", BUILT)
    ran = similis("generations", "create", "better", "--m", 32, "--throttle", 50, "--follow", "--home", home)
    assert ran.code == 0
    asked = server.asked[0]
    assert asked.json == {
        "model": "better", "scale": "hnsw-int8", "m": 32, "ef_construct": 100, "gate": 0.97, "throttle": 50.0
    }  # fmt: skip
    assert "Idempotency-Key" in asked.headers
    assert "generation 2: 3 of 12 (running)" in ran.err
    assert "covers 11 of 12 images, 0 on their way, 1 missing; recall@10 0.9875" in ran.out
    assert "blank" in ran.out


@pytest.mark.parametrize(("state", "code"), [("failed", 1), ("paused", 0)])
def test_a_build_that_failed_is_an_error_and_a_paused_one_is_not(similis, server, home, state, code):
    server.on("GET /v1/generations/2", BUILDING)
    server.on("GET /v1/generations/2", BUILDING | {"state": state, "error": "the index is wrong"})
    server.on("GET /v1/operations/op-1", OPERATION | {"state": state})
    ran = similis("generations", "show", 2, "--follow", "--home", home)
    assert ran.code == code
    assert "error: the index is wrong" in ran.out


def test_the_pace_of_a_build_is_set(similis, server, home):
    server.on("POST /v1/generations/2:throttle", BUILDING | {"throttle": 5.0, "between": "20:00-06:00"})
    ran = similis("generations", "throttle", 2, "--rate", 5, "--between", "20:00-06:00", "--home", home)
    assert server.asked[-1].json == {"per_s": 5.0, "between": "20:00-06:00"}
    assert "built at 5 images per second at most" in ran.out
    assert "built in the hours 20:00-06:00" in ran.out
    for words, asked in ((["--no-limit"], {"per_s": None}), (["--any-hour"], {"between": None})):
        assert similis("generations", "throttle", 2, *words, "--home", home).code == 0
        assert server.asked[-1].json == asked
    for wrong in ([], ["--rate", 5, "--no-limit"], ["--between", "20:00-06:00", "--any-hour"]):
        assert similis("generations", "throttle", 2, *wrong, "--home", home).code == 2


def test_a_refused_publication_tells_the_numbers_and_exits_with_4(similis, server, home):
    server.problem("POST /v1/generations/2:publish", 409, "generation 2 covers 11 of 12 images")
    ran = similis("generations", "publish", 2, "--home", home)
    assert (ran.code, ran.out) == (4, "")
    assert "covers 11 of 12 images" in ran.err
    server.answers.clear()
    server.on("POST /v1/generations/2:publish", BUILT | {"live": True})
    ran = similis("generations", "publish", 2, "--accept", "3", "--accept", "1.2.4", "--json", "--home", home)
    assert ran.json["live"] is True
    assert server.asked[-1].json == {"accept": ["3", "1.2.4"]}


def test_a_rollback_leaves_the_published_one(similis, server, home):
    server.on("GET /v1/generations", {"generations": [BUILT, BUILT | {"id": 5, "live": True}]})
    server.on("POST /v1/generations/5:rollback", BUILT | {"live": True})
    ran = similis("generations", "rollback", "--home", home)
    assert ran.code == 0
    assert "generation 2 of better: ready, published" in ran.out
    server.answers["GET /v1/generations"] = [(200, {"generations": []}, {})]
    assert similis("generations", "rollback", "--home", home).code == 3


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retire"])
def test_each_verb_asks_for_itself(similis, server, home, verb):
    server.on(f"POST /v1/generations/2:{verb}", BUILT)
    assert similis("generations", verb, 2, "--home", home).code == 0
    assert [(asked.method, asked.path) for asked in server.asked] == [("POST", f"/v1/generations/2:{verb}")]


def test_the_list_names_who_is_published_and_where_a_rollback_leads(similis, server, home):
    server.on("GET /v1/generations", {"generations": [BUILT | {"rollback_target": True}, BUILT | {"live": True}]})
    ran = similis("generations", "list", "--home", home)
    assert "rollback target" in ran.out
    assert "published" in ran.out
    assert "0.9875" in ran.out


ERASED = {
    "id": "op-9",
    "kind": "erase",
    "state": "running",
    "done": 0,
    "total": 4,
    "counts": {"images": 4, "studies": 1},
}


def test_a_study_is_erased_with_its_proof(similis, server, home):
    server.on("DELETE /v1/studies/1.2.3", ERASED, 202)
    server.on("GET /v1/operations/op-9", ERASED)
    server.on("GET /v1/operations/op-9", ERASED | {"state": "succeeded", "done": 4})
    ran = similis("erase", "--study", "1.2.3", "--yes", "--home", home)
    assert ran.code == 0
    assert "erased 4 images of 1 study; no index holds any of its data" in ran.out


@pytest.mark.parametrize("said", ["", "n\n"])
def test_nothing_is_erased_without_a_yes(similis, server, home, monkeypatch, said):
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert similis("erase", "--study", "1.2.3", "--home", home).code == 1
    assert server.asked == []


def test_a_patient_id_may_come_by_stdin(similis, server, home, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("MRN-1\n"))
    server.on("POST /v1/patients:erase", ERASED, 202)
    ran = similis("erase", "--patient", "-", "--issuer", "H", "--yes", "--no-wait", "--home", home)
    assert ran.code == 0
    assert server.asked[0].json == {"patient_id": "MRN-1", "issuer": "H"}
    assert "MRN-1" not in ran.out + ran.err


def test_either_a_study_or_a_patient_is_named(similis, home):
    assert similis("erase", "--home", home).code == 2
    assert similis("erase", "--study", "1.2", "--patient", "x", "--home", home).code == 2
    assert similis("erase", "--patient", "-", "--home", home).code == 2  # stdin is a pipe, so nobody can confirm


def test_an_empty_name_is_refused_before_anything_is_asked(similis, server, home):
    """A script's variable may be empty: `similis erase --study "$STUDY"` must not take it for a patient."""
    for command in (["erase", "--yes", "--study"], ["erase", "--lift", "--study"], ["search", "--study"]):
        ran = similis(*command, "", "--home", home)
        assert (ran.code, ran.err) == (5, "similis: an id or a name must not be empty\n")
    assert server.asked == []


def test_a_lift_takes_it_back(similis, server, home):
    server.on("POST /v1/studies/1.2.3:lift", {"tombstones": 5})
    ran = similis("erase", "--study", "1.2.3", "--lift", "--home", home)
    assert "5 tombstones are lifted" in ran.out
