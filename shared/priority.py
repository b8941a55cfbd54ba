"""Work that can wait yields to work that somebody waits for."""

import os
from contextlib import suppress
from pathlib import Path

BACKGROUND = 15


def step_back(nice: int = BACKGROUND) -> None:
    """This process, and what it starts from now on, yields to others.

    Where the kernel groups processes by session (autogroup), nice counts within a session only; so the session's
    group is told, too. A child in a session of its own has to say it again.
    """
    with suppress(OSError):
        os.nice(max(0, nice - os.nice(0)))
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")
