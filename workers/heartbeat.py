"""Workers and beat show life by touching a file from their own loop, so that a wedged one falls silent."""

from contextlib import suppress
from typing import Any

from celery import signals
from celery.beat import PersistentScheduler

from shared.process import sign_of_life
from workers.app import settings

EVERY_S = 5.0
_names: list[str] = []  #: of this process, once it is ready


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
    """Beat's own scheduler; each round is a sign of life."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        show_life("beat")
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
    for name in _names:
        show_life(name)


def show_life(name: str) -> None:
    """The file of this name is new; where the home takes none, the work goes on without."""
    path = sign_of_life(settings.home, name)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
