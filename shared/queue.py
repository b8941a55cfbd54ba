"""The queue: a message only says "there is work"; the work itself is in Postgres.

So a message carries nothing but its task name, may be lost or duplicated without harm, and is sent after the commit.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import Unavailable
from shared.log import get
from shared.types import Job

log = get(__name__)


#: Short work must not wait behind long work, so the kinds of work are spread over queues with workers of their own.
QUEUES: dict[Job, str] = {
    Job.SCAN: "scan",
    Job.ENCODE: "ingest",
    Job.PROJECT: "index",
    Job.REINDEX: "reindex",
    Job.CATCH_UP: "ingest",
    Job.REPLAY: "reindex",
    Job.CANARY: "reindex",
    Job.SWEEP: "sweep",
    Job.TIDY: "reindex",  # not "scan": a scan may take days, and erased files must go sooner
    Job.PULL: "scan",
}


#: Queues that another queue's worker serves: their tasks take milliseconds. A worker polls its Redis queues in turn, so
#: such a task waits for one long task at most.
GUESTS: dict[str, str] = {"sweep": "index"}


ENOUGH = 32  #: waiting messages of one queue
LONG_S, PAUSE_S = 1.0, 5.0  #: a send that fails after LONG_S means that the broker hangs: nothing is sent for PAUSE_S


class Queue(Protocol):
    def ring(self, job: Job) -> None:
        """Send the job's message if the broker answers. Never raises: the sweep sends it again."""

    def ping(self) -> None:
        """Raises: `Unavailable` if the broker does not answer."""


class CeleryQueue:
    """Sends messages by Celery. A broker that is down raises no error, one that hangs delays a call per `PAUSE_S`."""

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
        """Whether `ENOUGH` messages wait in this queue already; more would only fill the broker."""
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
    """The in-memory twin: records the jobs instead of sending messages."""

    rung: list[Job] = field(default_factory=list)

    def ring(self, job: Job) -> None:
        self.rung.append(job)

    def ping(self) -> None:
        pass
