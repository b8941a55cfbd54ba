"""The review queue: images and files that a gate stopped, one decision for each, and the thresholds of gate 3."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from services.api.answers import (
    LOCATED,
    CalibratedOut,
    CalibrationOut,
    CalibrationsOut,
    DistancesOut,
    FlipOut,
    ItemOut,
    QuarantineOut,
    ReplayOut,
    RetriedOut,
    ReviewOut,
    ReviewsOut,
)
from services.api.dependencies import CanRead, CanReview, Db
from services.api.errors import explain
from services.api.schemas import (
    MOST_ID,
    CalibrateIn,
    DecisionIn,
    Item,
    Modality,
    ModelName,
    QuarantineIn,
    ReplayIn,
    RetryIn,
)
from shared.errors import Conflict, NotFound
from shared.pipeline import quarantine, thresholds
from shared.pipeline.replay import Flip, begin_replay, plan
from shared.pipeline.thresholds import Choice, Proposal
from shared.store import calibrations, generations, reviews
from shared.store.reviews import Wanted
from shared.store.tables import Calibration, Model, Review
from shared.types import Decision

router = APIRouter(tags=["quarantine"])

FIRST = ("image", MOST_ID)


@router.get("/v1/quarantine")
def list_quarantine(db: Db, _: CanReview, asked: Annotated[QuarantineIn, Query()]) -> QuarantineOut:
    """Items that wait for a decision, the latest first: images, then files that were not taken in."""
    wanted = Wanted(
        gate=asked.gate,
        reason=asked.reason,
        modality=asked.modality,
        model_id=generations.model(db, asked.model).id if asked.model else None,
        since=asked.since,
    )
    rows = reviews.page(db, wanted, _parts(asked.cursor) if asked.cursor else FIRST, asked.limit + 1)
    shown = [_item(row) for row in rows[: asked.limit]]
    return {"items": shown, "next": shown[-1]["item"] if len(rows) > asked.limit else None}


def _item(row: reviews.Item) -> ItemOut:
    return {
        "item": f"{row.kind}-{row.id}",
        "gate": row.gate,
        "reason": row.reason,
        "explanation": explain(row.reason),
        "since": row.since,
        "sop_instance_uid": row.sop_uid,
        "study_instance_uid": row.study_uid,
        "modality": row.modality,
        "score": row.score,
        "threshold": row.threshold,
        "distance": row.distance,
        "distance_threshold": row.distance_threshold,
        "model": row.model,
        "operation": row.operation_id,
        "releasable": row.kind == "image" and row.gate in quarantine.RELEASABLE,
        "thumbnail": f"/v1/instances/{row.sop_uid}/thumbnail" if row.pictured else None,
    }


def _parts(item: str) -> tuple[str, int]:
    kind, _, number = item.partition("-")
    return kind, int(number)


def _image(item: str) -> int:
    """The id of an item's image. Raises: `Conflict` for a file, which can only be retried."""
    kind, number = _parts(item)
    if kind == "file":
        raise Conflict("this file was not taken in and has no image to decide on: it can only be retried")
    return number


@router.get("/v1/quarantine/{item}")
def show_reviews(db: Db, _: CanReview, item: Item) -> ReviewsOut:
    """The decisions on an image and who made them, the latest first, also after it left the quarantine."""
    number = _image(item)
    if not reviews.stands(db, number):
        raise NotFound("no such image")
    return {"reviews": [_review(row) for row in reviews.of(db, number)]}


@router.post("/v1/quarantine/{item}:release")
def release(db: Db, bearer: CanReview, item: Item, asked: DecisionIn | None = None) -> ReviewOut:
    """The image becomes searchable. 409 where it was decided on or stopped again meanwhile, or cannot be read."""
    said = asked or DecisionIn()
    return _said(db, quarantine.release(db, _image(item), bearer.actor, said.note, said.since))


@router.post("/v1/quarantine/{item}:reject")
def reject(db: Db, bearer: CanReview, item: Item, asked: DecisionIn | None = None) -> ReviewOut:
    """The image never becomes searchable. 409 where it was decided on or stopped again meanwhile."""
    said = asked or DecisionIn()
    return _said(db, quarantine.reject(db, _image(item), bearer.actor, said.note, said.since))


@router.post("/v1/quarantine/{item}:retry", status_code=202)
def retry(db: Db, bearer: CanReview, item: Item) -> RetriedOut:
    """Read and judge the item again by today's codecs, limits and thresholds. 409 where an admission rule holds it."""
    kind, number = _parts(item)
    if kind == "file":
        quarantine.retry_file(db, number, bearer.actor)
        return {"images": 0, "files": 1, "held": 0}
    quarantine.retry(db, number, bearer.actor)
    return {"images": 1, "files": 0, "held": 0}


@router.post("/v1/quarantine:retry", status_code=202)
def retry_many(db: Db, bearer: CanReview, asked: RetryIn) -> RetriedOut:
    """Retry the items of a gate or a reason, at most 10,000 images at once, except those that admission rules hold."""
    wanted = Wanted(gate=asked.gate, reason=asked.reason, modality=asked.modality)
    done = quarantine.retry_many(db, wanted, bearer.actor)
    return {"images": done.images, "files": done.files, "held": done.held}


@router.post(
    "/v1/quarantine:replay",
    responses={202: LOCATED | {"description": "With `apply`: begun", "model": ReplayOut}},
)
def replay(db: Db, bearer: CanReview, asked: ReplayIn, response: Response) -> ReplayOut:
    """Show which stored images other thresholds would flip; with `apply`, put these in force and flip the images."""
    model = generations.model(db, asked.model)
    choice = Choice(
        threshold=asked.threshold,
        distance_threshold=asked.distance_threshold,
        rule=asked.rule,
        calibration_id=asked.calibration,
    )
    found = thresholds.propose(db, model, asked.modality, choice)
    told = _plan(db, model, asked, found)
    if asked.apply:
        operation = begin_replay(db, model, asked.modality, found, bearer.actor)
        response.status_code = 202
        response.headers["Location"] = f"/v1/operations/{operation.id}"
        told |= {"applied": True, "operation": operation.id}
    return told


def _plan(db: Session, model: Model, asked: ReplayIn, found: Proposal) -> ReplayOut:
    standard = found.standard
    would = plan(db, model, asked.modality, standard, asked.shown)
    return {
        "model": model.name,
        "modality": asked.modality,
        "threshold": standard.threshold,
        "distance_threshold": standard.distance,
        "rule": found.numbers.rule,
        "counts": dict(would.counts),
        "complete": would.complete,
        "stop": [_flip(one) for one in would.stop],
        "admit": [_flip(one) for one in would.admit],
        "applied": False,
        "operation": None,
    }


def _flip(one: Flip) -> FlipOut:
    return {
        "image": one.image_id,
        "sop_instance_uid": one.sop_uid,
        "score": one.score,
        "distance": one.distance,
        "reason": one.reason,
    }


@router.get("/v1/models/{name}/calibrations")
def list_calibrations(db: Db, _: CanRead, name: ModelName, modality: Modality | None = None) -> CalibrationsOut:
    """All calibrations of a model, the newest first, and how many images are searchable without a threshold."""
    model = generations.model(db, name)
    return {
        "calibrations": _calibrations(db, model, calibrations.history(db, model.id, modality)),
        "without": calibrations.unjudged(db),
        "wanting": calibrations.wanting(db, model.id, thresholds.MANY),
    }


@router.post("/v1/models/{name}/calibrations", status_code=201)
def calibrate(db: Db, bearer: CanReview, name: ModelName, asked: CalibrateIn | None = None) -> CalibratedOut:
    """Make thresholds from stored images; they judge new images only. A replay judges the stored ones."""
    wanted = asked or CalibrateIn()
    model = generations.model(db, name)
    made = thresholds.calibrate(
        db,
        model,
        bearer.actor,
        wanted.rule,
        modality=wanted.modality,
        operation_id=wanted.operation,
        folder=FilePath(wanted.folder) if wanted.folder else None,
    )
    return {
        "calibrations": _calibrations(db, model, made.calibrations),
        "skipped": made.skipped,
        "left_out": made.left_out,
    }


def _calibrations(db: Session, model: Model, rows: Sequence[Calibration]) -> list[CalibrationOut]:
    newest = {one.calibration_id for one in calibrations.in_force(db, model.id).values()}
    return [_calibration(row, model, in_force=row.id in newest) for row in rows]


def _calibration(row: Calibration, model: Model, *, in_force: bool) -> CalibrationOut:
    return {
        "id": row.id,
        "model": model.name,
        "modality": row.modality,
        "source": row.source,
        "rule": row.rule,
        "threshold": row.threshold,
        "mean": row.mean,
        "std": row.std,
        "quantiles": row.quantiles,
        "n": row.n,
        "data_sha256": row.data_sha256,
        "distances": _distances(row),
        "made_by": row.made_by,
        "created_at": row.created_at,
        "in_force": in_force,
    }


def _distances(row: Calibration) -> DistancesOut | None:
    found = row.distances
    if found is None:
        return None
    return {
        "threshold": found["threshold"],
        "mean": found["mean"],
        "std": found["std"],
        "quantiles": found["quantiles"],
        "n": found["n"],
    }


def _said(db: Session, row: Review) -> ReviewOut:
    db.flush()
    db.refresh(row)
    return _review(row)


def _review(row: Review) -> ReviewOut:
    return {
        "item": f"image-{row.image_id}",
        "decision": Decision(row.decision),
        "gate": row.gate,
        "reason": row.reason,
        "score": row.score,
        "threshold": row.threshold,
        "distance": row.distance,
        "distance_threshold": row.distance_threshold,
        "reviewer": row.reviewer,
        "note": row.note,
        "at": row.created_at,
    }
