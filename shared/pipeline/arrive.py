"""Files that are sent to us: by C-STORE, by STOW, by a pull from another archive. One way in for all of them.

The order is the promise: on the disk, then rows, then the name by which the rows know it, then the commit, then the
answer. A crash before the commit leaves at most a file without a row, which the sweep puts aside: nobody knows of it.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice
from pathlib import Path

from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.reasons import PASSING, Reason, failed
from shared.log import get
from shared.pipeline import erase
from shared.pipeline.receive import BATCH, Found, Inspector, Registered, Rules, admit, key_of
from shared.store import arrivals, erasure, files
from shared.store.arrivals import Origin
from shared.store.blobs import MTIME_NS, Blobs, Part, digest_of
from shared.store.files import Left, Record, Seen, Sent
from shared.store.locks import Lock, alone
from shared.store.session import Begin, enqueue
from shared.types import Job

CHUNK = 1000  #: files that are looked up at once
REMOVED = 50  #: files that are unlinked under one lock, which holds up what comes in
MARGIN_S = 24 * 3600.0  #: a file that no row knows is left where it is for so long, as its row may still come
LOST_S = 30 * 24 * 3600.0  #: a file that was set aside is kept for so long before it is deleted
#: Crashes leave a file now and then; where more are unknown, and more than this share, it is the rows that are wrong.
FEW, SHARE = 10, 0.01

log = get(__name__)

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


def reread(begin: Begin, inspector: Inspector, rules: Rules, *, alive: Callable[[], None] = lambda: None) -> int:
    """Sent files that were stopped, and are to be tried again, have been; returns how many."""
    done, after = 0, 0
    while True:
        with begin() as db:
            due = files.again(db, after, BATCH)
        if not due:
            return done
        alive()
        admit_again(begin, inspector, due, rules)
        done, after = done + len(due), due[-1].id


def admit_again(begin: Begin, inspector: Inspector, sent: Sequence[Sent], rules: Rules) -> None:
    """Files of our store are decided on as if they came now from where they came; none is lost by what is decided.

    What was erased meanwhile is to be unlinked.
    """
    looked = inspector.inspect_many([Path(os.fsdecode(one.path)) for one in sent])
    for one, found_there in zip(sent, looked, strict=True):
        inspected = found_there
        if isinstance(inspected, Inspected) and inspected.digest != one.digest:
            inspected = failed(Reason.CHANGED)  # damaged since: its name says what it was
        header = None if isinstance(inspected, Rejected) else inspected.header
        found = Found(seen=Seen(path=one.path, size=one.size, mtime_ns=MTIME_NS), inspected=inspected)
        with begin() as db:
            origin = Origin(source="store")
            if header is not None:
                origin = arrivals.came(db, header.study_instance_uid, header.sop_instance_uid)
            (decided,) = admit(db, [found], rules, origin)
            files.record(db, [_still(one, decided.record)], origin.operation_id)
            if decided.record.reason == Reason.ERASED:
                erasure.forget(db, files.numbers(db, [one.path]))
                enqueue(db, Job.TIDY)


def _still(sent: Sent, record: Record) -> Record:
    """What was decided, by the content that the file has for a name, and of an unread one whose it is."""
    if record.digest is not None:
        return record
    return replace(
        record,
        digest=sent.digest,
        image_id=sent.image_id,
        patient_key=sent.patient_key,
        study_uid=sent.study_uid,
        sop_uid=sent.sop_uid,
    )


def sweep(begin: Begin, inspector: Inspector, blobs: Blobs, secret: bytes, *, margin_s: float = MARGIN_S) -> int:
    """Files that were erased are gone, and those that a crash has left are put aside; returns how many there were.

    A file that no row knows by its content is no proof that nobody was told of it: the database may be an older one.
    So it is only put aside, for a month, and not even that where many are unknown.
    """
    gone = blobs.forget_parts() + _remove_erased(begin, inspector, blobs, secret)
    blobs.forget_lost(LOST_S)
    total, unknown = unknown_files(begin, blobs, margin_s)
    if len(unknown) > max(FEW, total * SHARE):
        log.error("unknown_files_kept", count=len(unknown), total=total)
        return gone
    for paths in batched(unknown, CHUNK):
        erased = _erased(begin, inspector, paths, secret)
        with begin() as db:
            alone(db, Lock.INTAKE)  # whoever had put a file there has committed its row, or never will
            known = files.held(db, [digest_of(path) for path in paths])
            for path in paths:
                if digest_of(path) in known:
                    continue
                with suppress(FileNotFoundError):  # another sweep was here meanwhile
                    if path in erased:
                        blobs.remove(digest_of(path))
                    else:
                        blobs.lose(path)
                    gone += 1
    return gone


def unknown_files(begin: Begin, blobs: Blobs, margin_s: float = MARGIN_S) -> tuple[int, list[Path]]:
    """How many sent files there are, and those that stand here for so long and that no row knows."""
    total, unknown, before = 0, [], time.time() - margin_s
    for paths in batched(blobs.every(), CHUNK):
        total += len(paths)
        with begin() as db:
            known = files.held(db, [digest_of(path) for path in paths])
        unknown += [path for path in paths if digest_of(path) not in known and _since(path) < before]
    return total, unknown


def strays(begin: Begin, inspector: Inspector, blobs: Blobs) -> list[Path]:
    """Files that no row knows, in the store, and of those that were put aside which can be read; nobody is at them."""
    _, unknown = unknown_files(begin, blobs, 0)
    aside = blobs.lost()
    readable = zip(aside, inspector.inspect_many(aside), strict=True)
    found = [*unknown, *(path for path, what in readable if not isinstance(what, Rejected))]
    if not found:
        return []
    digests = [digest_of(path) for path in found]
    with begin() as db:
        alone(db, Lock.INTAKE)  # whoever had put a file there has committed its row
        known = files.held(db, digests) | files.leaving(db, digests)
    return [path for path in found if digest_of(path) not in known]


def recover(begin: Begin, inspector: Inspector, blobs: Blobs, rules: Rules, found: Sequence[Path]) -> None:
    """Each of these strays is decided on like a file that comes, or put aside where no header can be read."""
    for paths in batched(found, BATCH):
        sent = []
        for path, what in zip(paths, inspector.inspect_many(paths), strict=True):
            if isinstance(what, Rejected) and what.reason in PASSING:
                continue
            with suppress(FileNotFoundError):  # taken away meanwhile
                if isinstance(what, Rejected) or what.digest != digest_of(path):
                    blobs.lose(path)
                    continue
                place = blobs.find_again(path)
                sent.append(Sent(path=os.fsencode(place), size=place.stat().st_size, digest=digest_of(place)))
        admit_again(begin, inspector, sent, rules)


def _since(path: Path) -> float:
    """When the file came here; its change time, which nobody can set. One that is gone came just now."""
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return time.time()


def _remove_erased(begin: Begin, inspector: Inspector, blobs: Blobs, secret: bytes) -> int:
    """What an erasure has left is unlinked, also where it had been put aside; returns how many files were."""
    gone = 0
    for path in _erased(begin, inspector, blobs.lost(), secret):
        path.unlink(missing_ok=True)  # of those that were put aside: what came again stands elsewhere
        gone += 1
    own, out_of_reach, due = os.fsencode(blobs.root), 0, [Left(b"", b"")]
    while due:
        with begin() as db:
            alone(db, Lock.INTAKE)
            due = files.removals(db, due[-1], REMOVED)
            back = files.held(db, [one.digest for one in due])  # what was lifted and came again stays
            here = {digest: _unlink(blobs, digest) for digest in {one.digest for one in due} - back}
            earlier = [one for one in due if one.digest in here and one.root not in (b"", own)]
            away = [one for one in due if one.root == own and here.get(one.digest) is Trace.OUT_OF_REACH]
            files.removed(db, set(due) - {*earlier, *away})
        # nothing comes into an earlier store, so the lock of intake need not wait for a disk that may not answer
        there = {one: _unlink_before(one, here[one.digest]) for one in earlier}
        away += [one for one, trace in there.items() if trace is Trace.OUT_OF_REACH]
        with begin() as db:
            files.removed(db, set(earlier) - set(away))
        gone += [*here.values(), *there.values()].count(Trace.UNLINKED)
        out_of_reach += len(away)
    if out_of_reach:
        log.warning("erased_files_out_of_reach", count=out_of_reach)
    return gone


class Trace(Enum):
    """What was left of an erased content in one store."""

    UNLINKED = auto()
    NONE = auto()
    OUT_OF_REACH = auto()  #: the disk is away or refuses: it is tried again


def _unlink(store: Blobs, digest: bytes) -> Trace:
    """The erased content is not in this store. The others do not wait for one that is out of reach."""
    try:
        if store.remove(digest):
            return Trace.UNLINKED
    except OSError:
        return Trace.OUT_OF_REACH
    return Trace.NONE if store.stands else Trace.OUT_OF_REACH


def _unlink_before(left: Left, here: Trace) -> Trace:
    """Likewise, of an earlier store; not of one that has moved with its home since: then it stood in ours."""
    store = Blobs(Path(os.fsdecode(left.root)))
    found = _unlink(store, left.digest)
    with suppress(OSError):  # a disk that does not even say whether it is there
        if found is Trace.OUT_OF_REACH and here is Trace.UNLINKED and not store.root.exists():
            return Trace.NONE
    return found


def _erased(begin: Begin, inspector: Inspector, paths: Sequence[Path], secret: bytes) -> set[Path]:
    """Those of these files whose header names what was erased."""
    named = {
        path: (header.sop_instance_uid, header.study_instance_uid, key_of(header, secret))
        for path, found in zip(paths, inspector.inspect_many(paths), strict=True)
        if not isinstance(found, Rejected) and (header := found.header) is not None
    }
    with begin() as db:
        gone = erase.refused(db, secret, list(named.values()))
    return {path for path, erased in zip(named, gone, strict=True) if erased}


def batched(paths: Iterable[Path], n: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, n)):
        yield batch
