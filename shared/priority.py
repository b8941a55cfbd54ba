"""Lower CPU priority for background work.

`python -m shared.priority NICE MODULE ARGUMENTS` runs a module at low priority from its first import on: a process
that is started again and again spends half of its time importing.
"""

import os
import runpy
import sys
import time
from contextlib import suppress
from pathlib import Path

BACKGROUND = 15
AUTOGROUP = Path("/proc/self/autogroup")  #: priority of the session; absent if the kernel has no autogroups


def step_back(nice: int = BACKGROUND) -> None:
    """Lower the priority of this process and of the children that it starts from now on.

    With autogroups, the kernel compares nice values within a session only, so the value is also set for the session.
    A child in a session of its own must call this again.
    """
    with suppress(OSError):
        os.nice(max(0, nice - os.nice(0)))
    with suppress(OSError):
        _tell_session(nice)


def _tell_session(nice: int) -> None:
    for _ in range(20):
        with suppress(BlockingIOError):  # without root: one write per 0.1 s, all processes together
            AUTOGROUP.write_text(str(nice), encoding="ascii")
            return
        time.sleep(0.1)


if __name__ == "__main__":
    step_back(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
