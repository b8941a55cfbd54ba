"""Child processes that cannot outlive their parent, and process identities that survive the reuse of a PID."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)  # looked up before any fork


@dataclass(frozen=True)
class Identity:
    """Identifies one process for good: PIDs are reused, and start times repeat after a reboot."""

    pid: int
    started: int  #: clock ticks since boot
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """Return the identity of a live process, None if there is none; a zombie is not alive."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name may hold spaces and parentheses
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot_id())

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send the signal to the process, or to the group that it leads, unless the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)


def sign_of_life(home: Path, name: str) -> Path:
    """Return the heartbeat file of the worker or beat of this name on this machine."""
    return home / "run" / f"{name}@{socket.gethostname()}.alive"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def die_with_parent(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends; exit at once if the parent has already ended.

    A change of user clears the setting: call this after it, or once more.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def spawn(  # noqa: PLR0913 - what a child of ours may need
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int = subprocess.DEVNULL,
    death_signal: signal.Signals = signal.SIGTERM,
    user: int | None = None,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in its own session, out of reach of Ctrl-C; it gets `death_signal` when this process ends.

    The child inherits the file descriptors in `keep` under the same numbers.

    Call it from the main thread: for the kernel the parent is the calling thread, whose end would end the child.
    """
    return subprocess.Popen(
        list(argv),
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=stdin,
        stdout=output,
        stderr=output,
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        pass_fds=keep,
        preexec_fn=partial(die_with_parent, os.getpid(), death_signal),  # noqa: PLW1509 - from the main thread, and it only makes system calls
    )


def become_subreaper() -> None:
    """Adopt grandchildren whose parent dies, so that `reap_strangers` can reap them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_strangers(known: set[int]) -> None:
    """Reap adopted zombies, up to the first dead child in `known`, which its own supervisor must reap."""
    while True:
        try:
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if seen is None or seen.si_pid in known:
            return
        os.waitpid(seen.si_pid, os.WNOHANG)


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended, without reaping it: until then its PID is not reused and still names its group."""
    if child.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def bury(child: subprocess.Popen[bytes], *, group: bool = True) -> int:
    """Reap an ended child and return its exit code; with `group`, its process group is killed first."""
    if group and child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def stop(
    child: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float], group: bool = True, asked: bool = False
) -> int:
    """End the child and return its exit code: send each signal and wait its number of seconds, at last SIGKILL.

    Args:
        asked: the first signal was sent already; Celery takes a second one as an order to stop at once.
    """
    for number, patience_s in steps:
        if not asked and not has_ended(child):
            child.send_signal(number)
        asked = False
        if until(lambda: has_ended(child), patience_s):
            return bury(child, group=group)
    child.kill()
    return bury(child, group=group)


def kill_tree(pid: int) -> None:
    """Send SIGKILL to the process and all its descendants, including those that left its group."""
    for one in _tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def used_s(pid: int) -> float:
    """Processor time of the process and its living descendants, in seconds."""
    return sum(_tree(pid).values()) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> dict[int, int]:
    """The process and all its descendants, parents first, with the clock ticks that each has used."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
                fields = stat.rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
                used[int(entry.name)] = int(fields[11]) + int(fields[12])
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return {one: used.get(one, 0) for one in found}


def until(true: Callable[[], bool], timeout_s: float, step_s: float = 0.01) -> bool:
    """Poll `true` every `step_s` seconds; return whether it held within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(step_s)
    return True
