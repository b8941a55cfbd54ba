"""One typed way to declare a task."""

from collections.abc import Callable

import structlog

from shared.errors import Unavailable
from shared.log import get
from shared.types import Job
from workers.app import app

log = get(__name__)


Task = Callable[[], None]


def guard(job: Job, function: Task) -> Task:
    """The function, with nothing passing to Celery: a MemoryError that reaches it ends the whole worker.

    What is behind us being away is no failure of the task: the rows stand, and the sweep rings again.
    """

    def run() -> None:
        with structlog.contextvars.bound_contextvars(task=job.value):
            try:
                function()
            except Unavailable as error:
                log.warning("task_waits", reason=str(error))
            except Exception:
                log.exception("task_failed")

    return run


def task(job: Job) -> Callable[[Task], Task]:
    """Register a function under the job's name."""

    def declare(function: Task) -> Task:
        run = guard(job, function)
        app.task(run, name=job.value)
        return run

    return declare
