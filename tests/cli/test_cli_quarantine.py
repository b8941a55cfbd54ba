"""`similis quarantine`: requests, output and exit codes."""

import pytest

ITEM = {
    "item": "image-17", "gate": "features", "reason": "out-of-distribution", "score": 3.0, "threshold": 0.52,
    "distance": 41.5, "distance_threshold": 37.25, "modality": "MG", "sop_instance_uid": "1.2.3",
    "since": "2026-01-31T08:14:02.518302Z",
}  # fmt: skip
SAID = {"item": "image-17", "decision": "released", "reviewer": "Anna", "at": "2026-01-01", "gate": "features",
        "reason": "far-from-known", "score": 3.0, "distance": 41.5, "note": "an implant"}  # fmt: skip
PLAN = {
    "model": "base", "modality": "MG", "threshold": 0.6, "distance_threshold": 37.25, "rule": "given",
    "applied": False, "operation": None,
    "counts": {"stop": 1, "admit": 2, "stay": 97, "decided": 3}, "complete": True,
    "stop": [{"image": 5, "sop_instance_uid": "1.2.5", "score": 0.7, "distance": 38.5, "reason": "far-from-known"}],
    "admit": [],
}  # fmt: skip
CALIBRATION = {
    "id": 4, "modality": "MG", "source": "archive", "rule": "log", "threshold": 0.52, "mean": 0.5, "std": 0.01,
    "n": 400, "distances": {"threshold": 37.25, "n": 399}, "made_by": "Anna", "in_force": True,
}  # fmt: skip


def test_the_queue_is_a_table_and_names_the_next_page(similis, server, home):
    server.on("GET /v1/quarantine", {"items": [ITEM], "next": "image-17"})
    ran = similis("quarantine", "list", "--gate", "features", "--modality", "MG", "--home", home)
    assert (ran.code, server.asked[0].path) == (0, "/v1/quarantine?gate=features&modality=MG&limit=100")
    assert "image-17" in ran.out
    assert "0.52" in ran.out
    assert "37.25" in ran.out
    assert "--cursor image-17" in ran.err
    server.on("GET /v1/quarantine", {"items": [ITEM], "next": None})
    assert ITEM["since"] in similis("quarantine", "list", "--home", home).out.replace("\n", "")


@pytest.mark.parametrize("verb", ["release", "reject"])
def test_a_decision_goes_with_its_note(similis, server, home, verb):
    server.on(f"POST /v1/quarantine/image-17:{verb}", SAID)
    ran = similis("quarantine", verb, "image-17", "--note", "an implant", "--home", home)
    assert (ran.code, server.asked[0].json) == (0, {"note": "an implant"})
    assert "released by Anna" in ran.out
    similis("quarantine", verb, "image-17", "--since", ITEM["since"], "--home", home)
    assert server.asked[1].json == {"note": "", "since": ITEM["since"]}


def test_a_decision_that_another_made_first_is_a_conflict(similis, server, home):
    server.problem("POST /v1/quarantine/image-17:reject", 409, "this image was released already")
    ran = similis("quarantine", "reject", "image-17", "--home", home)
    assert ran.code == 4
    assert "released already" in ran.err


def test_what_was_said_is_shown(similis, server, home):
    server.on("GET /v1/quarantine/image-17", {"reviews": [SAID]})
    assert "an implant" in similis("quarantine", "show", "image-17", "--home", home).out


def test_an_image_that_nobody_has_decided_on_is_said_to_be_so(similis, server, home):
    server.on("GET /v1/quarantine/image-17", {"reviews": []})
    ran = similis("quarantine", "show", "image-17", "--home", home)
    assert (ran.code, ran.out, ran.err) == (0, "", "nobody has decided on image-17\n")


def test_a_replay_that_names_only_some_images_says_so(similis, server, home):
    flips = PLAN["stop"] * 2
    server.on("POST /v1/quarantine:replay", PLAN | {"counts": {"stop": 7, "admit": 2}, "stop": flips, "admit": flips})
    argv = ("quarantine", "replay", "--model", "base", "--modality", "MG", "--shown", 2, "--home", home)
    assert "only 2 of 7 that it stops are shown; more with --shown" in similis(*argv).err
    assert "that it admits" not in similis(*argv).err


def test_one_or_many_are_retried_and_never_all_by_mistake(similis, server, home):
    server.on("POST /v1/quarantine/file-3:retry", {"images": 0, "files": 1, "held": 0})
    server.on("POST /v1/quarantine:retry", {"images": 4, "files": 2, "held": 3})
    assert "0 images, 1 files" in similis("quarantine", "retry", "file-3", "--home", home).out
    ran = similis("quarantine", "retry", "--reason", "no-permitted-decoder", "--home", home)
    assert "4 images, 2 files" in ran.out
    assert "3 images were stopped by an admission rule" in ran.err
    assert server.asked[1].json == {"reason": "no-permitted-decoder"}
    assert similis("quarantine", "retry", "--home", home).code == 2


def test_calibrate_tells_what_was_made_and_what_was_not(similis, server, home):
    made = {"calibrations": [CALIBRATION], "skipped": {"CT": 3}, "left_out": {"MG": 2}}
    server.on("POST /v1/models/base/calibrations", made, 201)
    ran = similis("quarantine", "calibrate", "--model", "base", "--rule", "log", "--home", home)
    assert (ran.code, server.asked[0].json) == (0, {"rule": "log"})
    assert "archive" in ran.out
    assert "CT: 3 encoded images are too few" in ran.err
    assert "MG: 2 images that gate 3 had stopped were left out" in ran.err


def test_what_passed_without_a_threshold_is_said(similis, server, home):
    server.on("GET /v1/models/base/calibrations", {"calibrations": [CALIBRATION], "without": {"US": 12}, "wanting": {}})
    ran = similis("quarantine", "calibrations", "--model", "base", "--home", home)
    assert "US: 12 searchable images passed without a threshold" in ran.out
    assert ran.err == ""


def test_a_replay_is_shown_and_only_applied_when_asked(similis, server, home):
    server.on("POST /v1/quarantine:replay", PLAN)
    argv = ("quarantine", "replay", "--model", "base", "--modality", "MG", "--threshold", 0.6, "--home", home)
    ran = similis(*argv)
    assert server.asked[0].json == {"model": "base", "modality": "MG", "apply": False, "shown": 20, "threshold": 0.6}
    assert "stops 1 searchable images, admits 2 stopped ones, 97 stay; 3 were decided on" in ran.out
    assert "1.2.5" in ran.out
    assert "threshold 0.6, distance threshold 37.25 (given)" in ran.out
    assert "far-from-known" in ran.out
    assert "nothing was changed" in ran.err
    assert "in the time allowed" not in ran.out
    server.answers.clear()
    server.on("POST /v1/quarantine:replay", PLAN | {"complete": False})
    assert "only the first 103 images were checked in the time allowed" in similis(*argv).out
    server.answers.clear()
    server.on("POST /v1/quarantine:replay", PLAN | {"applied": True, "operation": "op-1"}, 202)
    server.on("GET /v1/operations/op-1", {"id": "op-1", "state": "succeeded", "done": 100, "total": 100})
    ran = similis(*argv, "--apply", "--follow")
    assert (ran.code, server.asked[-2].json["apply"]) == (0, True)
    assert "operation op-1 succeeded" in ran.out
    server.answers["GET /v1/operations/op-1"] = [(200, {"id": "op-1", "state": "failed", "done": 3, "total": 9}, {})]
    ran = similis(*argv, "--apply", "--follow")
    assert ran.code == 1
    assert "operation op-1 failed" in ran.out


def test_a_calibration_without_a_vote_says_so(similis, server, home):
    without = CALIBRATION | {"threshold": None, "mean": None, "std": None}, CALIBRATION | {"distances": None}
    server.on("GET /v1/models/base/calibrations", {"calibrations": list(without), "without": {}, "wanting": {}})
    ran = similis("quarantine", "calibrations", "--model", "base", "--home", home)
    assert ran.code == 0
    assert ran.out.count("37.25") == 1
    assert ran.out.count("0.52") == 1
    assert "none" in ran.out


def test_both_thresholds_are_asked_for_together(similis, server, home):
    server.on("POST /v1/quarantine:replay", PLAN)
    argv = ("--model", "base", "--modality", "MG", "--threshold", 0.6, "--distance", 40, "--home", home)
    assert similis("quarantine", "replay", *argv).code == 0
    assert (server.asked[0].json["threshold"], server.asked[0].json["distance_threshold"]) == (0.6, 40)


def test_a_threshold_and_a_rule_at_once_are_refused_here(similis, server, home):
    argv = ("--model", "base", "--modality", "MG", "--threshold", 0.6, "--rule", "log", "--home", home)
    assert similis("quarantine", "replay", *argv).code == 5
    assert server.asked == []
