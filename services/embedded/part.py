"""One supervised process: what it takes to start it, to know that it serves, and to stop it."""

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
    """What the supervisor asks of a process. Postgres and Valkey are parts, everything else is a `Program`."""

    @property
    def name(self) -> str: ...

    @property
    def stop_steps(self) -> Steps:
        """Signals with the patience in seconds that each gets; SIGKILL comes by itself."""

    @property
    def awaited(self) -> bool:
        """Whether the stack is not ready before this part is."""

    def prepare(self) -> bool:
        """What a dead predecessor left is out of the way; False where it is not yet."""

    def spawn(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]: ...

    def ready(self) -> bool:
        """Whether it serves now; answers at once. Raises: `SimilisError` where it never will."""


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
    once: bool = False  #: ready means: ended with 0
    awaited: bool = True  #: the stack is not ready before it is; false: it works on while the stack serves
    stop_steps: Steps = field(default=((signal.SIGTERM, 10.0),))
    keep: Sequence[int] = ()  #: open files of ours that it inherits
    pulse: Pulse | None = None  #: none: only its death is noticed

    def prepare(self) -> bool:
        for path in self.leftovers:
            path.unlink(missing_ok=True)
        return True

    def spawn(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        return process.spawn(self.argv, env=self.env, cwd=self.cwd, output=output, keep=self.keep)

    def ready(self) -> bool:
        return not self.once and self.serves()
