"""Take in: a folder's files become rows, in place, without copying or decoding them.

The scan is the truth about a folder: it walks it, skips what has not changed since it was last looked at, reads
the headers of the rest in the sandbox, and decides for each file in one transaction per batch. So it may be
interrupted anywhere and started again.
"""

import json
import os
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Protocol

from sqlalchemy.orm import Session

from shared.datasets.folder import LabelTable, Row
from shared.errors import Gate, Invalid, Outcome, Rejected
from shared.imaging.pseudonym import patient_key
from shared.imaging.reasons import Reason, failed
from shared.imaging.sandbox import Inspected
from shared.store import files, studies
from shared.store.files import Record, Seen
from shared.store.session import Begin, enqueue
from shared.store.studies import Incoming, Known
from shared.types import Header, Job, Labels, Status

BATCH = 64


class Inspector(Protocol):
    """What a scan needs of the sandbox."""

    def inspect_many(self, paths: Sequence[Path]) -> list[Inspected | Rejected]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a site decides about intake."""

    secret: bytes  #: of the pseudonyms
    same_uid: str = "same_source"  #: never, same_source or always: what other bytes under a known UID may do
    settle_s: float = 0.0  #: a file younger than this is left for the next round


def walk(root: Path) -> Iterator[Seen]:
    """Every regular file under `root`, in name order; links are not followed, so nothing outside is read."""
    folders = [os.fsencode(root)]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue  # gone, or not ours to read: the next round looks again
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield Seen(path=entry.path, size=found.st_size, mtime_ns=found.st_mtime_ns)
        folders.extend(reversed(below))


def see(path: Path) -> Iterator[Seen]:
    """A folder's files, or the one file that `path` is.

    Raises: `Invalid` where there is neither.
    """
    if path.is_dir():
        return walk(path)
    if path.is_file() and not path.is_symlink():
        found = path.stat()
        return iter([Seen(path=os.fsencode(path), size=found.st_size, mtime_ns=found.st_mtime_ns)])
    raise Invalid("there is no such file or folder")


def within(path: Path, roots: Sequence[Path], *, any_root: bool) -> Path:
    """The real path, if scans may read there.

    Raises: `Invalid`.
    """
    real = path.resolve()
    if not any_root and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise Invalid("this folder is not under one of the configured intake roots")
    return real


def identify(inspected: Inspected, row: Row | None, secret: bytes) -> Header:
    """The header with what a table says of it; a plain image has its study and patient from the table alone."""
    header = inspected.header
    if header is None:
        raise failed(Reason.NOT_A_STUDY_OBJECT)
    if row is None or inspected.kind == "dicom":
        return header
    changes: dict[str, object] = {
        name: value
        for name, value in (
            ("laterality", row.laterality),
            ("view", row.view),
            ("study_date", row.study_date),
            ("modality", row.modality),
            ("patient_id", row.patient),
        )
        if value
    }
    if row.study:
        changes["study_instance_uid"] = study_uid(row.study, secret)
    return replace(header, **changes)  # type: ignore[arg-type]  # the names above are fields of Header


def study_uid(name: str, secret: bytes) -> str:
    """A table's word for a study as a UID: itself if it is one, else a keyed one that is the same every time."""
    parts = name.split(".")
    if len(name) <= 64 and len(parts) > 2 and all(p.isdigit() and (p == "0" or p[0] != "0") for p in parts):
        return name
    return f"2.25.{int.from_bytes(sha256(secret + name.encode()).digest()[:15])}"


def labels_digest(row: Row | None) -> bytes | None:
    if row is None:
        return None
    return sha256(repr(row).encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one file whose image may stand already."""

    outcome: str  #: taken, same (another copy), kept (policy), or quarantined
    act: str  #: nothing, insert, replace or relabel
    reason: str | None = None
    gate: str | None = None


def decide(incoming: Incoming, known: Known | None, patient: bytes, policy: str) -> Verdict:
    """The stated policy, as one table; nothing here touches the database."""
    if patient != incoming.patient_key:
        # two patients under one StudyInstanceUID: never merged silently
        return Verdict(Outcome.QUARANTINED, "nothing", "patient-conflict", Gate.METADATA)
    if known is None:
        return Verdict("taken", "insert")
    if known.patient_key != incoming.patient_key:
        return Verdict(Outcome.QUARANTINED, "nothing", "patient-conflict", Gate.METADATA)
    if known.status in (Status.DELETED, Status.REJECTED):
        return Verdict("kept", "nothing", f"was-{known.status}")
    same_source = known.path == incoming.path
    if known.digest == incoming.digest:
        labels = (incoming.labels.birads, incoming.labels.density, incoming.labels.pathology, incoming.labels.extra)
        act = "relabel" if incoming.labels != Labels() and labels != known.labels else "nothing"
        return Verdict("taken" if same_source else "same", act)
    if policy == "always" or (policy == "same_source" and same_source):
        return Verdict("taken", "replace")
    return Verdict("kept", "nothing", "other-bytes")


def register(
    db: Session,
    found: Sequence[tuple[Seen, Inspected | Rejected, Row | None]],
    rules: Rules,
    operation_id: uuid.UUID | None,
) -> Counter[str]:
    """Each file has a row, each new image is `received`, and the encoder is rung for; returns the outcomes."""
    records: list[Record] = []
    candidates: list[tuple[Seen, Incoming, bytes | None]] = []
    for seen, inspected, row in found:
        digest = labels_digest(row)
        if isinstance(inspected, Rejected):
            records.append(_refused(seen, inspected, digest))
            continue
        try:
            header = identify(inspected, row, rules.secret)
        except Rejected as refusal:
            records.append(_refused(seen, refusal, digest))
            continue
        key = patient_key(
            rules.secret,
            header.issuer_of_patient_id,
            header.patient_id,
            study_instance_uid=header.study_instance_uid,
        )
        labels = row.labels if row is not None else Labels()
        incoming = Incoming(header=header, patient_key=key, digest=inspected.digest, path=seen.path, labels=labels)
        candidates.append((seen, incoming, digest))
    records += _settle_candidates(db, candidates, rules, operation_id)
    files.record(db, records, operation_id)
    enqueue(db, Job.ENCODE)
    return Counter(record.outcome for record in records)


def _refused(seen: Seen, refusal: Rejected, digest: bytes | None) -> Record:
    gate = refusal.gate.value if refusal.gate else None
    return Record(seen=seen, outcome=refusal.outcome.value, gate=gate, reason=refusal.reason, labels_digest=digest)


def _settle_candidates(
    db: Session,
    candidates: Sequence[tuple[Seen, Incoming, bytes | None]],
    rules: Rules,
    operation_id: uuid.UUID | None,
) -> list[Record]:
    if not candidates:
        return []
    owners = studies.ensure(db, [incoming for _, incoming, _ in candidates])
    standing = studies.known(db, [i.header.sop_instance_uid for _, i, _ in candidates])
    fresh: dict[str, Incoming] = {}
    for _, incoming, _ in candidates:  # the first file of a UID inserts, the others meet it below
        uid = incoming.header.sop_instance_uid
        patient = owners[incoming.header.study_instance_uid][1]
        if uid not in standing and decide(incoming, None, patient, rules.same_uid).act == "insert":
            fresh.setdefault(uid, incoming)
    inserted = studies.insert(db, list(fresh.values()), owners, operation_id)
    standing |= studies.known(db, list(fresh))
    records = []
    for seen, incoming, digest in candidates:
        uid = incoming.header.sop_instance_uid
        new = fresh.get(uid) is incoming and uid in inserted
        patient = owners[incoming.header.study_instance_uid][1]
        verdict = decide(incoming, None if new else standing.get(uid), patient, rules.same_uid)
        image_id = standing[uid].id if uid in standing else None
        if image_id is not None:
            _act(db, verdict, image_id, incoming, operation_id)
        records.append(
            Record(
                seen=seen,
                outcome=str(verdict.outcome),
                digest=incoming.digest,
                image_id=image_id,
                gate=str(verdict.gate) if verdict.gate else None,
                reason=verdict.reason,
                labels_digest=digest,
            )
        )
    return records


def _act(db: Session, verdict: Verdict, image_id: int, incoming: Incoming, operation_id: uuid.UUID | None) -> None:
    if verdict.act == "replace":
        studies.replace_bytes(db, image_id, incoming, operation_id)
    elif verdict.act == "relabel":
        studies.relabel(db, image_id, incoming.labels)
        enqueue(db, Job.PROJECT)


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
    progress = Progress(total=sum(1 for _ in see(path)))
    listing = see(path)
    while batch := list(islice(listing, BATCH)):
        rows = [table.find(path, Path(os.fsdecode(seen.path))) if table else None for seen in batch]
        with begin() as db:
            same = files.unchanged(db, batch, [labels_digest(row) for row in rows])
        young = {s.path for s in batch if time.time_ns() - s.mtime_ns < rules.settle_s * 1e9} - same
        todo = [(s, r) for s, r in zip(batch, rows, strict=True) if s.path not in same and s.path not in young]
        inspected = sandbox.inspect_many([Path(os.fsdecode(seen.path)) for seen, _ in todo]) if todo else []
        found = [(_now(seen), what, row) for (seen, row), what in zip(todo, inspected, strict=True)]
        with begin() as db:
            if found:
                progress.counts += register(db, found, rules, operation_id)
            progress.counts["unchanged"] += len(same)
            progress.counts["settling"] += len(young)
            progress.done += len(batch)
            progress.total = max(progress.total, progress.done)
            go_on = report(db, progress)
        if not go_on:
            break
    return progress


def _now(seen: Seen) -> Seen:
    """Forget the file's time if it changed while it was read, so that the next scan reads it again."""
    try:
        found = Path(os.fsdecode(seen.path)).lstat()
    except OSError:
        return replace(seen, mtime_ns=-1)
    unchanged = (found.st_size, found.st_mtime_ns) == (seen.size, seen.mtime_ns)
    return seen if unchanged else replace(seen, mtime_ns=-1)
