"""Scan: a folder's files become rows, in place, without copying or decoding them.

The scan is the truth about a folder: it walks it, skips what has not changed since it was last looked at, reads
the headers of the rest in the sandbox, and decides for each file in one transaction per batch. So it may be
interrupted anywhere and started again.
"""

import hmac
import json
import os
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from sqlalchemy.orm import Session

from shared.datasets.folder import LabelTable, Row
from shared.errors import Invalid, Rejected, Unavailable
from shared.imaging.sandbox import Inspected
from shared.pipeline.receive import BATCH, Found, Inspector, Rules, admit
from shared.store import files
from shared.store.arrivals import Origin
from shared.store.files import Seen
from shared.store.session import Begin


@dataclass
class Progress:
    """How far a scan is; `counts` are by outcome, with `unchanged` and `settling` beside them."""

    total: int = 0
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def to_json(self, **more: object) -> str:
        return json.dumps(dict(self.counts) | more)


def scan(
    begin: Begin,
    sandbox: Inspector,
    path: Path,
    *,
    table: LabelTable | None,
    rules: Rules,
    operation_id: uuid.UUID | None,
    report: Callable[[Session, Progress], bool],
) -> Progress:
    """Every file under `path` has been looked at, or `report` said stop."""
    progress = Progress(total=sum(1 for seen in see(path) if seen.path not in rules.skip))
    # which rows belong to which file is known only by its header: any change of the table looks at all files again
    uids = (sorted(table.instances.items()), sorted(table.studies.items())) if table else ([], [])
    whole = stamp(rules.secret, *uids) if any(uids) else None
    listing = (seen for seen in see(path) if seen.path not in rules.skip)
    while batch := list(islice(listing, BATCH)):
        rows = [table.find(path, _path(seen)) if table else None for seen in batch]
        stamps = [stamp(rules.secret, row) if row else whole for row in rows]
        with begin() as db:
            same = files.unchanged(db, batch, stamps, rest_s=rules.rest_s)
        # the distance, not the age: a file dated in the future must not wait for that day
        young = {s.path for s in batch if abs(time.time_ns() - s.mtime_ns) < rules.settle_s * 1e9} - same
        fresh = [one for one in zip(batch, rows, stamps, strict=True) if one[0].path not in same | young]
        inspected = sandbox.inspect_many([_path(seen) for seen, _, _ in fresh]) if fresh else []
        found = [
            Found(seen=_now(seen), inspected=what, row=row or _by_uid(table, path, seen, what), stamp=mark)
            for (seen, row, mark), what in zip(fresh, inspected, strict=True)
        ]
        with begin() as db:
            if found:
                progress.counts += register(db, found, rules, operation_id)
            progress.counts["unchanged"] += len(same)
            progress.counts["settling"] += len(young)
            progress.done += len(batch)
            progress.total = max(progress.total, progress.done)
            go_on = report(db, progress)
        if not go_on:
            return progress
    if progress.total == 0:  # an empty folder, too, tells and asks whether to go on
        with begin() as db:
            report(db, progress)
    return progress


def walk(root: Path) -> Iterator[Seen]:
    """Everything under `root` that is no folder, in name order. Links are met and not followed.

    A folder that cannot be read is met like a file, so that it has a row with its reason.

    Raises: `Unavailable` where `root` itself cannot be read.
    """
    folders = [Seen(path=os.fsencode(root), size=0, mtime_ns=0)]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
        except OSError:
            if folder.path == os.fsencode(root):
                raise Unavailable("the folder cannot be read") from None
            yield folder
            continue
        below = []
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since it was listed
            except OSError:  # a folder that may be listed and not entered, say: its files have their rows, too
                yield _unseen(entry.path)
                continue
            seen = Seen.of(entry.path, found)
            if stat.S_ISDIR(found.st_mode):
                below.append(seen)
            else:
                yield seen
        folders.extend(reversed(below))


def _unseen(path: bytes) -> Seen:
    return Seen(path=path, size=0, mtime_ns=0)


def see(path: Path) -> Iterator[Seen]:
    """A folder's files, or the one file that `path` is.

    Raises: `Invalid` where there is neither.
    """
    if path.is_dir():
        return walk(path)
    if path.is_file() and not path.is_symlink():
        return iter([Seen.of(os.fsencode(path), path.stat())])
    raise Invalid("there is no such file or folder")


def within(path: Path, roots: Sequence[Path], *, any_root: bool) -> Path:
    """The real path, if scans may read there.

    Raises: `Invalid`.
    """
    real = path.resolve()
    if not any_root and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise Invalid("this folder is not under one of the configured intake roots")
    return real


def register(db: Session, found: Sequence[Found], rules: Rules, operation_id: uuid.UUID | None) -> Counter[str]:
    """Files of a folder, in place: each has a row, whatever became of it; returns the outcomes."""
    done = admit(db, found, rules, Origin(source="folder", operation_id=operation_id))
    files.record(db, [one.record for one in done], operation_id)
    return Counter(one.record.outcome for one in done)


def stamp(secret: bytes, *said: object) -> bytes:
    """What must be equal for a file's labels to be as they were. Keyed: a row of a table may name its patient."""
    return hmac.digest(secret, repr(said).encode(), "sha256")[:16]


def _now(seen: Seen) -> Seen:
    """Forget the file's time if it changed while it was read, so that the next scan reads it again."""
    try:
        unchanged = Seen.of(seen.path, _path(seen).lstat()) == seen
    except FileNotFoundError:
        unchanged = False
    except OSError:
        unchanged = seen == _unseen(seen.path)
    return seen if unchanged else replace(seen, mtime_ns=-1)


def _path(seen: Seen) -> Path:
    return Path(os.fsdecode(seen.path))


def _by_uid(table: LabelTable | None, root: Path, seen: Seen, what: Inspected | Rejected) -> Row | None:
    """The row of a file that the table knows by a UID, which only its header tells."""
    if table is None or isinstance(what, Rejected) or what.header is None:
        return None
    uids = what.header.sop_instance_uid, what.header.study_instance_uid
    return table.find(root, _path(seen), sop_instance_uid=uids[0], study_uid=uids[1])
