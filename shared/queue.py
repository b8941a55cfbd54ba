"""The doorbell. A message says "there is work"; which work there is stands in Postgres.

So a message carries nothing but its name, may be lost or doubled without harm, and is sent only after the commit.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import Unavailable
from shared.log import get
from shared.types import Job

log = get(__name__)


#: Nothing short may wait behind something long, so each kind of work has a queue and workers of its own.
QUEUES: dict[Job, str] = {
    Job.SCAN: "scan",
    Job.ENCODE: "ingest",
    Job.PROJECT: "index",
    Job.REINDEX: "reindex",
    Job.CATCH_UP: "ingest",
    Job.REPLAY: "reindex",
    Job.CANARY: "reindex",
    Job.SWEEP: "sweep",
    Job.TIDY: "reindex",  # a scan may take days, and what was erased must not lie there so long
    Job.PULL: "scan",
}


#: What takes milliseconds needs no worker of its own. Redis is asked for a worker's queues in turn, so that it comes
#: after one long task at most and not after all that were rung for.
GUESTS: dict[str, str] = {"sweep": "index"}


ENOUGH = 32  #: unheard bells of one queue
LONG_S, PAUSE_S = 1.0, 5.0  #: a broker for which we waited so long for nothing hangs, and so long we do without it


class Queue(Protocol):
    def ring(self, job: Job) -> None:
        """Somebody is told, if the broker is there. Never raises: the sweep rings again."""

    def ping(self) -> None:
        """Raises `Unavailable`."""


class CeleryQueue:
    """Rings through Celery; a missing broker costs a moment, never an error. One that hangs costs it now and then."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - Celery ships no types
        self.app = app
        self._not_before = 0.0

    def ring(self, job: Job) -> None:
        began = time.monotonic()
        if began < self._not_before:
            return
        try:
            if self._heard(QUEUES[job]):
                return
            # retry=False alone waits 6 s for an absent socket; this fails at once
            self.app.send_task(job.value, queue=QUEUES[job], retry=True, retry_policy={"max_retries": 0})
        except Exception:
            log.warning("bell_not_heard", task=job.value, exc_info=True)
            if time.monotonic() - began > LONG_S:
                self._not_before = time.monotonic() + PAUSE_S

    def _heard(self, queue: str) -> bool:
        """Enough bells hang in this queue already; more would only fill the broker."""
        with self.app.connection_or_acquire() as connection:
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_step=0, timeout=1
            )  # fails at once, where the default waits 6 s
            return bool(connection.default_channel.client.llen(queue) >= ENOUGH)

    def ping(self) -> None:
        try:
            with self.app.connection_for_write(transport_options={"socket_timeout": 1}) as connection:
                connection.ensure_connection(max_retries=0, timeout=1)
        except Exception as error:
            raise Unavailable("the broker cannot be reached") from error


@dataclass
class MemoryQueue:
    """The in-memory twin: keeps what was rung."""

    rung: list[Job] = field(default_factory=list)

    def ring(self, job: Job) -> None:
        self.rung.append(job)

    def ping(self) -> None:
        pass
