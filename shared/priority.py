"""Work that can wait yields to work that somebody waits for.

`python -m shared.priority NICE MODULE ARGUMENTS` runs a module that yields from its first import on: a process that is
started again and again spends half of its time importing.
"""

import os
import runpy
import sys
import time
from contextlib import suppress
from pathlib import Path

BACKGROUND = 15
AUTOGROUP = Path("/proc/self/autogroup")  #: of the session; not there where the kernel does not group by it


def step_back(nice: int = BACKGROUND) -> None:
    """This process, and what it starts from now on, yields to others.

    Where the kernel groups processes by session (autogroup), nice counts within a session only; so the session's
    group is told, too. A child in a session of its own has to say it again.
    """
    with suppress(OSError):
        os.nice(max(0, nice - os.nice(0)))
    with suppress(OSError):
        _tell_session(nice)


def _tell_session(nice: int) -> None:
    for _ in range(20):
        with suppress(BlockingIOError):  # who is not root may only say it once in 0.1 s, of all processes together
            AUTOGROUP.write_text(str(nice), encoding="ascii")
            return
        time.sleep(0.1)


if __name__ == "__main__":
    step_back(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
