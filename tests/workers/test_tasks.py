import subprocess
import sys

import pytest

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


SCRIPT = """
from shared.errors import Unavailable
from shared.log import configure
from shared.types import Job
from workers.tasks import guard

configure("test")
for error in (MemoryError(), Unavailable("away"), ValueError("a patient's name"), RecursionError("her name")):
    def work(error=error):
        raise error
    guard(Job.SWEEP, work)()
"""


def test_no_exception_reaches_celery_and_no_log_line_quotes_one() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count("task_failed") == 3
    assert done.stderr.count("task_waits") == 1
    assert "name" not in done.stdout + done.stderr


def test_an_absent_broker_is_no_error() -> None:
    from celery import Celery

    queue = CeleryQueue(Celery("nowhere", broker="redis+socket:///nonexistent/socket"))
    queue.ring(Job.ENCODE)
    with pytest.raises(Unavailable):
        queue.ping()
