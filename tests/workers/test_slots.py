"""Sweeps run in time although long tasks are queued again and again: the tombstone file must not lag behind."""

import subprocess
import sys
import time
from pathlib import Path

from celery import Celery

from services.embedded import commands
from shared.queue import GUESTS, QUEUES
from shared.types import Job
from workers import app as ours

SCRIPT = """
import time
from celery import Celery
app = Celery("slots", broker="{broker}")
app.conf.update(worker_prefetch_multiplier=1, worker_disable_prefetch=True, task_ignore_result=True)

def note(word):
    with open("{told}", "a") as file:
        file.write(word)

@app.task(name="slow")
def slow():
    note("s")
    time.sleep(0.2)

@app.task(name="sweep")
def sweep():
    note("w")
"""


def test_a_sweep_waits_for_one_long_task_and_not_for_all(valkey_url: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.touch()
    (tmp_path / "slots.py").write_text(SCRIPT.format(broker=valkey_url, told=told))
    client = Celery("slots", broker=valkey_url)
    for _ in range(12):
        client.send_task("slow", queue=QUEUES[Job.PROJECT])
    for _ in range(3):
        client.send_task("sweep", queue=QUEUES[Job.SWEEP])
    client.close()
    argv = commands.worker(QUEUES[Job.PROJECT], "slots")
    queues = argv[argv.index("--queues") + 1]
    command = [sys.executable, "-m", "celery", "--app", "slots:app", "worker", "--pool", "solo", "--queues", queues]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    worker = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while told.read_text().count("w") < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert told.read_text().rindex("w") <= 8, "in turn: at most two long ones before each"
    finally:
        worker.kill()
        worker.wait()


def test_a_sweep_lives_longer_than_the_tasks_it_waits_for() -> None:
    """`project.drain` and `erase` take up to 20 s each."""
    (sweep,) = (one for one in ours.app.conf.beat_schedule.values() if one["task"] == Job.SWEEP.value)
    assert sweep["options"] == {"queue": QUEUES[Job.SWEEP], "expires": ours.SWEEP_LIFE_S}
    assert ours.SWEEP_LIFE_S >= 3 * 20


def test_every_queue_has_a_worker_or_a_host() -> None:
    assert set(QUEUES.values()) == {*commands.WORKER_QUEUES, *GUESTS}
    assert set(GUESTS.values()) <= set(commands.WORKER_QUEUES)
