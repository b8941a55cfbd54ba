"""Erase: a study or patient is gone from the commit on, and the operation ends when no index holds a point of it.

The rows that searches join are gone at once; deletes become due in every generation, including those that are being
built; a tombstone refuses the files if they come again.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound, Unavailable
from shared.imaging.pseudonym import patient_key
from shared.index.base import Index
from shared.log import get
from shared.pipeline.lease import LEASE_S
from shared.store import erasure, files, ledger, operations, tombstones
from shared.store.erasure import Copy, Known, Standing
from shared.store.locks import Lock, alone
from shared.store.operations import Held
from shared.store.session import Begin, enqueue
from shared.store.tables import Operation
from shared.store.tombstones import Kind, digest
from shared.types import Job, OperationKind, OperationState

log = get(__name__)

REST_S = 1.0
CHUNK = 5000


def erase_study(db: Session, secret: bytes, study_uid: str) -> Operation:
    """Erase the study and return the operation; a repeated call returns the same one.

    Raises: `NotFound` if there never was such a study.
    """
    alone(db, Lock.INTAKE)
    return _erase(db, secret, erasure.standing(db, study_uid=study_uid), digest(secret, "study", study_uid), "study")


def erase_patient(db: Session, secret: bytes, issuer: str, patient_id: str) -> Operation:
    """Erase every study of the patient; a call repeated before anything new comes returns the same operation.

    Raises: `NotFound` if there never was anything of the patient, `Invalid` without a patient ID.
    """
    key = patient_key(secret, issuer, patient_id)
    alone(db, Lock.INTAKE)
    return _erase(db, secret, erasure.standing(db, patient_key=key), digest(secret, "patient", key), "patient")


def _erase(db: Session, secret: bytes, standing: Standing, name: bytes, kind: Kind) -> Operation:
    studies, images = standing.studies, standing.images
    if not studies and not standing.stopped:
        stone = tombstones.find(db, name)
        if stone is None:
            raise NotFound(f"no such {kind}")
        return _again(db, operations.get(db, stone.operation_id))
    operation = operations.create(db, OperationKind.ERASE, {"of": kind})
    names: dict[bytes, Kind] = {digest(secret, "image", image.uid): "image" for image in images}
    names |= {digest(secret, "study", study.uid): "study" for study in studies}
    names[name] = kind
    tombstones.add(db, names, operation.id)
    erasure.empty(db, standing, operation.id)
    ledger.withdraw(db, [image.id for image in images])
    operation.counts = {"images": len(images), "studies": len(studies)}
    if standing.stopped:
        operation.counts |= {"stopped": len(standing.stopped)}  # files that never became an image
    operation.total = len(erasure.copies(db, operation.id))
    enqueue(db, Job.PROJECT)
    enqueue(db, Job.TIDY)  # files that were sent to us are ours to remove
    db.flush()
    return operation


def _again(db: Session, operation: Operation) -> Operation:
    """Return the operation; an erasure that was given up before it was certified is made due again."""
    if operation.state == OperationState.FAILED:
        counts = operation.counts
        operations.retry(db, operation.id).counts = counts
        enqueue(db, Job.PROJECT)
        db.flush()
    return operation


def lift_study(db: Session, secret: bytes, study_uid: str) -> int:
    """Lift the erasure, so that the study may be taken in again; return how many tombstones were lifted.

    Raises: `NotFound` if it was not erased, `Conflict` if it was erased with its patient, or while an erasure has not
    ended.
    """
    return _lift(db, digest(secret, "study", study_uid), "study")


def lift_patient(db: Session, secret: bytes, issuer: str, patient_id: str) -> int:
    """Lift the patient's erasure; return how many tombstones. Raises: `NotFound`; `Conflict` as `lift_study`."""
    return _lift(db, digest(secret, "patient", patient_key(secret, issuer, patient_id)), "patient")


def _lift(db: Session, name: bytes, kind: Kind) -> int:
    alone(db, Lock.INTAKE)
    stone = tombstones.find(db, name)
    if stone is None:
        raise NotFound(f"this {kind} has not been erased")
    erasure_of_it = operations.get(db, stone.operation_id)
    if erasure_of_it.params["of"] != kind:
        raise Conflict("this study was erased with its patient: lift the erasure of the patient")
    # a file taken in again would replace a delete that is still due, also one that a restore has renewed
    if erasure_of_it.state != OperationState.SUCCEEDED or operations.under_way(db, OperationKind.ERASE):
        raise Conflict("an erasure is still running and an index may still hold its data; lift it when it has ended")
    files.reread_erased(db)
    return tombstones.lift(db, stone.operation_id)


def certify(begin: Begin, open_index: Callable[[str], Index]) -> None:
    """End the due erasures of which no generation holds a point; points that are still found are deleted again.

    Raises: `Unavailable` if an index does not answer.
    """
    while True:
        with begin() as db:
            held = operations.claim(db, OperationKind.ERASE, LEASE_S)
            copies = erasure.copies(db, held.id) if held is not None else []
        if held is None:
            return
        try:
            waiting = any(copy.open and not copy.applied for copy in copies)
            standing = [] if waiting else _standing(open_index, copies)
        except Unavailable as error:
            with begin() as db:
                operations.rest(db, held, REST_S, str(error))
            raise
        with begin() as db:
            if operations.mine(db, held):
                _conclude(db, held, copies, standing, waiting=waiting)


def _conclude(db: Session, held: Held, copies: Sequence[Copy], standing: Sequence[Copy], *, waiting: bool) -> None:
    open_ = [copy for copy in standing if copy.open]
    for number, own in groupby(open_, key=lambda copy: copy.generation_id):
        log.warning("erased_point_stands", generation_id=number)
        erasure.delete_again(db, number, [copy.point_id for copy in own])
    done = sum(copy.applied or not copy.open for copy in copies) - len(standing)
    operation = operations.get(db, held.id)
    operation.done, operation.total = max(done, 0), len(copies)
    if waiting or standing:
        enqueue(db, Job.PROJECT)
        operations.rest(db, held, REST_S)
        return
    generations = len({copy.generation_id for copy in copies})
    operation.counts = dict(operation.counts) | {"points": len(copies), "generations": generations}
    db.flush()
    operations.end(db, held, OperationState.SUCCEEDED)


def _standing(open_index: Callable[[str], Index], copies: Sequence[Copy]) -> list[Copy]:
    """Return the copies that an index still holds; retired generations get no deletes, so theirs are deleted here."""
    found: list[Copy] = []
    for collection, own in groupby(copies, key=lambda copy: copy.collection):
        mine = {copy.point_id: copy for copy in own}
        try:
            index = open_index(collection)
            here = [mine[point.id] for point in index.get(list(mine))]
        except NotFound:
            continue  # a collection that is gone holds nothing
        if retired := [copy.point_id for copy in here if not copy.open]:
            index.delete(retired)
        found += here
    return found


def replay(db: Session, secret: bytes) -> int:
    """Erase again what a restore brought back despite its tombstone; returns how many images."""
    alone(db, Lock.INTAKE)
    after, erased = 0, 0
    while rows := erasure.known(db, after, CHUNK):
        after = rows[-1].id
        for uid in sorted({row.study_uid for row in risen(db, secret, rows)}):
            standing = erasure.standing(db, study_uid=uid)
            _erase(db, secret, standing, digest(secret, "study", uid), "study")
            erased += len(standing.images)
    if stopped := risen(db, secret, erasure.stopped(db)):
        erasure.forget(db, [row.id for row in stopped])
        enqueue(db, Job.TIDY)
    return erased


def risen(db: Session, secret: bytes, rows: Sequence[Known]) -> list[Known]:
    """Return those of these images or stopped files that a tombstone names."""
    gone = refused(db, secret, [(row.sop_uid, row.study_uid, row.patient_key) for row in rows])
    return [row for row, named in zip(rows, gone, strict=True) if named]


def refused(db: Session, secret: bytes, files: Sequence[tuple[str, str, bytes]]) -> list[bool]:
    """Return for each (SOP Instance UID, Study Instance UID, patient key) whether it was erased and must stay out."""
    names = [
        (digest(secret, "image", image), digest(secret, "study", study), digest(secret, "patient", patient))
        for image, study, patient in files
    ]
    present = tombstones.present(db, [name for own in names for name in own])
    return [bool(present.intersection(own)) for own in names]
