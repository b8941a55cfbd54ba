"""Files and uploads as open descriptors, to be passed to the sandbox child."""

import errno
import fcntl
import os
import stat
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from shared.disk import mount_of
from shared.errors import Rejected
from shared.imaging.limits import Limits
from shared.imaging.reasons import Reason, failed, hostile

Source = Path | bytes


def open_source(source: Source, limits: Limits) -> int:
    """Return a descriptor of a regular file within the limits of size and time. Raises: `Rejected`."""
    if isinstance(source, bytes):
        if len(source) > limits.file_bytes:
            raise hostile(Reason.FILE_SIZE)
        return shared_memory("upload", len(source), source)
    try:
        descriptor = _opened(source, limits.wall_s)
    except TimeoutError:
        raise failed(Reason.STALLED) from None
    except (OSError, ValueError) as error:
        link = isinstance(error, OSError) and error.errno == errno.ELOOP
        raise failed(Reason.NOT_REGULAR if link else Reason.UNREADABLE) from None
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= limits.file_bytes:
        return descriptor
    os.close(descriptor)
    raise hostile(Reason.FILE_SIZE) if stat.S_ISREG(facts.st_mode) else failed(Reason.NOT_REGULAR)


#: The first call on a mount that did not come back; until it does, others would only wait beside it.
_stalled: dict[Path, Future[int]] = {}
os.register_at_fork(after_in_child=_stalled.clear)  # a fork does not have the threads


def _opened(path: Path, limit_s: float) -> int:
    """Open a file in a thread that is left behind if a share does not answer: nothing else ends such a call.

    Raises: `TimeoutError`, also while an earlier call on the same mount stalls; `OSError`, `ValueError`.
    """
    if _stalled and mount_of(path) in _stalled:
        raise TimeoutError
    outcome = Future[int]()

    def attempt() -> None:
        try:
            # follow no link, and do not block on a pipe or a device
            outcome.set_result(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        except (OSError, ValueError) as error:
            outcome.set_exception(error)

    threading.Thread(target=attempt, name="opens", daemon=True).start()
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        mount = mount_of(path)
        _stalled[mount] = outcome
        outcome.add_done_callback(partial(_came_late, mount))
        raise


def _came_late(mount: Path, outcome: Future[int]) -> None:
    with suppress(OSError, ValueError):
        os.close(outcome.result())
    _stalled.pop(mount, None)


def readable(source: Source, limits: Limits) -> bool:
    """Return whether every byte can be read: a share may be down, or a disk may be failing."""
    try:
        with open(open_source(source, limits), "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except (OSError, Rejected):
        return False
    return True


def shared_memory(name: str, size: int, content: bytes = b"") -> int:
    """Return memory of fixed size, sealed: a child that could shrink it could crash the parent."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if content:
        with os.fdopen(os.dup(descriptor), "wb") as out:
            out.write(content)
    else:
        os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor
