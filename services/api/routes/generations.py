"""Generations as resources: built beside the live one, checked, published, rolled back, retired."""

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from services.api.answers import (
    LOCATED,
    CanaryOut,
    GenerationDetail,
    GenerationOut,
    GenerationsOut,
    GenerationState,
    IndexOut,
    RecallOut,
)
from services.api.dependencies import CanReindex, CanSeeBuilds, Db, IdempotencyKey, Rt, key_digest
from services.api.errors import explain
from services.api.schemas import GenerationIn, Id, RetireIn, SwitchIn, ThrottleIn
from shared.errors import NotFound, Unavailable
from shared.pipeline import lifecycle
from shared.runtime import Runtime
from shared.store import canaries, coverage, generations, ledger, operations, reviews
from shared.store.keys import Bearer
from shared.store.tables import Generation, Model, Operation
from shared.types import UNDER_WAY, OperationState

router = APIRouter(tags=["generations"])

SHOWN = 1000  #: missing images that one response names
SWITCHES = frozenset({"publish", "rollback"})  #: actions that publish; missing images are accepted by these alone
EXPLAINED: Mapping[str, str] = {
    "to-encode": "The model has not encoded it yet.",
    "to-index": "It is on its way to the index.",
    "missing": "It is not in the ledger yet; resume the build to check all images again.",
    "refused": "The index refused its vector.",
}


@router.get("/v1/generations")
def list_generations(db: Db, _: CanSeeBuilds) -> GenerationsOut:
    """All generations, each with the share of its ledger that its index holds."""
    named = {row.id: row for row in generations.models(db)}
    return {"generations": [_generation(db, row, named) for row in generations.every(db)]}


@router.post("/v1/generations", status_code=202, responses={202: LOCATED})
def begin_generation(
    rt: Rt,
    bearer: CanReindex,
    asked: GenerationIn,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> GenerationDetail:
    """Start to build a generation beside the live one; searches do not use it until it is published."""
    with rt.transaction() as db:
        row = lifecycle.begin_generation(
            db,
            rt.indexes,
            generations.model(db, asked.model),
            key_digest=key_digest(bearer, idempotency_key),
            throttle=asked.throttle,
            hours=asked.between,
            gate=asked.gate,
            **asked.choices(),
        )
    response.headers["Location"] = f"/v1/generations/{row.id}"
    return _told(rt, row.id)


@router.get("/v1/generations/{generation_id}")
def show_generation(rt: Rt, db: Db, _: CanSeeBuilds, generation_id: Id) -> GenerationDetail:
    """One generation; `index` holds the engine's own counts, or null while the engine is unavailable."""
    return _detail(rt, db, generations.get(db, generation_id))


@router.post("/v1/generations/{generation_id}:pause")
def pause_generation(rt: Rt, _: CanReindex, generation_id: Id) -> GenerationDetail:
    """Pause the build: stored images are neither encoded nor added for it, but new images still are."""
    with rt.transaction() as db:
        lifecycle.pause(db, generation_id)
    return _told(rt, generation_id)


@router.post("/v1/generations/{generation_id}:resume", status_code=202)
def resume_generation(rt: Rt, _: CanReindex, generation_id: Id) -> GenerationDetail:
    """Resume the build; of a finished one, retry its exceptions and measure its recall again."""
    with rt.transaction() as db:
        lifecycle.resume(db, generation_id)
    return _told(rt, generation_id)


@router.post("/v1/generations/{generation_id}:throttle")
def throttle_generation(rt: Rt, bearer: CanReindex, generation_id: Id, asked: ThrottleIn) -> GenerationDetail:
    """Set the build's rate limit and hours, in force from its next step; null removes a limit."""
    names = {"per_s": "throttle", "between": "hours"}
    wanted = {names[name]: getattr(asked, name) for name in asked.model_fields_set}
    return _acted(rt, bearer, "throttle", lambda db: lifecycle.throttle(db, generation_id, wanted), **wanted)


@router.post("/v1/generations/{generation_id}:cancel")
def cancel_generation(rt: Rt, bearer: CanReindex, generation_id: Id) -> GenerationDetail:
    """Give up the build and purge its index; its model's encodings stay. 409 once it is built: retire it instead."""
    return _acted(rt, bearer, "cancel", lambda db: lifecycle.cancel(db, generation_id))


@router.post("/v1/generations/{generation_id}:publish")
def publish_generation(
    rt: Rt, bearer: CanReindex, generation_id: Id, asked: SwitchIn | None = None
) -> GenerationDetail:
    """Let searches use the generation. 409, with the numbers, unless it is complete and its recall reaches its gate."""
    accept = (asked or SwitchIn()).accept
    return _acted(rt, bearer, "publish", lambda db: lifecycle.publish(db, generation_id, accept))


@router.post("/v1/generations/{generation_id}:rollback")
def rollback_generation(
    rt: Rt, bearer: CanReindex, generation_id: Id, asked: SwitchIn | None = None
) -> GenerationDetail:
    """Let searches use the generation that was published before this one; returns that earlier generation."""
    accept = (asked or SwitchIn()).accept
    return _acted(rt, bearer, "rollback", lambda db: lifecycle.rollback(db, generation_id, accept))


@router.post("/v1/generations/{generation_id}:retire", status_code=202)
def retire_generation(rt: Rt, bearer: CanReindex, generation_id: Id, asked: RetireIn | None = None) -> GenerationDetail:
    """Stop writing to the generation; a minute later its collection and ledger are removed."""
    force = (asked or RetireIn()).force
    return _acted(rt, bearer, "retire", lambda db: lifecycle.retire(db, generation_id, force=force))


def _acted(
    rt: Runtime, bearer: Bearer, action: str, act: Callable[[Session], Generation], **by: object
) -> GenerationDetail:
    """Perform an action on a generation, with an audit entry, and return the generation."""
    with rt.transaction() as db:
        row = act(db)
        accepted = {"accepted": row.accepted} if action in SWITCHES and row.accepted else {}
        reviews.audit(db, bearer.actor, f"generation-{action}", {"generation": row.id} | accepted | by)
    return _told(rt, row.id)


def _told(rt: Runtime, generation_id: int) -> GenerationDetail:
    """The generation after the commit: counting takes long, and the action's transaction holds locks of the workers."""
    with rt.transaction() as db:
        return _detail(rt, db, generations.get(db, generation_id))


def _generation(db: Session, row: Generation, named: Mapping[int, Model]) -> GenerationOut:
    live = generations.live(db)
    covered = ledger.point_counts(db, row.id)
    operation = None if row.operation_id is None else operations.get(db, row.operation_id)
    return {
        "id": row.id,
        "model": named[row.model_id].name,
        "fingerprint": named[row.model_id].fingerprint,
        "collection": row.collection,
        "state": _state(row, operation),
        "live": live is not None and live.generation_id == row.id,
        "rollback_target": live is not None and live.previous_id == row.id,
        "spec": row.spec,
        "coverage": {
            "applied": covered.applied,
            "pending": covered.pending,
            "failed": covered.failed,
            "ratio": covered.ratio,
        },
        "throttle": row.throttle,
        "between": row.hours,
        "gate": round(row.gate, 6),
        "recall": _recall(row),
        "canary": _canary(row),
        "operation": row.operation_id,
        "progress": _progress(operation, covered),
        "created_at": row.created_at,
    }


def _recall(row: Generation) -> RecallOut | None:
    found = row.measured
    if found is None:
        return None
    return {"recall": found["recall"], "k": found["k"], "sample": found["sample"], "points": found["points"]}


def _canary(row: Generation) -> CanaryOut | None:
    found = canaries.told(row.canary)
    if found is None:
        return None
    return {"recall": found.recall, "k": found.k, "queries": found.queries, "since": found.since, "at": found.at}


def _state(row: Generation, operation: Operation | None) -> GenerationState:
    if row.state == "retired":
        return "retiring" if row.purged_at is None else "retired"
    if operation is None or operation.state == OperationState.SUCCEEDED:
        return "ready"
    if operation.state in UNDER_WAY:
        return "building"
    return "paused" if operation.state == OperationState.PAUSED else "failed"


def _progress(operation: Operation | None, covered: ledger.PointCounts) -> int:
    """Percent covered, by the build's last count of the images and by the ledger; 100 only where nothing is missing."""
    built = operation is None or operation.state == OperationState.SUCCEEDED
    counted = operation.done / operation.total if operation and operation.total else float(built)
    percent = int(100 * min(counted, covered.ratio))
    return percent if built else min(99, percent)


def _detail(rt: Runtime, db: Session, row: Generation) -> GenerationDetail:
    named = {model.id: model for model in generations.models(db)}
    covered = coverage.count(db, row.id, row.model_id)
    lacking = coverage.gaps(db, row.id, row.model_id, SHOWN) if covered.images > covered.covered else []
    operation = None if row.operation_id is None else operations.get(db, row.operation_id)
    return {
        **_generation(db, row, named),
        "index": None if row.state == "retired" else _index(rt, row),
        "images": {
            "total": covered.images,
            "covered": covered.covered,
            "coming": covered.coming,
            "exceptions": covered.exceptions,
            "by_reason": covered.by_reason,
        },
        "exceptions": [
            {
                "image": gap.image_id,
                "sop_instance_uid": gap.sop_uid,
                "reason": gap.reason,
                "explanation": EXPLAINED.get(gap.reason) or explain(gap.reason),
            }
            for gap in lacking
            if gap.reason not in coverage.PASSING
        ],
        "error": operation.error if operation else None,
    }


def _index(rt: Runtime, row: Generation) -> IndexOut | None:
    try:
        info = rt.index(row.collection).info()
    except (Unavailable, NotFound):
        return None
    return {"points": info.points, "indexed": info.indexed}
