"""Progress of a training on stderr: a live status line on a terminal, and a line per epoch."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from shared.training.checkpoint import Checkpoint


class Progress:
    """Progress over the epochs from `first` on; times are of this run only."""

    def __init__(self, name: str, first: int, epochs: int, selection: str) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._status = self._console.status("starting ...") if self._console.is_terminal else None
        self._name, self._first, self._epochs, self._selection = name, first, epochs, selection
        self._images = 0  # of the current epoch
        self._done = 0  # epochs of this run
        self._started = self._epoch_started = time.monotonic()

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def images(self, train: int, val: int, note: str) -> None:
        """Print the sizes of the two parts, and the note on what was left out."""
        self._console.print(f"{self._name}  {train} images to train on, {val} for validation{'; ' * bool(note)}{note}")

    def batch(self, images: int, share: float) -> None:
        """Report a finished batch: its number of images, and the finished share of the epoch."""
        self._images += images
        if self._status:
            done = self._done + share
            left = (self._epochs - self._first - done) * (time.monotonic() - self._started) / done
            self._status.update(
                f"{self._name}: {share:4.0%} of this epoch, {self._rate():.0f} images/s, at most {_duration(left)} left"
            )

    def epoch(self, state: Checkpoint) -> None:
        """Print the line of a finished epoch."""
        last = state.history[-1]
        self._done += 1
        left = (self._epochs - state.epoch) * (time.monotonic() - self._started) / self._done
        self._console.print(
            f"{self._name}  epoch {state.epoch}/{self._epochs}  loss {last['loss']:.4f}  "
            f"{self._selection} {last[self._selection]:.4f} "
            f"(best {state.best_score:.4f}, epoch {state.best_epoch + 1})  "
            f"{self._rate():.0f} images/s  at most {_duration(left)} left"
        )
        self._images, self._epoch_started = 0, time.monotonic()

    def _rate(self) -> float:
        return self._images / max(time.monotonic() - self._epoch_started, 1e-9)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
