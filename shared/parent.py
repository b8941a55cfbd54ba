"""Processes that do not outlive whoever started them."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # looked up before any fork


def die_with_parent(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends this process the signal when its parent ends; if that has ended by now, so has this one.

    A change of user takes it back: it is said after that, or once more.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
