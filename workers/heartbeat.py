"""Heartbeats: workers and beat touch a file from their own event loop, so that a hung process stops doing so."""

from contextlib import suppress
from typing import Any

from celery import signals
from celery.beat import PersistentScheduler

from shared.process import sign_of_life
from workers.app import settings

EVERY_S = 5.0
_names: list[str] = []  #: this worker's name, once it is ready


@signals.worker_ready.connect
def _begin(sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery ships no types
    name = sender.hostname.partition("@")[0]
    _names[:] = [name]
    show_life(name)
    sender.timer.call_repeatedly(EVERY_S, show_life, (name,))


@signals.worker_shutdown.connect
def _end(**_: object) -> None:
    for name in _names:
        sign_of_life(settings.home, name).unlink(missing_ok=True)


class ShowingLife(PersistentScheduler):  # type: ignore[misc] # Celery ships no types
    """Beat's persistent scheduler with a heartbeat in each tick."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        show_life("beat")
        self._forget_the_future()
        return super().tick(*args, **kwargs)

    def _forget_the_future(self) -> None:
        """Set last runs that lie in the future to now: after a clock was set back, the sweep would pause until then."""
        ahead = [entry for entry in self.schedule.values() if entry.last_run_at > entry.default_now()]
        for entry in ahead:
            entry.last_run_at = entry.default_now()
        if ahead:
            self._heap = None  # Celery rebuilds it from the schedule


def still_here() -> None:
    """Send a heartbeat from within a long task, during which the worker's event loop does not run."""
    for name in _names:
        show_life(name)


def show_life(name: str) -> None:
    """Touch the heartbeat file of this name; errors are ignored, so that a read-only home does not stop the work."""
    path = sign_of_life(settings.home, name)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
