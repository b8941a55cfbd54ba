"""A supervised process: how to start it, check that it serves, and stop it."""

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from services.embedded.pulse import Pulse
from shared import process

Steps = tuple[tuple[signal.Signals, float], ...]


class Part(Protocol):
    """The interface of a supervised process: `Postgres`, `Valkey`, and `Program` for all others."""

    @property
    def name(self) -> str: ...

    @property
    def stop_steps(self) -> Steps:
        """Signals in order, each with its timeout in seconds; SIGKILL follows by itself."""

    @property
    def awaited(self) -> bool:
        """Whether the stack's readiness waits for this part."""

    def prepare(self) -> bool:
        """Clear what a dead predecessor left; False while that is not possible yet."""

    def spawn(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]: ...

    def ready(self) -> bool:
        """Whether it serves now; does not wait. Raises: `SimilisError` where it can never serve."""


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Program:
    """A process of our own."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    serves: Callable[[], bool] = _always
    leftovers: Sequence[Path] = ()  #: sockets and heartbeats of a dead predecessor
    once: bool = False  #: the process runs once, and is done when it has exited with 0
    awaited: bool = True  #: the stack's readiness waits for it
    stop_steps: Steps = field(default=((signal.SIGTERM, 10.0),))
    keep: Sequence[int] = ()  #: file descriptors that it inherits
    pulse: Pulse | None = None  #: detects a hang; None: only its death is noticed

    def prepare(self) -> bool:
        for path in self.leftovers:
            path.unlink(missing_ok=True)
        return True

    def spawn(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        return process.spawn(self.argv, env=self.env, cwd=self.cwd, output=output, keep=self.keep)

    def ready(self) -> bool:
        return not self.once and self.serves()
