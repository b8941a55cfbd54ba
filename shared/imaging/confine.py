"""What the sandbox child gives up before it reads its first file. Linux; what a kernel refuses is left out."""

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

    Root is kept where the interpreter lies in a folder that nobody else may enter (a root's home): modules that are
    imported late, such as text encodings, would be out of reach.
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
    die_with_parent(parent)  # a change of user takes the wish back
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
    """Set the soft limit of the address space; the hard one stays."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(most, hard), hard))


def allow_cpu(seconds: int) -> None:
    """Allow so many seconds of processor time from now on; SIGXCPU ends the process after that."""
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
    """Move to an empty network, by right as root, in a user namespace of one's own otherwise."""
    flags = _CLONE_NEWNET if os.getuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    _libc().unshare(flags)  # refused in some containers: the limits above hold without it


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
