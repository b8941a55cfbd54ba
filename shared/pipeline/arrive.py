"""Files that are sent to us: by C-STORE, by STOW, by a pull from another archive. One way in for all of them.

The order is the promise: on the disk, then rows, then the name by which the rows know it, then the commit, then the
answer. A crash before the commit leaves at most a file without a row, which the sweep takes; nobody was told of it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.reasons import Reason
from shared.pipeline.receive import Found, Inspector, Registered, Rules, admit
from shared.store import files
from shared.store.arrivals import Origin
from shared.store.blobs import MTIME_NS, Blobs, Part
from shared.store.files import Seen
from shared.store.locks import Lock, alone
from shared.store.session import Begin

CHUNK = 1000  #: files that are looked up at once

#: what stays with us, and is answered as success; a file of a known UID with other bytes is kept beside it
KEPT = frozenset({"taken", "same", "kept", "quarantined"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What became of one file that was sent."""

    outcome: str  #: taken, same, kept, quarantined, empty, failed, discarded or refused
    reason: str | None = None
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    kept: bool  #: it is ours now, durably; else nothing but a line in the journal remains


def arrive(
    begin: Begin, inspector: Inspector, blobs: Blobs, parts: Sequence[Part], origin: Origin, rules: Rules
) -> list[Arrived]:
    """What is `kept` of these parts is durable, has its rows, and is rung for; one answer for each, in order.

    Raises: `Unavailable` where the disk, the database or the sandbox is away; then nothing is acknowledged.
    """
    for part in parts:
        part.finish()
    looked = inspector.inspect_many([part.path for part in parts])
    found = [
        Found(seen=_seen(blobs, part, inspected), inspected=inspected, expects=part.expects)
        for part, inspected in zip(parts, looked, strict=True)
    ]
    with begin() as db:
        done = admit(db, found, rules, origin)
        answers = [_answer(one) for one in done]
        files.record(db, [one.record for one, a in zip(done, answers, strict=True) if a.kept], origin.operation_id)
        for part, one, answer in zip(parts, found, answers, strict=True):
            if answer.kept and not isinstance(one.inspected, Rejected):
                blobs.keep(part, one.inspected.digest)
    return answers


def _seen(blobs: Blobs, part: Part, inspected: Inspected | Rejected) -> Seen:
    """Where the file will stand; of one that is turned away, where it stands until then."""
    place = part.path if isinstance(inspected, Rejected) else blobs.place(inspected.digest)
    return Seen(path=os.fsencode(place), size=part.size, mtime_ns=MTIME_NS)


def _answer(done: Registered) -> Arrived:
    known, outcome, reason = done.header is not None, done.record.outcome, done.record.reason
    # its sender is told which one it was, also where our own journal does not name it
    header = None if isinstance(done.file.inspected, Rejected) else done.file.inspected.header
    return Arrived(
        outcome=outcome,
        reason=reason,
        sop_instance_uid=header.sop_instance_uid if header else "",
        study_instance_uid=header.study_instance_uid if header else "",
        series_instance_uid=header.series_instance_uid if header else "",
        sop_class_uid=header.sop_class_uid if header else "",
        kept=known and outcome in KEPT and reason != Reason.ENDED,
    )


def sweep(begin: Begin, blobs: Blobs) -> int:
    """Files without a row are gone: what a crash has left, and what was erased; returns how many there were."""
    gone = blobs.forget_parts()
    for paths in batched(blobs.every(), CHUNK):
        with begin() as db:
            known = files.known(db, [os.fsencode(path) for path in paths])
        lost = [path for path in paths if os.fsencode(path) not in known]
        if not lost:
            continue
        with begin() as db:
            alone(db, Lock.INTAKE)  # whoever had put a file there has committed its row, or never will
            known = files.known(db, [os.fsencode(path) for path in lost])
            for path in lost:
                if os.fsencode(path) not in known:
                    path.unlink(missing_ok=True)
                    gone += 1
    return gone


def batched(paths: Iterable[Path], n: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, n)):
        yield batch
