"""Did the machine itself stand still? A process of its own sleeps 5 ms at a time, and tells how late it woke.

A virtual machine is stopped now and then for a tenth of a second and more. What is measured meanwhile is late by as
much, and nothing in its own timings says why.
"""

import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

NAP_S = 0.005


class Witness:
    """`with Witness() as witness:` and afterwards `witness.late_ms`, the longest that it overslept."""

    late_ms = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.witness"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        self._process.stdout.readline()  # it is there
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        said, _ = self._process.communicate("over\n")
        self.late_ms = float(said)


def main() -> None:
    """Said that it is there; then, when a line has come, the longest oversleeping in ms."""
    longest, last, over = 0.0, time.perf_counter(), False
    print("watching", flush=True)
    while not over:
        over = bool(select.select([sys.stdin], [], [], NAP_S)[0])
        now = time.perf_counter()
        longest, last = max(longest, now - last - NAP_S), now
    print(round(longest * 1000, 1))


if __name__ == "__main__":
    main()
