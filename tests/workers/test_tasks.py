import logging
from collections.abc import Iterator

import pytest
import structlog

from shared.errors import Unavailable
from shared.log import configure
from shared.queue import QUEUES, CeleryQueue
from shared.types import Job


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """The log lines of a configured process."""
    root = logging.getLogger()
    level = root.level
    configure("test")
    yield capsys
    root.handlers.clear()  # pytest puts its own back before the next test
    root.setLevel(level)
    logging.raiseExceptions = True
    structlog.reset_defaults()


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


@pytest.mark.parametrize("error", [MemoryError, Unavailable("away"), ValueError("a patient's name"), RecursionError])
def test_no_exception_reaches_celery(app: object, error: BaseException, logs: pytest.CaptureFixture[str]) -> None:
    from workers.tasks import guard

    def work() -> None:
        raise error

    guard(Job.SWEEP, work)()
    told = logs.readouterr().err
    assert "task_waits" in told or "task_failed" in told
    assert "a patient's name" not in told


def test_an_absent_broker_costs_a_moment_and_no_error() -> None:
    import time

    from celery import Celery

    queue = CeleryQueue(Celery("nowhere", broker="redis+socket:///nonexistent/socket"))
    started = time.monotonic()
    queue.ring(Job.ENCODE)
    assert time.monotonic() - started < 3
    with pytest.raises(Unavailable):
        queue.ping()
