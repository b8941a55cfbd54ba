"""Scan: register a folder's files in place, without copying or decoding them.

A scan walks the folder, skips files that have not changed since the last scan, reads the headers of the others in the
sandbox, and decides on the files in one transaction per batch. So it may be interrupted anywhere; it goes on behind
the place of the last batch, or starts again.
"""

import hmac
import os
import stat
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy.orm import Session

from shared import heartbeat
from shared.datasets.folder import LabelTable, Row
from shared.errors import Invalid, Rejected, Unavailable
from shared.imaging.answers import Inspected
from shared.imaging.reasons import Reason
from shared.mounts import in_time
from shared.pipeline.identity import Found
from shared.pipeline.receive import BATCH, Inspector, Rules, admit
from shared.store import files
from shared.store.arrivals import Origin
from shared.store.files import Seen
from shared.store.session import Begin
from shared.store.tables import READ_AGAIN, Operation

ANSWER_S = 30.0  #: for up to `LOOKS` looks at a folder; after this, its disk or share is taken for dead
LOOKS = 32  #: made by one call in the thread that may be left behind: each alone costs less than the call

T = TypeVar("T")


@dataclass
class Progress:
    """How far a scan is; `counts` are by outcome, with `unchanged` and `settling` beside them.

    With a label table, `unlabelled` counts the images that no row of it names; `namesakes` are those among them whose
    only matching row is ambiguous, because files of several folders end that way.
    """

    total: int = 0
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    cursor: bytes = b""  #: the `place` of the last file that was looked at; empty: the scan begins, or has ended

    @property
    def stored_cursor(self) -> dict[str, str] | None:
        """The cursor, as the operation's row stores it."""
        return {"path": self.cursor.hex()} if self.cursor else None

    @classmethod
    def of(cls, row: Operation) -> Self:
        """Restore the progress from the row; without a cursor the scan begins anew."""
        if row.cursor is None:
            return cls()
        counts = {name: n for name, n in row.counts.items() if isinstance(n, int)}  # earlier versions stored text, too
        return cls(max(row.total or 0, row.done), row.done, Counter(counts), bytes.fromhex(row.cursor["path"]))


def scan(  # noqa: PLR0913 - what a scan touches, what it is told, and whom it tells
    begin: Begin,
    sandbox: Inspector,
    path: Path,
    *,
    table: LabelTable | None,
    rules: Rules,
    operation_id: uuid.UUID | None,
    report: Callable[[Session, Progress], bool],
    progress: Progress | None = None,
) -> Progress:
    """Look at every file under `path` behind the cursor of `progress`, until `report` says stop; return the progress.

    Its cursor says where to go on; it is empty at the end.

    Raises: `Unavailable` if the folder cannot be read, or is gone or empty though files were met in it.
    """
    progress = progress or Progress()
    if progress.cursor:
        see(path, progress.cursor)  # raises if the folder is gone now: its share may be unavailable
    if table is not None or not progress.cursor:
        total, table = _survey(path, table, rules)
        progress.total = progress.total if progress.cursor else total
    # rows keyed by UID match by the header alone: after any change of the table all files are read again
    uids = (sorted(table.instances.items()), sorted(table.studies.items())) if table else ([], [])
    whole = stamp(rules.secret, *uids) if any(uids) else None
    listing = (seen for seen in see(path, progress.cursor) if seen.path not in rules.skip)
    while batch := list(islice(listing, BATCH)):
        rows = [table.find(path, _path(seen)) if table else None for seen in batch]
        stamps = [stamp(rules.secret, row) if row else whole for row in rows]
        with begin() as db:
            same = files.unchanged(db, batch, stamps, rest_s=rules.rest_s)
        # the absolute difference: a file dated in the future must not wait for that day
        young = {s.path for s in batch if abs(time.time_ns() - s.mtime_ns) < rules.settle_s * 1e9} - same
        fresh = [one for one in zip(batch, rows, stamps, strict=True) if one[0].path not in same | young]
        inspected = sandbox.inspect_many([_path(seen) for seen, _, _ in fresh]) if fresh else []
        if any(isinstance(what, Rejected) and what.reason == Reason.UNREADABLE for what in inspected):
            _check_root(path)
        now: list[Seen] = asked(path, partial(list, map(_now, [seen for seen, _, _ in fresh])))
        last = asked(path, partial(place, batch[-1]))
        found = [
            Found(seen=seen, inspected=what, row=row or _by_uid(table, path, seen, what), stamp=mark)
            for seen, (_, row, mark), what in zip(now, fresh, inspected, strict=True)
        ]
        with begin() as db:
            if found:
                progress.counts += register(db, found, rules, operation_id)
            if table is not None:
                progress.counts += _unlabelled(table, path, found)
            progress.counts["unchanged"] += len(same)
            progress.counts["settling"] += len(young)
            progress.done += len(batch)
            progress.total = max(progress.total, progress.done)
            progress.cursor = last
            go_on = report(db, progress)
        if not go_on:
            return progress
    if progress.total == 0:  # an empty folder, too, reports once, and may be cancelled
        with begin() as db:
            report(db, progress)
    else:
        _check_root(path)  # of an absent share the walk finds no more files: they look as if they had been deleted
    progress.cursor = b""
    return progress


def _check_root(path: Path) -> None:
    """Raises: `Unavailable` if the folder, in which files were met, is gone or empty now."""

    def holds_any() -> bool:
        with os.scandir(path) as listing:
            return any(True for _ in listing)

    try:
        there = asked(path, holds_any)
    except NotADirectoryError:
        return  # the scan is of one file
    except OSError:
        there = False
    if not there:
        raise Unavailable("the folder was emptied or removed during the scan: its share may be unavailable")


def _survey(path: Path, table: LabelTable | None, rules: Rules) -> tuple[int, LabelTable | None]:
    """Return the number of files, and the table without rows that match files of several folders."""
    total = 0

    def met() -> Iterator[Path]:
        nonlocal total
        for seen in see(path):
            if seen.path not in rules.skip:
                total += 1
                yield _path(seen)
            if total % 1000 == 0:
                heartbeat.beat()

    if table is not None:
        table = table.told_apart(path, met())
    else:
        deque(met(), maxlen=0)
    return total, table


def _unlabelled(table: LabelTable, path: Path, found: Sequence[Found]) -> Counter[str]:
    bare = [one for one in found if one.row is None and not isinstance(one.inspected, Rejected)]
    alike = sum(table.shares(path, _path(one.seen)) for one in bare)
    return +Counter(unlabelled=len(bare), namesakes=alike)


#: A file's path below the root, as (is a folder, name). In a folder, files come before folders, each by name.
Steps = tuple[tuple[bool, bytes], ...]


def walk(root: Path, after: bytes = b"") -> Iterator[Seen]:
    """Yield everything under `root` that is no folder, in name order; with `after`, only what comes behind that place.

    Links are yielded and not followed. A folder that cannot be read is yielded like a file, so that it gets a row with
    its reason.

    Raises: `Unavailable` if `root` itself cannot be read, or is empty and was not before.
    """
    steps = _walk(root, after)
    while some := asked(root, lambda: list(islice(steps, LOOKS))):
        yield from (seen for seen in some if seen is not None)


def asked(root: Path, look: Callable[[], T]) -> T:
    """Return what a look at `root`, or at files below it, returns. Raises: `Unavailable` if no answer comes."""
    try:
        return in_time(look, ANSWER_S, lambda: root)
    except TimeoutError:
        raise Unavailable("the folder's disk or network share does not answer") from None


def _walk(root: Path, after: bytes) -> Iterator[Seen | None]:
    """Yield as `walk`, and None at least once for each look at the disk, so that a few steps never take long."""
    passed = _steps(os.fsencode(root), after)
    folders: list[tuple[Seen, Steps]] = [(_unseen(os.fsencode(root)), ())]
    while folders:
        yield None
        folder, here = folders.pop()
        entries: list[os.DirEntry[bytes]] = []
        try:
            with os.scandir(folder.path) as listing:
                for entry in listing:
                    entries.append(entry)
                    yield None
        except OSError:
            if not here:
                raise Unavailable("the folder cannot be read") from None
            yield folder
            continue
        if passed and not here and not entries:
            raise Unavailable("the folder is empty, but was not when the scan began: its share may be unavailable")
        entries.sort(key=lambda entry: entry.name)
        below = []
        for seen, inside in _ahead(entries, here, passed):
            if seen is not None and inside:
                below.append((seen, inside))
            else:
                yield seen
        folders.extend(reversed(below))


def _ahead(entries: Sequence[os.DirEntry[bytes]], here: Steps, passed: Steps) -> Iterator[tuple[Seen | None, Steps]]:
    """Yield the entries of a folder that were not passed yet; a folder with its `Steps`, anything else with ().

    Before each entry, passed or not, None is yielded.
    """
    for entry in entries:
        yield None, ()
        behind = (*here, (False, entry.name)) <= passed
        if behind and not _may_be_folder(entry):
            continue  # without a `stat`: there may be a million, on a slow share
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone since it was listed
        except OSError:  # a folder that may be listed and not entered, say: its files get rows, too
            if not behind:
                yield _unseen(entry.path), ()
            continue
        inside = (*here, (True, entry.name))
        if not stat.S_ISDIR(found.st_mode):
            if not behind:
                yield Seen.of(entry.path, found), ()
        elif inside >= passed[: len(inside)] and inside != passed:
            yield Seen.of(entry.path, found), inside


def _may_be_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def place(seen: Seen) -> bytes:
    """Return the place of a walk that has just yielded this: its path, with a slash behind an unreadable folder."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(seen.path).st_mode):
            return seen.path + b"/"
    return seen.path


def _steps(root: bytes, after: bytes) -> Steps:
    names = after.removeprefix(root).strip(b"/").split(b"/") if after else []
    return tuple((number < len(names) or after.endswith(b"/"), name) for number, name in enumerate(names, 1))


def _unseen(path: bytes) -> Seen:
    return Seen(path=path, size=0, mtime_ns=0)


def see(path: Path, after: bytes = b"") -> Iterator[Seen]:
    """Return the files of a folder, with `after` only those behind that place, or the one file that `path` is.

    Raises: `Invalid` if there is neither, `Unavailable` if `path` cannot be read, or is gone and `after` is given.
    """
    try:
        found = asked(path, path.stat)
        if stat.S_ISDIR(found.st_mode):
            return walk(path, after)
        if stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(asked(path, path.lstat).st_mode):
            return iter([Seen.of(os.fsencode(path), found)])
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:  # below a folder that may not be entered, or on a share that is unavailable
        raise Unavailable("the folder cannot be read") from None
    if after:
        raise Unavailable("the folder does not exist, but did when the scan began: its share may be unavailable")
    raise Invalid("there is no such file or folder")


def within(path: Path, roots: Sequence[Path], *, any_root: bool) -> Path:
    """Return the real path, if scans may read there.

    Raises: `Invalid`.
    """
    real = path.resolve()
    if not any_root and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise Invalid("this folder is not under one of the configured intake roots")
    return real


def register(db: Session, found: Sequence[Found], rules: Rules, operation_id: uuid.UUID | None) -> Counter[str]:
    """Decide on files of a folder and write a row for each, whatever became of it; return the counts by outcome."""
    done = admit(db, found, rules, Origin(source="folder", operation_id=operation_id))
    files.record(db, [one.record for one in done], operation_id)
    return Counter(one.record.outcome for one in done)


def stamp(secret: bytes, *said: object) -> bytes:
    """Return a digest that is equal as long as a file's labels are. Keyed: a row of a table may name its patient."""
    return hmac.digest(secret, repr(said).encode(), "sha256")[:16]


def _now(seen: Seen) -> Seen:
    """Forget the file's time if it changed while it was read, so that the next scan reads it again."""
    try:
        unchanged = Seen.of(seen.path, _path(seen).lstat()) == seen
    except FileNotFoundError:
        unchanged = False
    except OSError:
        unchanged = seen == _unseen(seen.path)
    return seen if unchanged else replace(seen, mtime_ns=READ_AGAIN)


def _path(seen: Seen) -> Path:
    return Path(os.fsdecode(seen.path))


def _by_uid(table: LabelTable | None, root: Path, seen: Seen, what: Inspected | Rejected) -> Row | None:
    """Return the table's row for a file, now that the UIDs of its header are known."""
    if table is None or isinstance(what, Rejected):
        return None
    uids = what.header.sop_instance_uid, what.header.study_instance_uid
    return table.find(root, _path(seen), sop_instance_uid=uids[0], study_uid=uids[1])
