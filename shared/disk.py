"""Durable writes, reads of regular files only, and the mount that holds a path."""

import os
import re
import stat
from pathlib import Path

from shared.errors import Invalid


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that its content or its renames survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular(path: Path, what: str) -> Path:
    """Return the path if it is a regular file: opening a pipe waits for its writer, and a device may never end.

    Args:
        what: the name of the file in the error message, such as "the image file".

    Raises: `Invalid` if it is not a regular file; `OSError` if `stat` fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Invalid(f"{what} is not a regular file")
    return path


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
