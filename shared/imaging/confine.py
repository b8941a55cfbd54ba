"""The rights that the sandbox child gives up before it reads its first file. Linux; refused steps are skipped."""

import contextlib
import ctypes
import os
import resource
import stat
from pathlib import Path

from shared.imaging.limits import MIB, Limits
from shared.process import die_with_parent

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NOBODY = 65534


def confine(limits: Limits, parent: int) -> None:
    """Give up the network, root, new privileges, core dumps, files that grow, and memory beyond the limit.

    Root is kept if other users cannot enter the interpreter's folder (for example in root's home), because late
    imports, such as text encodings, would fail.
    """
    _leave_network()
    if os.getuid() == 0 and _open_to_all(Path(os.__file__)) and _open_to_all(Path(__file__)):
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    die_with_parent(parent)  # a change of user clears the death signal
    for what, most in (
        (resource.RLIMIT_CORE, 0),  # a core dump would hold a patient's picture
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, max(limits.address_bytes, used_bytes() + 64 * MIB)),
    ):
        _lower(what, most)


def _open_to_all(path: Path) -> bool:
    return path.stat().st_mode & stat.S_IROTH != 0 and all(p.stat().st_mode & stat.S_IXOTH for p in path.parents)


def used_bytes() -> int:
    """Return the size of this process's address space."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def allow_memory(most: int) -> None:
    """Set the soft limit of the address space; the hard limit stays."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(most, hard), hard))


def allow_cpu(seconds: int) -> None:
    """Allow this many more seconds of processor time; after them, SIGXCPU ends the process."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(cpu_used()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def cpu_used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _lower(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard < 0 else min(most, hard)
    resource.setrlimit(what, (most, most))


def _leave_network() -> None:
    """Move to an empty network namespace; without root, in a new user namespace."""
    flags = _CLONE_NEWNET if os.getuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    _libc().unshare(flags)  # some containers refuse this; the other limits hold without it


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
