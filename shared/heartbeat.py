"""Heartbeats from within long work: a task calls `beat`, and the process that runs it says what that does.

The sign belongs to the task's own thread. A `beat` of another thread, such as the one that renews leases, does nothing,
because that thread goes on while the task hangs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_sign: ContextVar[Callable[[], None] | None] = ContextVar("sign", default=None)


def beat() -> None:
    """Show that this thread's task makes progress; outside a task, do nothing."""
    if (sign := _sign.get()) is not None:
        sign()


@contextmanager
def shown_by(sign: Callable[[], None]) -> Iterator[None]:
    """Call `sign` at each `beat` of this thread until the block ends."""
    token = _sign.set(sign)
    try:
        yield
    finally:
        _sign.reset(token)
