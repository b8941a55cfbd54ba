"""Files that were sent to us, each named by the digest of its content, so that no DICOM value chooses a path.

A part is written elsewhere and becomes a blob by one rename, so a blob is always complete; equal content has one name.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session

from shared.disk import exists, sync
from shared.errors import Unavailable
from shared.store import files

MIB = 2**20
RESERVE_RATIO = 0.05  #: share of the disk that stays free; `reserve_bytes` suffice where they are less
PREAMBLE = 128
SUFFIX = ".dcm"
NAME = re.compile(r"[0-9a-f]{64}\.dcm")
YOUNG_S = 5.0  #: a younger part may be created but not locked yet
MTIME_NS = 0  #: of every blob, since content has no time
SAMPLE = 100  #: files that are looked up to tell whether a store has moved
CHECK_EVERY = 64 * MIB  #: written to a part between two checks of the free space


class Full(Unavailable):
    """The disk is below its reserve: nothing is taken in until there is room."""


@contextmanager
def taking() -> Iterator[None]:
    """Turn an `OSError` in the block into an error after which the sender may retry.

    Raises: `Full` for a full disk, else `Unavailable`; neither names a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full("the disk is full: nothing is taken in until there is room", retry_after_s=60) from error
        raise Unavailable(f"the file could not be stored: {error.strerror}") from error


class Part:
    """A file being received; it is deleted at the end of its context unless it was kept.

    Attributes:
        path: where it is written.
        size: bytes so far.
        expects: SOP Instance, Study Instance and SOP Class UID that the sender announced, "" where it named none.
    """

    def __init__(self, blobs: "Blobs", path: Path) -> None:
        self.path = path
        self.size = 0
        self.expects: tuple[str, ...] = ()
        self._blobs = blobs
        self._file = path.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)  # released when the file is closed or the process dies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # on a full disk the last flush fails again; the part must be deleted all the same
            self._file.close()
        self.path.unlink(missing_ok=True)

    @taking()
    def write(self, chunk: bytes | memoryview) -> None:
        """Append the next bytes. Raises: as `taking`."""
        if self.size // CHECK_EVERY != (self.size + len(chunk)) // CHECK_EVERY:
            self._blobs.check_room()
        self._file.write(chunk)
        self.size += len(chunk)

    @taking()
    def finish(self) -> None:
        """Sync the part to disk, with the preamble of a DICOM file, which may hold a program, set to zeros.

        Raises: as `taking`.
        """
        self._file.flush()
        with self.path.open("r+b") as file:
            head = file.read(PREAMBLE + 4)
            if head[PREAMBLE:] == b"DICM" and any(head[:PREAMBLE]):
                file.seek(0)
                file.write(bytes(PREAMBLE))
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Blobs:
    """The store in one folder; several processes may use it at once."""

    root: Path
    reserve_bytes: int = 2048 * MIB

    @taking()
    def part(self) -> Part:
        """Open a new part. Raises: as `taking`."""
        self.check_room()
        folder = self._incoming
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Part(self, folder / f"{secrets.token_hex(16)}.part")

    def check_room(self) -> None:
        """Raises: `Full`."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.has_room:
            raise Full("the disk is nearly full: nothing is taken in until there is room", retry_after_s=60)

    @property
    def has_room(self) -> bool:
        """Whether the free space is at least the reserve; the folder must exist."""
        disk = shutil.disk_usage(self.root)
        return disk.free >= min(self.reserve_bytes, RESERVE_RATIO * disk.total)

    def place(self, digest: bytes) -> Path:
        """The path of the blob with this digest, whether or not it exists."""
        name = digest.hex()
        return self.root / name[:2] / name[2:4] / f"{name}{SUFFIX}"

    @taking()
    def keep(self, part: Part, digest: bytes) -> None:
        """Make the finished part the blob with this digest, durably. Raises: as `taking`."""
        place = self.place(digest)
        for folder in (place.parent.parent, place.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync(folder.parent)
        os.utime(part.path, ns=(MTIME_NS, MTIME_NS))
        part.path.rename(place)  # may replace a blob of the same content
        sync(place.parent)

    def every(self) -> Iterator[Path]:
        """All blobs, folder by folder."""
        for upper in sorted(self.root.glob("??")):
            for lower in sorted(upper.iterdir()):
                yield from sorted(path for path in lower.glob(f"*{SUFFIX}") if NAME.fullmatch(path.name))

    def lost(self) -> list[Path]:
        """The blobs that were put aside because no row named them."""
        return sorted(path for path in self._lost.glob(f"*{SUFFIX}") if NAME.fullmatch(path.name))

    def lose(self, path: Path) -> None:
        """Put the blob aside; its mtime tells since when."""
        self._lost.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        path.rename(self._lost / path.name)
        sync(self._lost)

    def find_again(self, path: Path) -> Path:
        """Move a blob that was put aside back to its place; returns the new path."""
        place = self.place(digest_of(path))
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        path.rename(place)
        for folder in (place.parent, place.parent.parent, self.root):
            sync(folder)
        return place

    def remove(self, digest: bytes) -> bool:
        """Delete this content durably, also from the blobs that were put aside; returns whether it was there."""
        place, gone = self.place(digest), False
        for path in (place, self._lost / place.name):
            with suppress(FileNotFoundError):
                path.unlink()
                sync(path.parent)
                gone = True
        return gone

    def forget_lost(self, age_s: float) -> int:
        """Delete the blobs that were put aside more than `age_s` ago; returns how many."""
        old = [path for path in self.lost() if path.stat().st_mtime < time.time() - age_s]
        for path in old:
            path.unlink()
        return len(old)

    def forget_parts(self) -> int:
        """Delete the parts that no process has locked, left by a crash; returns how many."""
        before, gone = time.time() - YOUNG_S, 0
        for path in self._incoming.glob("*.part"):
            with suppress(OSError), path.open("r+b") as file:  # locked, gone, or another user's: left alone
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone

    @property
    def stands(self) -> bool:
        """Whether the folder contains anything; a missing or empty folder may be a disk that is not mounted."""
        try:
            with os.scandir(self.root) as inside:
                return any(True for _ in inside)
        except OSError:
            return False

    @property
    def _incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def _lost(self) -> Path:
        return self.root / "lost"


def digest_of(path: Path) -> bytes:
    """The digest in the name of a blob."""
    return bytes.fromhex(path.name.removesuffix(SUFFIX))


def follow(db: Session, blobs: Blobs) -> bool:
    """If the whole store has moved, point the rows of sent files to its new place; returns whether it had moved.

    A new place that lacks most of the files, or one that the old place still has, is not the moved store: then the
    rows stay, and the files are found once the old place is back.
    """
    new, moved = os.fsencode(blobs.root), False
    for old in files.roots(db):
        if old != new and has_moved(db, Blobs(Path(os.fsdecode(old))), blobs):
            files.move(db, old, new)
            moved = True
    return moved


def has_moved(db: Session, old: Blobs, new: Blobs) -> bool:
    """Of a sample of the old store's files, the new one has most, and the old one has none that the new one lacks."""
    sample = files.some(db, os.fsencode(old.root), SAMPLE)
    try:
        here = [exists(new.place(digest)) for digest in sample]
        most = 2 * sum(here) > len(sample)
        return most and not any(exists(old.place(d)) for h, d in zip(here, sample, strict=True) if not h)
    except OSError:  # a disk that cannot be read
        return False
