import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.embedded.home import Home
from services.embedded.part import Program
from services.embedded.stack import down
from services.embedded.supervisor import Supervisor, back_off_s
from shared.process import Identity, has_ended, until

SCRIPT = Path(__file__).parent / "fake_stack.py"
ROOT = Path(__file__).resolve().parents[2]


class Stack:
    """The fake stack as a process, observed from outside."""

    def __init__(self, folder, **spec):
        self.home = Home.at(folder / "home")
        self.spec = folder / "spec.json"
        spec.setdefault("order", [[part["name"]] for part in spec["parts"]])
        self.spec.write_text(json.dumps(spec))
        self.talk = folder / "talk"
        self.children = []

    def start(self, until_ready=True):
        with self.talk.open("ab") as talk:
            child = subprocess.Popen(
                [sys.executable, SCRIPT, self.home.path, self.spec],
                stderr=talk,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.children.append(child)
        if until_ready:
            assert until(lambda: has_ended(child) or self.is_ready(child), 20)
            assert not has_ended(child), self.said
        return child

    def is_ready(self, child):
        state = self.home.state
        return bool(state.get("ready")) and state["supervisor"]["pid"] == child.pid

    @property
    def said(self):
        return self.talk.read_text()

    @property
    def events(self):
        path = self.home / "events"
        return path.read_text().splitlines() if path.exists() else []

    def of(self, name):
        return self.home.state["processes"][name]

    def identity(self, name):
        kept = self.of(name)["identity"]
        return None if kept is None else Identity(**kept)


@pytest.fixture
def stack(tmp_path):
    made = []

    def make(*parts, **spec):
        made.append(Stack(tmp_path, parts=list(parts), **spec))
        return made[-1]

    yield make
    for one in made:
        for child in one.children:
            if child.poll() is None:
                child.terminate()
            child.wait(20)


def test_a_part_starts_only_when_those_it_needs_serve(stack):
    one = stack({"name": "engine", "waits_for_file": True}, {"name": "api", "needs": ["engine"]})
    one.start(until_ready=False)
    assert until(lambda: one.events == ["engine started"], 5)
    assert not until(lambda: "api started" in one.events, 0.5)
    (one.home / "engine.serves").touch()
    assert until(lambda: one.events == ["engine started", "api started"], 5)


def test_what_runs_once_is_waited_for_and_not_started_again(stack):
    touch = {"name": "setup", "once": True, "argv": ["sh", "-c", "sleep 0.2"]}
    one = stack(touch, {"name": "api", "needs": ["setup"]})
    one.start()
    assert one.of("setup") == {"state": "done", "restarts": 0, "identity": None}
    assert one.of("api")["state"] == "ready"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_stops_everything_in_order_and_ends_with_0(stack, number):
    one = stack(
        {"name": "engine"}, {"name": "worker", "stop_s": 0.3}, {"name": "api"}, order=[["api"], ["worker"], ["engine"]]
    )
    child = one.start()
    assert until(lambda: len(one.events) == 3, 5)
    child.send_signal(number)
    assert child.wait(20) == 0
    assert one.events[3:] == ["api stopped", "worker stopped", "engine stopped"]
    assert one.home.state["supervisor"] is None
    assert not one.home.locked


def test_ctrl_c_in_the_terminal_reaches_the_supervisor_alone(stack):
    one = stack({"name": "engine"}, {"name": "api"}, order=[["api"], ["engine"]])
    child = one.start()
    groups = {os.getpgid(one.identity(name).pid) for name in ("engine", "api")}
    assert os.getpgid(child.pid) not in groups
    assert len(groups) == 2


def test_a_killed_child_is_started_again_at_once(stack):
    one = stack({"name": "api"})
    one.start()
    assert until(lambda: one.events == ["api started"], 5)
    before = one.identity("api")
    before.signal(signal.SIGKILL)
    assert until(lambda: one.identity("api") not in (before, None), 5)
    assert until(lambda: one.events == ["api started", "api started"], 5)
    assert one.of("api")["restarts"] == 1
    assert "api ended (signal SIGKILL); restarting it" in one.said


def test_a_child_that_hangs_is_killed_and_started_again(stack):
    one = stack({"name": "api", "silent_s": 1.5})
    one.start()
    assert until((one.home / "api.alive").exists, 5)
    assert not until(lambda: one.of("api")["restarts"] > 0, 3), "it lives"
    before = one.identity("api")
    before.signal(signal.SIGSTOP)
    assert until(lambda: one.identity("api") not in (before, None), 30)
    assert not before.alive
    assert "api has not responded for" in one.said
    assert "api ended (signal SIGKILL); restarting it" in one.said


def test_a_child_that_is_silent_and_computes_is_left_alone(stack):
    one = stack({"name": "worker", "silent_s": 1.0, "argv": [sys.executable, "-c", "while True: sum(range(1000))"]})
    one.start()
    assert not until(lambda: one.of("worker")["restarts"] > 0, 4)


def test_a_machine_that_slept_has_counted_no_silence(stack):
    one = stack({"name": "api", "silent_s": 3.0})
    child = one.start()
    before = one.identity("api")
    assert until((one.home / "api.alive").exists, 5)
    before.signal(signal.SIGSTOP)
    time.sleep(2.5)  # silent for two looks
    child.send_signal(signal.SIGSTOP)
    time.sleep(5)
    child.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    before.signal(signal.SIGCONT)
    assert not until(lambda: one.of("api")["restarts"] > 0, 2)
    assert one.identity("api") == before


def test_what_a_killed_child_had_started_dies_with_it(stack):
    one = stack({"name": "worker", "argv": ["sh", "-c", "sleep 321 & echo $! > $0; wait", "PID"]})
    spec = json.loads(one.spec.read_text())
    spec["parts"][0]["argv"][-1] = str(one.home / "grandchild")
    one.spec.write_text(json.dumps(spec))
    one.start()
    path = one.home / "grandchild"
    assert until(lambda: path.exists() and path.read_text().strip(), 5)
    grandchild = Identity.of(int(path.read_text()))
    assert grandchild is not None
    one.identity("worker").signal(signal.SIGKILL)
    assert until(lambda: not grandchild.alive, 5)


def test_a_child_that_dies_again_and_again_is_shown_with_its_last_words_and_slowed_down(stack):
    words = "echo cannot read the moon; for n in 1 2 3 4; do echo so it ends $n; done"  # as PostgreSQL on a full disk
    one = stack({"name": "api", "argv": ["sh", "-c", f"({words}) >&2; exit 7"]}, {"name": "worker"})
    began = time.monotonic()
    one.start(until_ready=False)
    assert until(lambda: "api has ended 4 times in a row (code 7)" in one.said, 20)
    assert time.monotonic() - began >= 0.75  # back-off between the four starts: 0, 0.25 and 0.5 s
    assert "api |  cannot read the moon" in one.said
    assert until(lambda: one.of("worker")["state"] == "ready", 5)
    assert one.of("api")["restarts"] <= 5


def test_the_waits_between_starts_double_up_to_half_a_minute():
    waits = [back_off_s(failures) for failures in range(12)]
    assert waits[:5] == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert waits == sorted(waits)
    assert waits[-1] == 30.0


def test_a_part_that_has_failed_for_a_week_is_still_started_again():
    assert back_off_s(20_000) == 30.0


@pytest.mark.parametrize(("ready", "lived_s", "away_s"), [(True, 15.0, 0.0), (True, 5.0, 30.0), (False, 15.0, 30.0)])
def test_who_is_killed_now_and_then_is_back_at_once_and_who_dies_at_its_start_is_slowed_down(
    tmp_path, ready, lived_s, away_s
):
    """Where every part was away for longer than it lived, the parts of a build never met."""
    part = Program("worker", ["sleep", "600"])
    one = Supervisor(Home.at(tmp_path / "home"), [(part, ())], [["worker"]], {}, lambda _: None)
    worker, now = one.watched["worker"], 0.0
    for _ in range(12):
        now = max(now, worker.not_before)
        one._start(worker, now)
        worker.ready, worker.ready_at = ready, now
        worker.child.kill()
        now += lived_s
        one._bury(worker, now)
    assert worker.not_before - now == away_s


def test_a_second_supervisor_on_the_same_home_is_refused_with_a_clear_sentence(stack):
    one = stack({"name": "api"})
    one.start()
    second = one.start(until_ready=False)
    assert second.wait(10) == 4
    assert "similis already runs on this home" in one.said
    assert "http://nowhere" in one.said
    assert one.identity("api").alive


def test_the_children_of_a_killed_supervisor_end_by_themselves(stack):
    one = stack({"name": "api"}, {"name": "engine"})
    child = one.start()
    orphans = [one.identity("api"), one.identity("engine")]
    assert until(lambda: len(one.events) == 2, 5)
    child.kill()
    assert until(lambda: not any(orphan.alive for orphan in orphans), 5)
    assert sorted(one.events[2:]) == ["api stopped", "engine stopped"]


def test_after_kill_9_of_all_of_it_the_next_start_works(stack):
    one = stack({"name": "api"}, {"name": "engine"})
    child = one.start()
    ids = [one.identity("api"), one.identity("engine")]
    assert until(lambda: len(one.events) == 2, 5)
    child.kill()
    for identity in ids:
        identity.signal(signal.SIGKILL)
    child.wait()
    assert not one.home.locked
    one.start()
    assert until(lambda: len([event for event in one.events if event.endswith("started")]) == 4, 5)


def test_an_orphan_that_does_not_end_by_itself_is_ended_before_anything_starts(stack):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    one = stack({"name": "deaf", "argv": [sys.executable, "-c", deaf]}, patience_s=0.3)
    child = one.start()
    orphan = one.identity("deaf")
    assert until(lambda: deaf_by_now(orphan.pid), 5)
    child.kill()
    child.wait()
    assert orphan.alive
    again = one.start()
    assert not orphan.alive
    assert "waiting for processes of a supervisor that was killed" in one.said
    left = one.identity("deaf")
    again.kill()  # SIGTERM would make it wait for the deaf child
    again.wait()
    left.signal(signal.SIGKILL)
    assert until(lambda: not left.alive, 5)


def test_down_ends_a_supervisor_that_still_waits_for_the_children_of_a_killed_one(stack):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    one = stack({"name": "deaf", "argv": [sys.executable, "-c", deaf]}, patience_s=1)
    child = one.start()
    assert until(lambda: deaf_by_now(one.identity("deaf").pid), 5)
    child.kill()
    child.wait()
    again = one.start(until_ready=False)
    assert until(lambda: "waiting for processes" in one.said, 20)
    assert one.home.state["supervisor"] is None  # `down` must not find the killed supervisor's URL
    assert down(one.home, 30)
    assert again.wait(10) == 0


def deaf_by_now(pid):
    """Whether the process ignores SIGTERM by now."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigIgn"))
    return int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)) != 0


def test_a_stranger_with_the_pid_of_an_old_child_is_left_alone(stack):
    one = stack({"name": "api"})
    with subprocess.Popen(["sleep", "60"]) as stranger:
        known = Identity.of(stranger.pid)
        earlier = Identity(known.pid, known.started - 1, known.boot)
        one.home.remember({"processes": {"api": {"identity": vars(earlier)}}})
        one.start()
        assert stranger.poll() is None
        stranger.kill()


def test_a_supervisor_names_itself_before_its_first_child_is_there(stack):
    one = stack({"name": "database", "slow": True})
    child = one.start(until_ready=False)
    assert until(lambda: one.home.state.get("supervisor"), 20)
    assert one.home.state["supervisor"]["pid"] == child.pid
    assert one.of("database")["identity"] is None


def test_adopted_zombies_are_buried(stack):
    leave = "import subprocess, time; subprocess.Popen(['sh', '-c', 'setsid sleep 0.1 & exit']); time.sleep(60)"
    one = stack({"name": "worker", "argv": [sys.executable, "-c", leave]})
    child = one.start()
    assert not until(lambda: False, 1.5)  # enough for the grandchild to end, and for a tick
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    assert [f for f in fields if f[0] == "Z" and int(f[1]) == child.pid] == []


def test_warnings_of_a_child_are_told_in_a_readable_form_and_the_rest_is_not(stack):
    lines = [
        {"event": "bell_not_heard", "level": "warning", "task": "similis.encode", "timestamp": "t", "role": "api"},
        {"event": "request", "level": "info", "route": "/livez"},
    ]
    said = "".join(json.dumps(line) + "\n" for line in lines)
    one = stack({"name": "api", "argv": ["sh", "-c", 'printf "%s" "$0" >&2; sleep 60', said]})
    one.start()
    assert until(lambda: "similis  api: bell_not_heard task=similis.encode" in one.said, 5)
    assert "livez" not in one.said


def test_the_state_is_0600_and_names_only_processes(stack):
    one = stack({"name": "api"})
    one.start()
    assert (one.home / "state.json").stat().st_mode & 0o777 == 0o600
    assert set(one.home.state) == {"url", "ready", "supervisor", "processes"}


def test_a_state_that_cannot_be_written_stops_nothing(stack):
    one = stack({"name": "api"})
    (one.home / "state.json.part").mkdir()  # every write of the state fails, as on a full disk
    child = one.start(until_ready=False)
    assert until(lambda: "similis  ready" in one.said, 10)
    assert until(lambda: one.events == ["api started"], 5)
    assert not (one.home / "state.json").exists()
    (one.home / "state.json.part").rmdir()
    assert until(lambda: one.home.state.get("ready") is True, 5)
    child.terminate()
    assert child.wait(20) == 0
