"""Check that a file still is the registered one: others may overwrite or remove files in their folders.

A verdict is about bytes. Usually one `stat` confirms them; if it differs, the digest of the file decides.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from shared.errors import Rejected
from shared.imaging.reasons import PASSING, Reason, failed
from shared.pipeline.receive import Inspector
from shared.store.files import Seen
from shared.store.images import Claimed
from shared.types import Decoded


def confirmed(
    inspector: Inspector,
    claimed: Sequence[Claimed],
    answers: Iterable[Decoded | Rejected],
    moved: Callable[[], None] = lambda: None,
) -> list[Decoded | Rejected]:
    """Return the answers; one that is not about the claimed bytes is replaced by the reason.

    The files are checked after all were read, so that a change during reading is noticed, too.

    Args:
        moved: called before each check, to record progress.
    """
    found = list(answers)
    doubted: list[int] = []
    for place, (image, answer) in enumerate(zip(claimed, found, strict=True)):
        moved()
        if isinstance(answer, Rejected) and answer.reason in PASSING:
            found[place] = _away(image) if answer.reason == Reason.UNREADABLE else answer
        elif isinstance(answer, Decoded) and answer.header.sop_instance_uid != image.sop_uid:
            found[place] = failed(Reason.CHANGED)
        elif (facts := _facts(image)) is None:
            found[place] = _away(image)
        elif facts != (image.size, image.mtime_ns):
            doubted.append(place)
    for place in doubted:
        moved()
        (what,) = inspector.inspect_many([_path(claimed[place])])
        if isinstance(what, Rejected):  # registered bytes had a header: unless it is transient, they changed
            found[place] = what if what.reason in PASSING else failed(Reason.CHANGED)
        elif what.digest != claimed[place].digest:
            found[place] = failed(Reason.CHANGED)
    return found


def _facts(image: Claimed) -> tuple[int, int] | None:
    try:
        seen = Seen.of(image.path, _path(image).lstat())
    except OSError:
        return None
    return seen.size, seen.mtime_ns


def _away(image: Claimed) -> Rejected:
    """Return `GONE` for a file missing among others, else `UNREADABLE`: its share may be unavailable."""
    path = _path(image)
    try:
        path.lstat()
    except FileNotFoundError:
        try:
            with os.scandir(path.parent) as others:
                return failed(Reason.GONE if any(True for _ in others) else Reason.UNREADABLE)
        except OSError:
            return failed(Reason.UNREADABLE)
    except OSError:
        pass
    return failed(Reason.UNREADABLE)


def _path(image: Claimed) -> Path:
    return Path(os.fsdecode(image.path))
