"""Detects pauses of the machine: on each processor a process sleeps 5 ms at a time and records how late it woke.

It also records the processor time that the hypervisor gave to others (`steal` of /proc/stat).

A hypervisor may pause a virtual machine for a tenth of a second or more. Everything measured meanwhile is late by as
much, and its own timings do not show why. If permitted (as root), the sleepers run under SCHED_FIFO, ahead of all
other processes, so that a busy processor does not look like a paused one.
"""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

NAP_S = 0.005
WINDOW_S = 0.1


@dataclass(frozen=True, slots=True)
class Saw:
    stood_still_ms: float  #: the longest delay of any sleeper
    stolen_ms: float  #: the most that was stolen from one processor within `WINDOW_S`


class Witness:
    """`with Witness() as witness:`; afterwards `witness.saw` tells the worst moments."""

    saw = Saw(0.0, 0.0)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.witness"]
        self.sleepers = [
            subprocess.Popen([*command, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for cpu in sorted(os.sched_getaffinity(0))
        ]
        for sleeper in self.sleepers:
            assert sleeper.stdout is not None  # noqa: S101 - it is a pipe
            sleeper.stdout.readline()  # the sleeper has started
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        told = [json.loads(sleeper.communicate("over\n")[0]) for sleeper in self.sleepers]
        self.saw = Saw(*map(max, zip(*told, strict=True)))


def main(cpu: int) -> None:
    """Print a line once started; after a line on stdin, print the longest delay and the most stolen time, both ms."""
    os.sched_setaffinity(0, {cpu})
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    longest, last, over = 0.0, time.perf_counter(), False
    most, before, asked = 0.0, _stolen_s(cpu), last
    print("watching", flush=True)
    while not over:
        over = bool(select.select([sys.stdin], [], [], NAP_S)[0])
        now = time.perf_counter()
        longest, last = max(longest, now - last - NAP_S), now
        if over or now - asked >= WINDOW_S:
            stolen, asked = _stolen_s(cpu), now
            most, before = max(most, stolen - before), stolen
    print(json.dumps([round(longest * 1000, 1), round(most * 1000, 1)]))


def _stolen_s(cpu: int) -> float:
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    fields = next(line for line in lines if line.startswith(f"cpu{cpu} ")).split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(int(sys.argv[1]))
