"""The runtime of a worker process: built on the first task, so that starting a worker imports little."""

from functools import cache

from shared.runtime import Runtime
from workers.app import app, settings


@cache
def runtime() -> Runtime:
    return Runtime(settings, app)
