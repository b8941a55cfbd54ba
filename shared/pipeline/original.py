"""Whether a file still is the one that was registered: files stand in folders of others, who overwrite and remove.

A verdict is about bytes. One stat shows the usual case; where it shows another file, the bytes themselves are asked.
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
    """The answers, as far as they are about the bytes that were claimed; in place of the others, why not.

    To be asked after the files were read: a change while they were is seen, too.

    Args:
        moved: told before each file that is looked at again.
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
        if isinstance(what, Rejected):  # registered bytes had a header: only a passing reason says nothing of these
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
    """A file that is missing among others is gone; an empty or a missing folder may be a share that is away."""
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
