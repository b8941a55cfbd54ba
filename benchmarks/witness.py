"""Did the machine itself stand still? On each processor a process sleeps 5 ms at a time, and tells how late it woke.

A virtual machine is stopped now and then for a tenth of a second and more. What is measured meanwhile is late by as
much, and nothing in its own timings says why. The sleepers run ahead of everything else where they may (as root:
SCHED_FIFO), so that a processor that is only busy does not look like one that is away.
"""

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

NAP_S = 0.005


class Witness:
    """`with Witness() as witness:` and afterwards `witness.late_ms`, the longest that one of them overslept."""

    late_ms = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.witness"]
        self.sleepers = [
            subprocess.Popen([*command, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for cpu in sorted(os.sched_getaffinity(0))
        ]
        for sleeper in self.sleepers:
            assert sleeper.stdout is not None  # noqa: S101 - it is a pipe
            sleeper.stdout.readline()  # it is there
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        told = [sleeper.communicate("over\n")[0] for sleeper in self.sleepers]
        self.late_ms = max(map(float, told))


def main(cpu: int) -> None:
    """Said that it is there; then, when a line has come, the longest oversleeping in ms."""
    os.sched_setaffinity(0, {cpu})
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    longest, last, over = 0.0, time.perf_counter(), False
    print("watching", flush=True)
    while not over:
        over = bool(select.select([sys.stdin], [], [], NAP_S)[0])
        now = time.perf_counter()
        longest, last = max(longest, now - last - NAP_S), now
    print(round(longest * 1000, 1))


if __name__ == "__main__":
    main(int(sys.argv[1]))
