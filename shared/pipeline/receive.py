"""Intake: decide on files whose headers were read, and write the rows of their images.

Folder scans, C-STORE, STOW and backfill share this. It opens no file: it decides by the header and by the rows that
exist of the image, its study and its patient.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy.orm import Session

from shared.errors import Gate, Rejected
from shared.imaging.answers import Inspected
from shared.imaging.reasons import PASSING, Reason
from shared.pipeline import erase, pictures, quarantine
from shared.pipeline.admission import Action, Admission
from shared.pipeline.identity import Candidate, Found, incoming_of
from shared.store import arrivals, catchup, files, images, studies
from shared.store.arrivals import Arrival, Origin
from shared.store.files import Record
from shared.store.locks import Lock, share
from shared.store.session import enqueue
from shared.store.studies import Incoming, Known
from shared.types import FileOutcome, Header, Job, Status

BATCH = 64  #: files decided in one transaction


class Inspector(Protocol):
    """What intake needs of the sandbox."""

    def inspect_many(self, paths: Sequence[Path]) -> list[Inspected | Rejected]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a site decides about intake."""

    secret: bytes  #: the pseudonym key
    same_uid: str = "same_source"  #: never, same_source or always: when other bytes replace an image of the same UID
    settle_s: float = 0.0  #: a file younger than this is left for the next round
    rest_s: float = 0.0  #: a file that could not be read is tried again after this
    skip: frozenset[bytes] = frozenset()  #: files that are no studies, such as the label table itself
    admission: Admission = field(default_factory=Admission)


@dataclass(frozen=True, slots=True)
class Registered:
    """The decision on one file; no header if it was unreadable, or erased and therefore not to be journalled."""

    file: Found
    record: Record
    header: Header | None = None
    rule: str = ""  #: name of the admission rule that decided

    @property
    def arrival(self) -> Arrival:
        return Arrival(
            study_uid=self.header.study_instance_uid if self.header else "",
            sop_uid=self.header.sop_instance_uid if self.header else "",
            outcome=self.record.outcome,
            reason=self.record.reason,
            rule=self.rule,
            image_id=self.record.image_id,
        )


@dataclass(frozen=True, slots=True)
class Handling:
    """What to do with one file, whose image may exist already."""

    outcome: FileOutcome  #: taken, same, kept or quarantined
    act: Literal["nothing", "insert", "replace", "redescribe"]
    reason: Reason | None = None
    gate: Gate | None = None
    found_again: bool = False  #: the image's own file was lost, and this one has its bytes


def decide(incoming: Incoming, known: Known | None, patient: bytes, policy: str) -> Handling:
    """Decide on one file by the policy for known UIDs; the database is not touched."""
    if patient != incoming.patient_key:
        # two patients under one StudyInstanceUID: never merged silently
        return _stop(Reason.PATIENT_CONFLICT)
    if known is None:
        return Handling(FileOutcome.TAKEN, "insert")
    if known.patient_key != incoming.patient_key:
        return _stop(Reason.PATIENT_CONFLICT)
    if known.study_uid != incoming.header.study_instance_uid:
        return _stop(Reason.STUDY_CONFLICT)
    if known.status in (Status.DELETED, Status.REJECTED):
        return Handling(FileOutcome.KEPT, "nothing", Reason.ENDED)
    same_source = known.path == incoming.path or (incoming.sender != "" and incoming.sender == known.sender)
    if known.digest == incoming.digest:
        new = incoming.by_table and studies.told_of(incoming, known.told) != known.told
        outcome = FileOutcome.TAKEN if same_source or known.lost else FileOutcome.SAME
        return Handling(outcome, "redescribe" if new else "nothing", found_again=known.lost)
    if policy == "always" or (policy == "same_source" and same_source):
        return Handling(FileOutcome.TAKEN, "replace")
    return Handling(FileOutcome.KEPT, "nothing", Reason.OTHER_BYTES)


def _stop(reason: Reason) -> Handling:
    return Handling(FileOutcome.QUARANTINED, "nothing", reason, Gate.METADATA)


def admit(db: Session, found: Sequence[Found], rules: Rules, origin: Origin) -> list[Registered]:
    """Decide on these files: new images become `received`, the journal gets its lines, and a message wakes the encoder.

    Returns the decision on each file, in order; the caller writes the rows of the files that stay.
    """
    share(db, Lock.INTAKE)  # no erasure between the check and the insert
    done: list[Registered] = []
    candidates: list[Candidate] = []
    for file in found:
        try:
            candidates.append((file, incoming_of(file, rules.secret, origin)))
        except Rejected as refusal:
            gate = refusal.gate.value if refusal.gate else None
            record = Record(
                seen=file.seen,
                outcome=FileOutcome(refusal.outcome),
                gate=gate,
                reason=refusal.reason,
                labels_digest=file.stamp,
            )
            done.append(Registered(file, record))
    candidates, erased = _without_erased(db, candidates, rules.secret)
    candidates, turned = _admitted(candidates, rules.admission, origin)
    done += [*erased, *turned, *_settle_candidates(db, candidates, rules, origin)]
    order = {id(file): place for place, file in enumerate(found)}
    done.sort(key=lambda one: order[id(one.file)])
    told = _told(db, done)
    arrivals.add(db, [one.arrival for one in done if one.file.seen.path not in told], origin)
    enqueue(db, Job.ENCODE)
    return done


def _told(db: Session, done: Sequence[Registered]) -> set[bytes]:
    """Return the paths that fail for the same transient reason as last time: the journal gets no second line."""
    away = [one.record for one in done if one.record.reason in PASSING]
    known = files.reasons(db, [record.seen.path for record in away]) if away else {}
    return {record.seen.path for record in away if known.get(record.seen.path) == record.reason}


def _without_erased(
    db: Session, candidates: Sequence[Candidate], secret: bytes
) -> tuple[list[Candidate], list[Registered]]:
    """Refuse what a tombstone names, whatever rows exist of it; the journal does not name it."""
    names = [(i.header.sop_instance_uid, i.header.study_instance_uid, i.patient_key) for _, i in candidates]
    erased = erase.refused(db, secret, names)
    kept = [one for one, gone in zip(candidates, erased, strict=True) if not gone]
    refused = [
        Registered(
            file, Record(seen=file.seen, outcome=FileOutcome.KEPT, reason=Reason.ERASED.value, labels_digest=file.stamp)
        )
        for (file, _), gone in zip(candidates, erased, strict=True)
        if gone
    ]
    return kept, refused


def _admitted(
    candidates: Sequence[Candidate], admission: Admission, origin: Origin
) -> tuple[list[Candidate], list[Registered]]:
    """Apply the admission rules; a candidate that a rule holds is kept with the rule's name."""
    kept: list[Candidate] = []
    turned: list[Registered] = []
    for file, incoming in candidates:
        action, name = admission.decide(
            incoming.header, source=origin.source, sender=origin.sender, called=origin.called
        )
        if action is Action.ACCEPT:
            kept.append((file, incoming))
        elif action is Action.QUARANTINE:
            kept.append((file, replace(incoming, held_by=name)))
        else:
            outcome = {Action.DISCARD: FileOutcome.DISCARDED, Action.REFUSE: FileOutcome.REFUSED}[action]
            reason = Reason.SITE_RULE.value
            record = Record(seen=file.seen, outcome=outcome, reason=reason, labels_digest=file.stamp)
            turned.append(Registered(file, record, incoming.header, name))
    return kept, turned


def _settle_candidates(db: Session, candidates: Sequence[Candidate], rules: Rules, origin: Origin) -> list[Registered]:
    operation_id = origin.operation_id
    studies.lock(db, [incoming for _, incoming in candidates])
    standing = studies.known(db, [i.header.sop_instance_uid for _, i in candidates])
    seen_before = [(f, i) for f, i in candidates if pictures.seen_before(i, standing)]
    candidates = [(f, i) for f, i in candidates if not pictures.seen_before(i, standing)]
    records = []
    for file, incoming in seen_before:
        handling = Handling(FileOutcome.TAKEN, "nothing", found_again=standing[incoming.header.sop_instance_uid].lost)
        _act(db, handling, incoming, standing, operation_id)
        records.append(_record(file, incoming, handling, standing))
    if not candidates:
        return records
    candidates, owners, created = pictures.placed(db, candidates, standing)
    fresh: dict[str, Incoming] = {}
    for _, incoming in candidates:  # the first file of a UID inserts, the others are compared with it below
        uid = incoming.header.sop_instance_uid
        patient = owners[incoming.header.study_instance_uid].patient_key
        if uid not in standing and decide(incoming, None, patient, rules.same_uid).act == "insert":
            fresh.setdefault(uid, incoming)
    inserted = studies.insert(db, list(fresh.values()), owners, operation_id)
    standing |= studies.known(db, list(fresh))
    stopped: list[int] = []  # images whose earlier bytes were replaced
    for file, incoming in candidates:
        uid = incoming.header.sop_instance_uid
        new = fresh.get(uid) is incoming and uid in inserted
        patient = owners[incoming.header.study_instance_uid].patient_key
        handling = decide(incoming, None if new else standing.get(uid), patient, rules.same_uid)
        if uid in standing:
            _act(db, handling, incoming, standing, operation_id)
            if incoming.held_by and handling.act in {"insert", "replace"}:
                studies.hold(db, standing[uid].id, Gate.METADATA, Reason.SITE_RULE)
                if handling.act == "replace":
                    stopped.append(standing[uid].id)
        records.append(_record(file, incoming, handling, standing))
    if stopped:
        quarantine.forget(db, stopped)
    studies.drop_empty(db, created)
    return records


def _record(file: Found, incoming: Incoming, handling: Handling, standing: Mapping[str, Known]) -> Registered:
    known = standing.get(incoming.header.sop_instance_uid)
    stopped = handling.outcome is FileOutcome.QUARANTINED  # it has no image, or one of another patient or study
    record = Record(
        seen=file.seen,
        outcome=handling.outcome,
        digest=incoming.digest,
        image_id=known.id if known else None,
        gate=str(handling.gate) if handling.gate else None,
        reason=str(handling.reason) if handling.reason else None,
        labels_digest=file.stamp,
        patient_key=incoming.patient_key if stopped else None,
        study_uid=incoming.header.study_instance_uid if stopped else None,
        sop_uid=incoming.header.sop_instance_uid if stopped else None,
    )
    return Registered(file, record, incoming.header, incoming.held_by)


def _act(
    db: Session, handling: Handling, incoming: Incoming, standing: dict[str, Known], operation_id: uuid.UUID | None
) -> None:
    known = standing[incoming.header.sop_instance_uid]
    image_id = known.id
    if handling.found_again:
        images.found_again(db, image_id, incoming.path, operation_id)
        catchup.found_again(db, [image_id])
        enqueue(db, Job.CATCH_UP)
        standing[known.sop_uid] = replace(known, path=incoming.path, lost=False)  # for the next copy of this batch
    if handling.act == "replace":
        studies.replace(db, image_id, incoming, operation_id)
    elif handling.act == "redescribe":
        studies.redescribe(db, image_id, incoming, operation_id)
        enqueue(db, Job.PROJECT)
    by_table = handling.outcome is FileOutcome.TAKEN and handling.act != "insert" and incoming.placeholder_patient_keys
    if (handling.act == "replace" or by_table) and incoming.header.study_date is not None:
        studies.redate(db, known.study_uid, incoming.header.study_date, of_pictures=bool(by_table))
