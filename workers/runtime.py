"""The runtime of a worker process, built on the first task so that a worker starts quickly."""

from functools import cache

from shared.priority import step_back
from shared.runtime import Runtime
from workers.app import app, settings


@cache
def runtime() -> Runtime:
    """The process's runtime. The first call also lowers this process's priority below that of searches."""
    step_back()
    return Runtime(settings, app)
