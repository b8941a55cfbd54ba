"""One typed way to declare a task."""

from collections.abc import Callable

import structlog

from shared.errors import SimilisError, Unavailable
from shared.heartbeat import shown_by
from shared.log import get
from shared.types import Job
from workers.app import app
from workers.heartbeat import still_here

log = get(__name__)


Task = Callable[[], None]


def guard(job: Job, function: Task) -> Task:
    """The function with all exceptions logged and none passed to Celery, whose worker ends on a `MemoryError`.

    `Unavailable` is logged as a wait and not as a failure: the rows stay due, and the sweep sends the message again.
    """

    def run() -> None:
        with structlog.contextvars.bound_contextvars(task=job.value), shown_by(still_here):
            try:
                function()
            except Unavailable as error:
                log.warning("task_waits", reason=str(error))
            except SimilisError as error:
                log.exception("task_failed", error=str(error))  # ours or the engine's words: none of a file
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
