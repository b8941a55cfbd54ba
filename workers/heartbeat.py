"""A worker shows life by touching a file from its own loop, so that a wedged one falls silent."""

from pathlib import Path
from typing import Any

from celery import signals

from workers.app import settings

EVERY_S = 5.0


@signals.worker_ready.connect
def _begin(sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery ships no types
    path = settings.home / "run" / f"{sender.hostname}.alive"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    show_life(path)
    sender.timer.call_repeatedly(EVERY_S, show_life, (path,))


@signals.worker_shutdown.connect
def _end(sender: Any, **_: object) -> None:  # noqa: ANN401
    (settings.home / "run" / f"{sender.hostname}.alive").unlink(missing_ok=True)


def show_life(path: Path) -> None:
    path.touch(mode=0o600)
