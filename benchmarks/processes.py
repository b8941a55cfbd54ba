"""Processor time and memory of running processes, from /proc."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")


def children() -> dict[int, list[int]]:
    """Process ids by parent."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(fields[1])].append(int(entry.name))
    return found


def tree(pid: int, family: Mapping[int, list[int]]) -> list[int]:
    """All descendants of a process, without the process itself."""
    below = []
    for child in family.get(pid, []):
        below += [child, *tree(child, family)]
    return below


def cpu_s(pid: int, *, dead_children: bool = False) -> float:
    """User and system seconds so far, 0 if the process is gone; optionally with those of children it has reaped."""
    fields = _stat(pid)
    return sum(int(f) for f in fields[11 : 15 if dead_children else 13]) / TICKS if fields else 0.0


def pss_mib(pid: int) -> float:
    """Proportional set size (PSS), 0 if the process is gone."""
    return _rollup(pid, "Pss:")


def anonymous_mib(pid: int) -> float:
    """Memory not backed by a file, where a leak would show; 0 if the process is gone."""
    return _rollup(pid, "Anonymous:")


def memory_mib(pids: Iterable[int]) -> tuple[float, float]:
    """(anonymous, PSS), summed over the processes."""
    found = [(anonymous_mib(pid), pss_mib(pid)) for pid in pids]
    return sum(one[0] for one in found), sum(one[1] for one in found)


def peak_mib(pid: int) -> float:
    """The peak resident memory of the program that the process runs, 0 if the process is gone.

    Not `ru_maxrss`: a child inherits it, so it can be what the parent held when it started the child.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


class Peak:
    """Sum of the peak memory of this process and of its descendants while the block runs, each at its own peak.

    Descendants are sampled three times a second while they live.
    """

    mib = 0.0

    def __enter__(self) -> Self:
        self._held: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self.mib = sum(self._held.values())

    def _run(self) -> None:
        while not self._over.wait(0.3):
            self._look()

    def _look(self) -> None:
        own = os.getpid()
        for pid in (own, *tree(own, children())):
            self._held[pid] = peak_mib(pid) or self._held.get(
                pid, 0.0
            )  # the newest sample, not the largest: before its exec, a child shows the parent's peak


def busy_s() -> float:
    """Processor seconds of the whole machine since boot."""
    words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    jiffies = [int(word) for word in words]
    return (sum(jiffies) - jiffies[3] - jiffies[4]) / TICKS


def others_share(own: float, busy: float, wall_s: float) -> float:
    """The part of the machine that processes other than the measured ones have used."""
    return max(0.0, busy - own) / (wall_s * (os.cpu_count() or 1))


class Stopwatch:
    """Wall-clock time, and the machine's processor time, since construction."""

    def __init__(self) -> None:
        self._wall, self._busy = time.perf_counter(), busy_s()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._wall

    @property
    def busy_s(self) -> float:
        return busy_s() - self._busy


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second (the name) may contain anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _rollup(pid: int, name: str) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) / 1024
