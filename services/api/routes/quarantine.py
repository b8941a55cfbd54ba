"""The review queue: images and files that a gate stopped, one decision for each, and the thresholds of gate 3."""

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from services.api.answers import (
    CalibratedOut,
    CalibrationsOut,
    QuarantineOut,
    ReplayOut,
    RetriedOut,
    ReviewOut,
    ReviewsOut,
)
from services.api.dependencies import CanRead, CanReview, Db
from services.api.errors import explain
from services.api.routes.models import Name
from services.api.schemas import MOST_ID, CalibrateIn, DecisionIn, Item, Modality, QuarantineIn, ReplayIn, RetryIn
from shared.errors import Conflict, NotFound
from shared.pipeline import quarantine, thresholds
from shared.pipeline.quarantine import Retried
from shared.pipeline.replay import Flip, begin_replay, plan
from shared.pipeline.thresholds import Choice, Proposal
from shared.store import calibrations, generations, reviews
from shared.store.reviews import Wanted
from shared.store.tables import Calibration, Model, Review

router = APIRouter(tags=["quarantine"])

FIRST = ("image", MOST_ID)
One = Annotated[Item, Path()]


@router.get("/v1/quarantine", response_model=QuarantineOut)
def list_quarantine(db: Db, _: CanReview, asked: Annotated[QuarantineIn, Query()]) -> dict[str, Any]:
    """Items that wait for a decision, the latest first: images, then files from which no image could be read."""
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


_VOTES = ("score", "threshold", "distance", "distance_threshold")


def _item(row: reviews.Item) -> dict[str, Any]:
    return {
        "item": f"{row.kind}-{row.id}",
        **{name: getattr(row, name) for name in ("gate", "reason", "since", "modality", "model", *_VOTES)},
        "explanation": explain(row.reason),
        "sop_instance_uid": row.sop_uid,
        "study_instance_uid": row.study_uid,
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


@router.get("/v1/quarantine/{item}", response_model=ReviewsOut)
def show_reviews(db: Db, _: CanReview, item: One) -> dict[str, Any]:
    """The decisions on an image and who made them, the latest first, also after it left the quarantine."""
    number = _image(item)
    if not reviews.stands(db, number):
        raise NotFound("no such image")
    return {"reviews": [_review(row) for row in reviews.of(db, number)]}


@router.post("/v1/quarantine/{item}:release", response_model=ReviewOut)
def release(db: Db, bearer: CanReview, item: One, asked: DecisionIn | None = None) -> dict[str, Any]:
    """The image becomes searchable. 409 where it was decided on or stopped again meanwhile, or cannot be read."""
    said = asked or DecisionIn()
    return _said(db, quarantine.release(db, _image(item), bearer.actor, said.note, said.since))


@router.post("/v1/quarantine/{item}:reject", response_model=ReviewOut)
def reject(db: Db, bearer: CanReview, item: One, asked: DecisionIn | None = None) -> dict[str, Any]:
    """The image never becomes searchable. 409 where it was decided on or stopped again meanwhile."""
    said = asked or DecisionIn()
    return _said(db, quarantine.reject(db, _image(item), bearer.actor, said.note, said.since))


@router.post("/v1/quarantine/{item}:retry", status_code=202, response_model=RetriedOut)
def retry(db: Db, bearer: CanReview, item: One) -> Retried:
    """Read and judge the item again by today's codecs, limits and thresholds. 409 where a site's rule holds it."""
    kind, number = _parts(item)
    if kind == "file":
        quarantine.retry_file(db, number, bearer.actor)
        return Retried(0, 1, 0)
    quarantine.retry(db, number, bearer.actor)
    return Retried(1, 0, 0)


@router.post("/v1/quarantine:retry", status_code=202, response_model=RetriedOut)
def retry_many(db: Db, bearer: CanReview, asked: RetryIn) -> Retried:
    """Retry the items of a gate or a reason, at most 10,000 images at once, except those that a site's rule holds."""
    wanted = Wanted(gate=asked.gate, reason=asked.reason, modality=asked.modality)
    return quarantine.retry_many(db, wanted, bearer.actor)


@router.post("/v1/quarantine:replay", response_model=ReplayOut)
def replay(db: Db, bearer: CanReview, asked: ReplayIn, response: Response) -> dict[str, Any]:
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


def _plan(db: Session, model: Model, asked: ReplayIn, found: Proposal) -> dict[str, Any]:
    standard = found.standard
    would = plan(db, model, asked.modality, standard, asked.shown)
    return {
        "model": model.name,
        "modality": asked.modality,
        "threshold": standard.threshold,
        "distance_threshold": standard.distance,
        "rule": found.columns["rule"],
        "counts": dict(would.counts),
        "complete": would.complete,
        "stop": [_flip(one) for one in would.stop],
        "admit": [_flip(one) for one in would.admit],
        "applied": False,
        "operation": None,
    }


def _flip(one: Flip) -> dict[str, Any]:
    told = {name: getattr(one, name) for name in ("score", "distance", "reason")}
    return {"image": one.image_id, "sop_instance_uid": one.sop_uid} | told


@router.get("/v1/models/{name}/calibrations", response_model=CalibrationsOut)
def list_calibrations(
    db: Db, _: CanRead, name: Name, modality: Annotated[Modality | None, Query()] = None
) -> dict[str, Any]:
    """All calibrations of a model, the newest first, and how many images are searchable without a threshold."""
    model = generations.model(db, name)
    return {
        "calibrations": _calibrations(db, model, calibrations.history(db, model.id, modality)),
        "without": calibrations.unjudged(db),
        "wanting": calibrations.wanting(db, model.id, thresholds.MANY),
    }


@router.post("/v1/models/{name}/calibrations", status_code=201, response_model=CalibratedOut)
def calibrate(db: Db, bearer: CanReview, name: Name, asked: CalibrateIn | None = None) -> dict[str, Any]:
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


def _calibrations(db: Session, model: Model, rows: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - a sequence of rows
    newest = {one.calibration_id for one in calibrations.in_force(db, model.id).values()}
    return [_calibration(row, model) | {"in_force": row.id in newest} for row in rows]


_COLUMNS = (
    "id", "modality", "source", "rule", "threshold", "mean", "std", "quantiles", "n", "data_sha256", "distances",
    "made_by", "created_at",
)  # fmt: skip


def _calibration(row: Calibration, model: Model) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _COLUMNS} | {"model": model.name}


def _said(db: Session, row: Review) -> dict[str, Any]:
    db.flush()
    db.refresh(row)
    return _review(row)


def _review(row: Review) -> dict[str, Any]:
    fields = ("decision", "gate", "reason", *_VOTES, "reviewer", "note")
    return {"item": f"image-{row.image_id}", "at": row.created_at} | {name: getattr(row, name) for name in fields}
