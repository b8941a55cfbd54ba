"""Erasing a study or a patient for good, and lifting the tombstones so that it may be taken in again.

No response, log line or row repeats the UID or patient ID of the request.
"""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from services.api.answers import LOCATED, LiftedOut, OperationDetail
from services.api.dependencies import CanErase, Db, Rt
from services.api.routes.operations import begun
from services.api.schemas import PatientIn, Uid
from shared.pipeline import erase
from shared.store import reviews
from shared.store.keys import Bearer
from shared.store.tables import Operation

router = APIRouter(tags=["erase"])


@router.delete("/v1/studies/{study_instance_uid}", status_code=202, responses={202: LOCATED})
def erase_study(rt: Rt, db: Db, bearer: CanErase, study_instance_uid: Uid, response: Response) -> OperationDetail:
    """Erase the study: searches stop finding it at once, and its files are refused from now on.

    The operation ends when no index holds a point of the study.
    """
    return _told(db, bearer, erase.erase_study(db, rt.rules.secret, study_instance_uid), response)


@router.post("/v1/patients:erase", status_code=202, responses={202: LOCATED})
def erase_patient(rt: Rt, db: Db, bearer: CanErase, asked: PatientIn, response: Response) -> OperationDetail:
    """Erase every study of the patient, in the same way as one study."""
    return _told(db, bearer, erase.erase_patient(db, rt.rules.secret, asked.issuer, asked.patient_id), response)


@router.post("/v1/studies/{study_instance_uid}:lift")
def lift_study(rt: Rt, db: Db, bearer: CanErase, study_instance_uid: Uid) -> LiftedOut:
    """Lift the study's tombstones; the next scan may take it in again."""
    return _lifted(db, bearer, erase.lift_study(db, rt.rules.secret, study_instance_uid))


@router.post("/v1/patients:lift")
def lift_patient(rt: Rt, db: Db, bearer: CanErase, asked: PatientIn) -> LiftedOut:
    """Lift the patient's tombstones; the next scan may take in what was erased with the patient."""
    return _lifted(db, bearer, erase.lift_patient(db, rt.rules.secret, asked.issuer, asked.patient_id))


def _told(db: Session, bearer: Bearer, operation: Operation, response: Response) -> OperationDetail:
    reviews.audit(db, bearer.actor, "erase", {"operation": str(operation.id), **operation.params})
    return begun(db, operation, response)


def _lifted(db: Session, bearer: Bearer, count: int) -> LiftedOut:
    reviews.audit(db, bearer.actor, "lift", {"tombstones": count})
    return {"tombstones": count}
