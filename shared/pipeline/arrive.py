"""Intake of files that are sent by C-STORE, by STOW or by a pull from another archive: one function for all of them.

The order makes it durable: sync the file, write its rows, rename the file to its digest, commit, answer. A crash
before the commit leaves at most a file without a row; it was never acknowledged, and the sweep puts it aside.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice
from pathlib import Path

from shared import heartbeat
from shared.disk import exists
from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.reasons import PASSING, Reason, failed
from shared.log import get
from shared.pipeline import erase
from shared.pipeline.identity import Found, key_of
from shared.pipeline.receive import BATCH, Inspector, Registered, Rules, admit
from shared.store import arrivals, erasure, files
from shared.store.arrivals import Origin
from shared.store.blobs import MTIME_NS, Blobs, Part, digest_of
from shared.store.files import Left, Record, Seen, Sent
from shared.store.locks import Lock, alone
from shared.store.session import Begin, enqueue
from shared.types import FileOutcome, Job

CHUNK = 1000  #: files that are looked up at once
REMOVED = 50  #: files that are unlinked under one lock, which holds up intake
MARGIN_S = 24 * 3600.0  #: a file without a row is put aside after this long: its row may still be committed
LOST_S = 30 * 24 * 3600.0  #: a file that was put aside is deleted after this long
#: Crashes leave a file without a row now and then. If more than FEW and more than this SHARE have none, the rows are
#: wrong.
FEW, SHARE = 10, 0.01

log = get(__name__)

#: outcomes whose file stays in the store and is acknowledged; `kept`: other bytes of a known UID, stored beside it
KEPT = frozenset({FileOutcome.TAKEN, FileOutcome.SAME, FileOutcome.KEPT, FileOutcome.QUARANTINED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What became of one file that was sent."""

    outcome: FileOutcome
    reason: str | None = None
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    kept: bool  #: the file is stored durably; else at most a line in the journal remains

    @property
    def accepted(self) -> bool:
        """Whether the sender need not send the file again: it is kept, or an admission rule discards it."""
        return self.kept or self.outcome == FileOutcome.DISCARDED


def arrive(
    begin: Begin, inspector: Inspector, blobs: Blobs, parts: Sequence[Part], origin: Origin, rules: Rules
) -> list[Arrived]:
    """Take in these parts and return one answer for each, in order; what is `kept` is durable and has its rows.

    Raises: `Unavailable` if the disk, the database or the sandbox fails; then nothing is acknowledged.
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
    """Return the file's entry with its future place in the store, or with its temporary path if it was rejected."""
    place = part.path if isinstance(inspected, Rejected) else blobs.place(inspected.digest)
    return Seen(path=os.fsencode(place), size=part.size, mtime_ns=MTIME_NS)


def _answer(done: Registered) -> Arrived:
    known, outcome, reason = done.header is not None, done.record.outcome, done.record.reason
    # the answer names the UIDs even if the journal may not (erased images)
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


def reread(begin: Begin, inspector: Inspector, rules: Rules) -> int:
    """Inspect and decide again on the stopped sent files that are marked for it; return how many."""
    done, after = 0, 0
    while True:
        with begin() as db:
            due = files.again(db, after, BATCH)
        if not due:
            return done
        heartbeat.beat()
        admit_again(begin, inspector, due, rules)
        done, after = done + len(due), due[-1].id


def admit_again(begin: Begin, inspector: Inspector, sent: Sequence[Sent], rules: Rules) -> None:
    """Decide on files of the store as if they arrived now from their origin; no decision loses a file.

    Files whose image was erased meanwhile become due for removal.
    """
    looked = inspector.inspect_many([Path(os.fsdecode(one.path)) for one in sent])
    for one, found_there in zip(sent, looked, strict=True):
        inspected = found_there
        if isinstance(inspected, Inspected) and inspected.digest != one.digest:
            inspected = failed(Reason.CHANGED)  # damaged since: files are named by their digest
        found = Found(seen=Seen(path=one.path, size=one.size, mtime_ns=MTIME_NS), inspected=inspected)
        with begin() as db:
            origin = Origin(source="store")
            if isinstance(inspected, Inspected):
                header = inspected.header
                origin = arrivals.came(db, header.study_instance_uid, header.sop_instance_uid)
            (decided,) = admit(db, [found], rules, origin)
            files.record(db, [_still(one, decided.record)], origin.operation_id)
            if decided.record.reason == Reason.ERASED:
                erasure.forget(db, files.numbers(db, [one.path]))
                enqueue(db, Job.TIDY)


def _still(sent: Sent, record: Record) -> Record:
    """Return the decision; an unreadable file keeps its digest, image, patient and UIDs from before."""
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
    """Unlink erased files and stale parts, put aside files without a row; return how many files there were.

    A file without a row may have been acknowledged all the same: the database may be an older one. So it is only put
    aside, for 30 days, and not even that if many files have no row.
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
            alone(db, Lock.INTAKE)  # intake that was running has committed its rows, or never will
            known = files.held(db, [digest_of(path) for path in paths])
            for path in paths:
                if digest_of(path) in known:
                    continue
                with suppress(FileNotFoundError):  # another sweep was faster
                    if path in erased:
                        blobs.remove(digest_of(path))
                    else:
                        blobs.lose(path)
                    gone += 1
    return gone


def unknown_files(begin: Begin, blobs: Blobs, margin_s: float) -> tuple[int, list[Path]]:
    """Return the number of files in the store, and those older than `margin_s` that have no row."""
    total, unknown, before = 0, [], time.time() - margin_s
    for paths in batched(blobs.every(), CHUNK):
        total += len(paths)
        with begin() as db:
            known = files.held(db, [digest_of(path) for path in paths])
        unknown += [path for path in paths if digest_of(path) not in known and _since(path) < before]
    return total, unknown


def strays(begin: Begin, inspector: Inspector, blobs: Blobs) -> list[Path]:
    """Return the files without a row: all in the store, and the readable ones that were put aside."""
    _, unknown = unknown_files(begin, blobs, 0)
    aside = blobs.lost()
    readable = zip(aside, inspector.inspect_many(aside), strict=True)
    found = [*unknown, *(path for path, what in readable if not isinstance(what, Rejected))]
    if not found:
        return []
    digests = [digest_of(path) for path in found]
    with begin() as db:
        alone(db, Lock.INTAKE)  # intake that was running has committed its rows
        known = files.held(db, digests) | files.leaving(db, digests)
    return [path for path in found if digest_of(path) not in known]


def recover(begin: Begin, inspector: Inspector, blobs: Blobs, rules: Rules, found: Sequence[Path]) -> None:
    """Decide on each of these strays as on an arriving file; put aside those without a readable header."""
    for paths in batched(found, BATCH):
        sent = []
        for path, what in zip(paths, inspector.inspect_many(paths), strict=True):
            if isinstance(what, Rejected) and what.reason in PASSING:
                continue
            with suppress(FileNotFoundError):  # removed meanwhile
                if isinstance(what, Rejected) or what.digest != digest_of(path):
                    blobs.lose(path)
                    continue
                place = blobs.find_again(path)
                sent.append(Sent(path=os.fsencode(place), size=place.stat().st_size, digest=digest_of(place)))
        admit_again(begin, inspector, sent, rules)


def _since(path: Path) -> float:
    """Return when the file came into the store: its ctime, which no program can set; now if the file is gone."""
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return time.time()


def _remove_erased(begin: Begin, inspector: Inspector, blobs: Blobs, secret: bytes) -> int:
    """Unlink the files that erasures have left, including those that were put aside; return how many."""
    gone = 0
    for path in _erased(begin, inspector, blobs.lost(), secret):
        path.unlink(missing_ok=True)  # only the copy that was put aside: a file that came again stands elsewhere
        gone += 1
    own, out_of_reach, due = os.fsencode(blobs.root), 0, [Left(b"", b"")]
    while due:
        with begin() as db:
            alone(db, Lock.INTAKE)
            due = files.removals(db, due[-1], REMOVED)
            back = files.held(db, [one.digest for one in due])  # files that came again after a lift stay
            here = {digest: _unlink(blobs, digest) for digest in {one.digest for one in due} - back}
            earlier = [one for one in due if one.digest in here and one.root not in (b"", own)]
            away = [one for one in due if one.root == own and here.get(one.digest) is Trace.OUT_OF_REACH]
            files.removed(db, set(due) - {*earlier, *away})
        # intake does not write to an earlier store, so its lock is not held while that disk may hang
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
    """What one store had of an erased content."""

    UNLINKED = auto()
    NONE = auto()
    OUT_OF_REACH = auto()  #: the disk is unavailable or refuses: the sweep tries again


def _unlink(store: Blobs, digest: bytes) -> Trace:
    """Unlink the erased content from this store; a store that is out of reach does not hold up the others."""
    try:
        if store.remove(digest):
            return Trace.UNLINKED
    except OSError:
        return Trace.OUT_OF_REACH
    return Trace.NONE if store.stands else Trace.OUT_OF_REACH


def _unlink_before(left: Left, here: Trace) -> Trace:
    """Unlink the content from an earlier store; one that is gone has moved, if the present store had the content."""
    store = Blobs(Path(os.fsdecode(left.root)))
    found = _unlink(store, left.digest)
    with suppress(OSError):  # `exists` may fail, too
        if found is Trace.OUT_OF_REACH and here is Trace.UNLINKED and not exists(store.root):
            return Trace.NONE
    return found


def _erased(begin: Begin, inspector: Inspector, paths: Sequence[Path], secret: bytes) -> set[Path]:
    """Return those of these files whose header names an erased image, study or patient."""
    named = {
        path: (found.header.sop_instance_uid, found.header.study_instance_uid, key_of(found.header, secret))
        for path, found in zip(paths, inspector.inspect_many(paths), strict=True)
        if not isinstance(found, Rejected)
    }
    with begin() as db:
        gone = erase.refused(db, secret, list(named.values()))
    return {path for path, erased in zip(named, gone, strict=True) if erased}


def batched(paths: Iterable[Path], n: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, n)):
        yield batch
