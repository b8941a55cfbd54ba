"""Workers and beat show life by touching a file from their own loop, so that a wedged one falls silent."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import signals
from celery.beat import PersistentScheduler

from workers.app import settings

EVERY_S = 5.0
_nodes: list[str] = []  #: of this process, once it is ready


@signals.worker_ready.connect
def _begin(sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery ships no types
    _nodes[:] = [sender.hostname]
    show_life(sender.hostname)
    sender.timer.call_repeatedly(EVERY_S, show_life, (sender.hostname,))


@signals.worker_shutdown.connect
def _end(sender: Any, **_: object) -> None:  # noqa: ANN401
    sign_of_life(sender.hostname).unlink(missing_ok=True)


class ShowingLife(PersistentScheduler):  # type: ignore[misc] # Celery ships no types
    """Beat's own scheduler; each round is a sign of life."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        show_life(f"beat@{socket.gethostname()}")
        self._forget_the_future()
        return super().tick(*args, **kwargs)

    def _forget_the_future(self) -> None:
        """What is said to have run later ran now: a clock that was set back would silence the sweep until then."""
        ahead = [entry for entry in self.schedule.values() if entry.last_run_at > entry.default_now()]
        for entry in ahead:
            entry.last_run_at = entry.default_now()
        if ahead:
            self._heap = None  # it is made anew from the schedule


def still_here() -> None:
    """A task that may take hours says that it gets on: meanwhile the worker's own loop stands still."""
    for node in _nodes:
        show_life(node)


def show_life(node: str) -> None:
    """The file of this node (`name@host`) is new; where the home takes none, the work goes on without."""
    path = sign_of_life(node)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)


def sign_of_life(node: str) -> Path:
    return settings.home / "run" / f"{node}.alive"
