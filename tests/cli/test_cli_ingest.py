"""Intake from the terminal: requests, progress and summary."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from services.cli.follow import Lines, Operation, Rate
from services.cli.waiting import pause_s

ID = "11111111-2222-3333-4444-555555555555"
SCANS, ONE = "POST /v1/ingest/scans", f"GET /v1/operations/{ID}"


def operation(state: str = "running", done: int = 0, total: int | None = None, **more: Any) -> dict[str, Any]:
    outcomes = [
        {"outcome": outcome, "gate": gate, "reason": reason, "explanation": None, "count": count}
        for outcome, gate, reason, count in more.pop("outcomes", [])
    ]
    answer = {"id": ID, "kind": "scan", "state": state, "done": done, "total": total, "counts": {}, "error": None}
    return answer | {"outcomes": outcomes, "took_s": 1.5, "phase": "encoding", "registered_at": None} | more


MIXED = [("encoded", None, None, 7), ("quarantined", "pixels", "blank", 2), ("failed", None, "not_dicom", 1)]


@pytest.fixture
def done(server):
    server.on(SCANS, operation("pending"), 202)
    server.on(ONE, operation(done=4, total=10, outcomes=[("received", None, None, 4)]))
    server.on(ONE, operation("succeeded", 10, 10, outcomes=MIXED))
    return server


def test_refused_files_are_told_by_outcome_gate_and_reason_and_the_exit_code_is_0(home, done, similis, tmp_path):
    ran = similis("ingest", tmp_path / "archive", "--labels", tmp_path / "labels.csv", "--home", home)
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["encoded", "7"] in lines
    assert ["quarantined", "pixels", "blank", "2"] in lines
    assert ["failed", "not_dicom", "1"] in lines
    asked = done.asked[0]
    assert asked.json == {
        "path": str(tmp_path / "archive"),
        "labels": str(tmp_path / "labels.csv"),
        "watch": False,
    }
    assert len(asked.headers["Idempotency-Key"]) >= 32


def test_an_empty_folder_is_told_and_not_only_that_it_succeeded(home, server, similis, tmp_path):
    server.on(SCANS, operation("succeeded", 0, 0), 202)
    server.on(ONE, operation("succeeded", 0, 0))
    ran = similis("ingest", tmp_path, "--home", home)
    assert (ran.code, "there is no file in this folder" in ran.err) == (0, True)


def test_images_that_the_label_table_does_not_name_are_told(home, server, similis, tmp_path):
    server.on(SCANS, operation("pending"), 202)
    server.on(ONE, operation("succeeded", 10, 10, outcomes=MIXED, counts={"unlabelled": 7, "namesakes": 2}))
    ran = similis("ingest", tmp_path, "--labels", tmp_path / "labels.csv", "--home", home)
    warned = [line.split()[1:3] for line in ran.out.splitlines() if line.split()[0] == "warning"]
    assert warned == [["unlabelled", "7"], ["namesakes", "2"]]


def test_where_gate_3_hardly_judges_yet_the_end_says_so_with_the_command(home, done, similis, tmp_path):
    done.on("GET /readyz", {"status": "ready", "model": "my net"})
    done.on("GET /v1/models/my%20net/calibrations", {"calibrations": [], "without": {}, "wanting": {"MG": 1200}})
    ran = similis("ingest", tmp_path, "--home", home)
    assert ran.code == 0
    (line,) = [line for line in ran.err.splitlines() if "gate 3" in line]
    assert "1200 MG images" in line
    assert line.endswith("similis quarantine calibrate --model 'my net' --modality MG")


def test_a_key_that_may_not_read_is_told_nothing_of_the_gates(home, done, similis, tmp_path):
    done.on("GET /readyz", {"status": "ready", "model": "net"})
    done.problem("GET /v1/models/net/calibrations", 403, "no")
    ran = similis("ingest", tmp_path, "--home", home)
    assert (ran.code, "gate 3" in ran.err) == (0, False)


def test_a_relative_path_is_sent_as_an_absolute_one(home, done, similis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    similis("ingest", "archive", "--home", home)
    assert done.asked[0].json["path"] == str(tmp_path / "archive")


def test_with_json_stdout_holds_one_object_and_the_talk_is_on_stderr(home, done, similis, tmp_path):
    ran = similis("ingest", tmp_path, "--json", "--home", home)
    assert ran.json["state"] == "succeeded"
    assert "registered 4/10 files, decided 0/4 images" in ran.err
    assert "decided 10/10 images" in ran.err


def test_an_operation_that_failed_exits_1_and_says_why(home, server, similis, tmp_path):
    server.on(SCANS, operation("pending"), 202)
    server.on(ONE, operation("failed", error="there is no such folder"))
    ran = similis("ingest", tmp_path, "--home", home)
    assert ran.code == 1
    assert "failed" in ran.out
    assert "there is no such folder" in ran.out


def test_without_waiting_the_id_is_all_that_goes_to_stdout(home, done, similis, tmp_path):
    ran = similis("ingest", tmp_path, "--no-wait", "--home", home)
    assert (ran.code, ran.out) == (0, f"{ID}\n")
    assert len(done.asked) == 1


def test_a_second_run_says_how_many_files_it_knew(home, server, similis, tmp_path):
    server.on(SCANS, operation("pending"), 202)
    server.on(ONE, operation("succeeded", 9, 9, counts={"unchanged": 9}))
    ran = similis("ingest", tmp_path, "--home", home)
    assert ["unchanged", "9"] in [line.split()[:2] for line in ran.out.splitlines()]


@pytest.mark.parametrize(("flag", "code"), [([], 130), (["--watch"], 0)])
def test_ctrl_c_leaves_the_operation_running_and_says_how_to_follow_or_cancel_it(home, server, tmp_path, flag, code):
    server.on(SCANS, operation("pending"), 202)
    server.on(ONE, operation(done=1, total=10))
    argv = [sys.executable, "-m", "services.cli.main", "ingest", str(tmp_path), "--home", str(home), *flag]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (code, "")
    assert f"similis operations cancel {ID}" in err
    assert f"similis operations show {ID} --follow" in err
    assert "Traceback" not in err
    assert not any(asked.path.endswith(":cancel") for asked in server.asked)


def test_the_wait_outlasts_a_server_that_is_being_restarted(home, server, similis, tmp_path):
    server.on(SCANS, operation("pending"), 202)
    server.problem(ONE, 503, "the connection to the database was lost", Retry_After="0")
    server.on(ONE, operation("succeeded", 1, 1, outcomes=[("encoded", None, None, 1)]))
    ran = similis("ingest", tmp_path, "--home", home)
    assert ran.code == 0
    assert "waiting for the server" in ran.err


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_following_an_operation_that_has_ended_ends_as_following_it_to_its_end(home, server, similis, state, code):
    server.on(ONE, operation(state, 3, 3, outcomes=MIXED))
    ran = similis("operations", "show", ID, "--follow", "--home", home)
    assert (ran.code, len(server.asked)) == (code, 1)
    assert similis("operations", "show", ID, "--home", home).code == 0  # `show` succeeds whatever the state


def test_only_what_takes_in_counts_files(home, server, similis):
    server.on(ONE, operation(done=3, total=9))
    server.on(ONE, operation(done=3, total=9) | {"kind": "reindex"})
    shown = [similis("operations", "show", ID, "--home", home).out.splitlines()[-1] for _ in range(2)]
    assert shown == ["registered 3 of 9 files so far", "3 of 9 so far"]


def test_what_takes_in_nothing_is_followed_without_files_and_until_it_is_paused(home, server, similis):
    server.on(ONE, operation(done=3, total=9) | {"kind": "reindex"})
    server.on(ONE, operation("paused", done=3, total=9) | {"kind": "reindex"})
    ran = similis("operations", "show", ID, "--follow", "--home", home)
    assert ran.code == 1
    assert ran.err.splitlines() == ["reindex: 3 of 9 (paused)"]


@pytest.mark.parametrize(("took_s", "waits_s"), [(0.01, 0.5), (2.0, 20.0), (60.0, 30.0)])
def test_a_dear_answer_is_asked_for_less_often(took_s, waits_s):
    assert pause_s(took_s) == waits_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_a_long_intake_writes_few_lines(capsys):
    clock = Clock()
    lines = Lines(clock)
    for done in range(1001):
        clock.now += 0.05
        lines.show(Operation.of(operation(done=done, total=1000, outcomes=[("encoded", None, None, max(done, 1))])))
    written = capsys.readouterr().err.splitlines()
    assert 5 <= len(written) <= 12
    assert written[-1].startswith("registered 1000/1000 files, decided 1000/1000 images")


def test_images_that_wait_for_a_model_are_said_to(capsys):
    lines, waiting = Lines(Clock()), [("received", None, None, 4)]
    for phase in ("encoding", "waiting for a model", "waiting for a model"):
        lines.show(Operation.of(operation(done=4, total=4, phase=phase, outcomes=waiting)))
    assert capsys.readouterr().err.splitlines() == [
        "registered 4/4 files, decided 0/4 images",
        "registered 4/4 files, decided 0/4 images, waiting for a model",
    ]


def test_what_holds_an_operation_up_is_said_once_until_it_goes_on(capsys):
    lines, away = Lines(Clock()), "the archive does not answer (ConnectError)"
    for error in ("", away, away, ""):
        lines.show(Operation.of(operation(done=0, total=4, error=error)))
    lines.show(Operation.of(operation(state="failed", done=0, total=4, error=away)))
    assert capsys.readouterr().err.splitlines() == [
        "registered 0/4 files, decided 0/0 images",
        f"registered 0/4 files, decided 0/0 images, {away}",
    ]


def test_the_rate_is_that_of_the_last_seconds():
    clock = Clock()
    rate = Rate(clock, window_s=10)
    for second in range(100):
        clock.now = float(second)
        rate.add(second if second < 50 else 50 + (second - 50) * 4)
    assert rate.per_s == pytest.approx(4)
    assert rate.left_s(40) == pytest.approx(10)


def test_before_anything_has_moved_no_time_left_is_claimed():
    clock = Clock()
    rate = Rate(clock)
    rate.add(0)
    assert rate.per_s == 0
    assert rate.left_s(10) is None


def test_images_that_wait_for_a_decision_do_not_count_as_decided():
    outcomes = [("encoded", None, None, 3), ("received", None, None, 5), ("encoding", None, None, 2)]
    one = Operation.of(operation(outcomes=[*outcomes, ("empty", None, "report", 1)]))
    assert (one.decided, one.known) == (4, 11)


def test_how_many_images_there_are_is_known_once_a_file_is_new_or_all_are_registered():
    def images(*outcomes, **more):
        return Operation.of(operation(**more, outcomes=outcomes)).images

    assert images() is None
    assert images(("received", None, None, 3)) == 3
    assert images(registered_at="2026-11-30T09:00:00Z") == 0
    assert images(state="failed") == 0


def test_a_published_set_is_asked_for_by_name_and_what_was_odd_about_it_is_told(home, server, similis, tmp_path):
    server.on(SCANS, operation("pending"), 202)
    counts = {"taken": 7, "dataset:row-without-image": 3, "label:BI-RADS 4, DM_low_energy": 7}
    server.on(ONE, operation("succeeded", 7, 7, counts=counts, outcomes=[("encoded", None, None, 7)]))
    ran = similis("ingest", tmp_path, "--dataset", "cdd-cesm", "--home", home)
    assert server.asked[0].json == {"path": str(tmp_path), "dataset": "cdd-cesm", "watch": False}
    assert ["warning", "row-without-image", "3"] in [line.split()[:3] for line in ran.out.splitlines()]
    assert ["label", "BI-RADS", "4,", "DM_low_energy", "7"] in [line.split()[:5] for line in ran.out.splitlines()]
