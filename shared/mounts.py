"""The mount that holds a path, and calls that a dead share never answers."""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def mount_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> Path:
    r"""Return the mount point above an absolute path by the kernel's list: a look at the path itself may block.

    Source: proc_pid_mountinfo(5); the fifth field, in which a space is written as \040.
    """
    lines = table.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    points = (
        re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), line.split(" ")[4]) for line in lines if line
    )
    above = [Path(point) for point in points if path.is_relative_to(point)]
    return max(above, key=lambda point: len(point.parts), default=Path("/"))  # a chroot lists no mount of its root


#: Threads that wait for a call; one that waits for a share comes back here when the share answers.
_free: list[SimpleQueue[tuple[Callable[[], Any], Future[Any]]]] = []
#: By place, the first call that did not come back; until it does, others would only wait beside it.
_stalled: dict[Path, Future[Any]] = {}
os.register_at_fork(after_in_child=_free.clear)  # a fork does not have the threads
os.register_at_fork(after_in_child=_stalled.clear)


def in_time(
    call: Callable[[], T], limit_s: float, place: Callable[[], Path], late: Callable[[T], None] = lambda _: None
) -> T:
    """Return what the call returns. A thread makes it, and is left behind if a disk or share does not answer: nothing
    else ends such a call.

    Args:
        place: where the call is made, such as the mount of its path; called only if a call has stalled.
        late: gets what the call returns after the limit.

    Raises: `TimeoutError`, at once while an earlier call at this place stalls; what the call raises.
    """
    if _stalled and place() in _stalled:
        raise TimeoutError
    outcome = Future[T]()
    try:
        thread = _free.pop()
    except IndexError:
        thread = SimpleQueue()
        threading.Thread(target=_serve, args=(thread,), name="disk", daemon=True).start()
    thread.put((call, outcome))
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        if outcome.done():  # the call's own error, or it came just now
            return outcome.result()
        where = place()
        _stalled[where] = outcome
        outcome.add_done_callback(lambda done: _came_late(where, done, late))
        raise


def _serve(calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
    while True:
        call, outcome = calls.get()
        try:
            answer = call()
        except BaseException as error:  # for the caller
            _free.append(calls)  # before the caller goes on, which may need a thread next
            outcome.set_exception(error)
        else:
            _free.append(calls)
            outcome.set_result(answer)
            del answer
        del call, outcome  # keep nothing alive until the next call


def _came_late(where: Path, outcome: Future[T], late: Callable[[T], None]) -> None:
    _stalled.pop(where, None)
    if outcome.exception() is None:
        late(outcome.result())
