import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shared.queue
from shared.errors import Unavailable
from shared.queue import QUEUES, CeleryQueue
from shared.types import Job


@pytest.fixture(scope="module")
def app() -> object:
    from workers.app import app

    app.loader.import_default_modules()
    return app


def test_every_job_has_a_task_and_every_task_a_job(app: object) -> None:
    tasks = {name for name in app.tasks if name.startswith("similis.")}  # type: ignore[attr-defined]
    assert tasks == {job.value for job in Job}


def test_no_two_tasks_share_a_name() -> None:
    assert len({job.value for job in Job}) == len(list(Job))


def test_every_job_has_a_queue() -> None:
    assert set(QUEUES) == set(Job)


def test_beat_only_rings_for_what_exists(app: object) -> None:
    for entry in app.conf.beat_schedule.values():  # type: ignore[attr-defined]
        assert entry["task"] in {job.value for job in Job}
        assert entry["options"]["queue"] == QUEUES[Job(entry["task"])]


CLOCK = """
import sys
from datetime import timedelta
from workers.app import app
from workers.heartbeat import ShowingLife

beat = ShowingLife(app=app, schedule_filename=sys.argv[1])
beat.tick()
for entry in beat.schedule.values():
    entry.last_run_at += timedelta(hours=1)
beat._heap = None
print(beat.tick())
"""


def test_a_clock_that_is_set_back_does_not_silence_the_sweep(tmp_path: Path) -> None:
    env = os.environ | {"SIMILIS_HOME": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", CLOCK, tmp_path / "beat"], env=env, capture_output=True, text=True, check=True
    )
    assert 0 < float(told.stdout.split()[-1]) <= 2


def test_a_home_that_takes_no_sign_of_life_ends_no_work(tmp_path: Path) -> None:
    """As with a read-only home: a scan writes its heartbeat at every step."""
    (tmp_path / "home").touch()
    env = os.environ | {"SIMILIS_HOME": str(tmp_path / "home")}
    script = "from workers.heartbeat import show_life; show_life('scan')"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BEATS = """
from types import SimpleNamespace
from celery import signals
from shared import heartbeat
from shared.process import sign_of_life
from shared.types import Job
from workers.app import settings
from workers.tasks import guard

class Worker:
    hostname = "scan@here"
    timer = SimpleNamespace(call_repeatedly=lambda *_: None)  # the event loop, which does not run during a task

signals.worker_ready.send(Worker())
sign = sign_of_life(settings.home, "scan")
for work in (lambda: None, heartbeat.beat):
    sign.unlink()
    guard(Job.SCAN, work)()
    print(sign.exists())
    sign.touch()
"""


def test_a_task_that_gets_on_is_its_workers_heartbeat(tmp_path: Path) -> None:
    env = os.environ | {"SIMILIS_HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", BEATS], env=env, capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["False", "True"], told.stderr


def test_what_was_erased_is_not_kept_by_a_scan_that_takes_days() -> None:
    assert QUEUES[Job.TIDY] != QUEUES[Job.SCAN]


SCRIPT = """
from shared.errors import NotFound, Unavailable
from shared.log import configure
from shared.types import Job
from workers.tasks import guard

configure("test")
ours = (Unavailable("away"), NotFound("no card"))
for error in (*ours, MemoryError(), ValueError("a patient's name"), RecursionError("her name")):
    def work(error=error):
        raise error
    guard(Job.SWEEP, work)()
"""


def test_no_exception_reaches_celery_and_no_log_line_quotes_one() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count("task_failed") == 4
    assert done.stderr.count("task_waits") == 1
    assert '"error": "no card"' in done.stderr  # our own words are logged
    assert "name" not in done.stdout + done.stderr


def test_an_absent_broker_is_no_error() -> None:
    from celery import Celery

    queue = CeleryQueue(Celery("nowhere", broker="redis+socket:///nonexistent/socket"))
    queue.ring(Job.ENCODE)
    with pytest.raises(Unavailable):
        queue.ping()


def test_a_broker_that_hangs_is_not_waited_for_at_every_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sent image rings the bell before its sender gets an answer."""
    from celery import Celery

    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = Celery("hanging", broker=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        app.conf.broker_transport_options = {"socket_timeout": 2}
        queue, began = CeleryQueue(app), time.monotonic()
        queue.ring(Job.ENCODE)
        assert time.monotonic() - began > shared.queue.LONG_S
        began = time.monotonic()
        queue.ring(Job.ENCODE)
        assert time.monotonic() - began < 0.5
        monkeypatch.setattr(shared.queue, "PAUSE_S", 0.0)
        queue = CeleryQueue(app)
        for _ in range(2):
            began = time.monotonic()
            queue.ring(Job.ENCODE)
            assert time.monotonic() - began > shared.queue.LONG_S
