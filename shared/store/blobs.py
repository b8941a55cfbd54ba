"""Files that were sent to us, as they came: under the name of their content, which no DICOM value can choose.

A part is written beside, and becomes a blob by one rename; so a blob is whole, and one content has one name.
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

from shared.disk import sync
from shared.errors import Unavailable
from shared.store import files

MIB = 2**20
RESERVE_RATIO = 0.05  #: of the disk, or `reserve_bytes` where that is less
PREAMBLE = 128
SUFFIX = ".dcm"
NAME = re.compile(r"[0-9a-f]{64}\.dcm")
YOUNG_S = 5.0  #: a part this new may have been made and not yet locked
MTIME_NS = 0  #: of every blob: a content has no time
SAMPLE = 100  #: files that are looked for where a store is said to stand now
CHECK_EVERY = 64 * MIB  #: a long part asks again whether there is room


class Full(Unavailable):
    """The disk is below its reserve: nothing is taken in until there is room."""


@contextmanager
def taking() -> Iterator[None]:
    """What the disk refuses in this block may be sent again, once there is room or somebody has looked.

    Raises: `Full`, `Unavailable`; neither names a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full("the disk is full: nothing is taken in until there is room", retry_after_s=60) from error
        raise Unavailable(f"the store does not take it ({error.strerror})") from error


class Part:
    """A file on its way in; it goes away with its context unless it was kept.

    Attributes:
        path: where it stands.
        size: bytes so far.
        expects: SOP Instance, Study Instance and SOP Class UID that its sender announced, "" where nothing was said.
    """

    def __init__(self, blobs: "Blobs", path: Path) -> None:
        self.path = path
        self.size = 0
        self.expects: tuple[str, ...] = ()
        self._blobs = blobs
        self._file = path.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)  # until we end, however that happens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk refuses the last bytes once more, and has to be rid of the others
            self._file.close()
        self.path.unlink(missing_ok=True)

    @taking()
    def write(self, chunk: bytes | memoryview) -> None:
        """The next bytes. Raises: as `taking`."""
        if self.size // CHECK_EVERY != (self.size + len(chunk)) // CHECK_EVERY:
            self._blobs.check_room()
        self._file.write(chunk)
        self.size += len(chunk)

    @taking()
    def finish(self) -> None:
        """Everything is on the disk; the preamble of a DICOM file, which may be a program, is zeros.

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
        """A new part. Raises: as `taking`."""
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
        """More of the disk is free than its reserve; the folder has to be there."""
        disk = shutil.disk_usage(self.root)
        return disk.free >= min(self.reserve_bytes, RESERVE_RATIO * disk.total)

    def place(self, digest: bytes) -> Path:
        """Where a content stands, or would."""
        name = digest.hex()
        return self.root / name[:2] / name[2:4] / f"{name}{SUFFIX}"

    @taking()
    def keep(self, part: Part, digest: bytes) -> None:
        """The finished part is the blob of this content, durably. Raises: as `taking`."""
        place = self.place(digest)
        for folder in (place.parent.parent, place.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync(folder.parent)
        os.utime(part.path, ns=(MTIME_NS, MTIME_NS))
        part.path.rename(place)  # over one of the same content, too
        sync(place.parent)

    def every(self) -> Iterator[Path]:
        """All blobs, folder by folder."""
        for upper in sorted(self.root.glob("??")):
            for lower in sorted(upper.iterdir()):
                yield from sorted(path for path in lower.glob(f"*{SUFFIX}") if NAME.fullmatch(path.name))

    def lost(self) -> list[Path]:
        """What was put aside because no row knew it."""
        return sorted(path for path in self._lost.glob(f"*{SUFFIX}") if NAME.fullmatch(path.name))

    def lose(self, path: Path) -> None:
        """The blob is put aside; from now on its time says since when."""
        self._lost.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        path.rename(self._lost / path.name)
        sync(self._lost)

    def find_again(self, path: Path) -> Path:
        """What was put aside stands in its place; returns where."""
        place = self.place(digest_of(path))
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        path.rename(place)
        for folder in (place.parent, place.parent.parent, self.root):
            sync(folder)
        return place

    def remove(self, digest: bytes) -> bool:
        """This content is nowhere in the store, durably, nor among what was put aside; returns whether it was."""
        place, gone = self.place(digest), False
        for path in (place, self._lost / place.name):
            with suppress(FileNotFoundError):
                path.unlink()
                sync(path.parent)
                gone = True
        return gone

    def forget_lost(self, age_s: float) -> int:
        """What was put aside so long ago is gone; returns how many there were."""
        old = [path for path in self.lost() if path.stat().st_mtime < time.time() - age_s]
        for path in old:
            path.unlink()
        return len(old)

    def forget_parts(self) -> int:
        """Parts that nobody holds are gone, a crash has left them; returns how many."""
        before, gone = time.time() - YOUNG_S, 0
        for path in self._incoming.glob("*.part"):
            with suppress(OSError), path.open("r+b") as file:  # held, gone, or another's: not ours to take away
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone

    @property
    def stands(self) -> bool:
        """Something lies in its folder: a missing or an empty one may be a disk that is away."""
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
    """The content of a blob, by its name."""
    return bytes.fromhex(path.name.removesuffix(SUFFIX))


def follow(db: Session, blobs: Blobs) -> bool:
    """Rows name sent files where they stand, if the whole store has moved since; returns whether it had.

    A place that lacks what the old one has, or most of it, is not the moved store: then the rows stay, and the files
    are found, once the old one is back.
    """
    new, moved = os.fsencode(blobs.root), False
    for old in files.roots(db):
        if old != new and has_moved(db, Blobs(Path(os.fsdecode(old))), blobs):
            files.move(db, old, new)
            moved = True
    return moved


def has_moved(db: Session, old: Blobs, new: Blobs) -> bool:
    """Of the contents of the old store most stand in the new one, and the old one has none that is not there."""
    sample = files.some(db, os.fsencode(old.root), SAMPLE)
    try:
        here = [new.place(digest).exists() for digest in sample]
        most = 2 * sum(here) > len(sample)
        return most and not any(old.place(d).exists() for h, d in zip(here, sample, strict=True) if not h)
    except OSError:  # a disk that does not say what it has
        return False
