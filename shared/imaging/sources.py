"""Files and uploads as open descriptors, to be passed to the sandbox child."""

import errno
import fcntl
import os
import stat
from functools import partial
from pathlib import Path

from shared.errors import Rejected
from shared.imaging.limits import Limits
from shared.imaging.reasons import Reason, failed, hostile
from shared.mounts import in_time, mount_of

Source = Path | bytes


def open_source(source: Source, limits: Limits) -> int:
    """Return a descriptor of a regular file within the limits of size and time. Raises: `Rejected`."""
    if isinstance(source, bytes):
        if len(source) > limits.file_bytes:
            raise hostile(Reason.FILE_SIZE)
        return shared_memory("upload", len(source), source)
    try:
        # follow no link, and do not block on a pipe or a device
        call = partial(os.open, source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        descriptor = in_time(call, limits.wall_s, lambda: mount_of(source), os.close)
    except TimeoutError:
        raise failed(Reason.STALLED) from None
    except (OSError, ValueError) as error:
        other = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO)  # a link, a socket
        raise failed(Reason.NOT_REGULAR if other else Reason.UNREADABLE) from None
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= limits.file_bytes:
        return descriptor
    os.close(descriptor)
    raise hostile(Reason.FILE_SIZE) if stat.S_ISREG(facts.st_mode) else failed(Reason.NOT_REGULAR)


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
