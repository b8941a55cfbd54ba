"""One typed way to declare a task."""

from collections.abc import Callable

import structlog

from shared.errors import Unavailable
from shared.log import get
from shared.types import Job
from workers.app import app

log = get(__name__)


def task(job: Job) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function under the job's name.

    What is behind us being away is no failure of the task: the rows stand, the sweep rings again. Nothing else
    may pass either, because a MemoryError that reaches Celery ends the whole worker.
    """

    def declare(function: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with structlog.contextvars.bound_contextvars(task=job.value):
                try:
                    function()
                except Unavailable as error:
                    log.warning("task_waits", reason=str(error))
                except Exception:
                    log.exception("task_failed")

        app.task(run, name=job.value)
        return run

    return declare
