"""The runtime of a worker process: built on the first task, so that starting a worker imports little."""

from functools import cache

from shared.priority import step_back
from shared.runtime import Runtime
from workers.app import app, settings


@cache
def runtime() -> Runtime:
    """Built on the first task; from then on this process, its threads and its sandbox yield to searches."""
    step_back()
    return Runtime(settings, app)
