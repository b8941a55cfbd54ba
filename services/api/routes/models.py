from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from services.api.answers import LOCATED, ModelDetail, ModelOut, ModelsOut
from services.api.dependencies import CanAdmin, CanRead, Db, Rt
from services.api.schemas import HashIn, ModelIn, ModelName
from shared.encoder.cards import Card
from shared.pipeline import lifecycle
from shared.store import generations, reviews
from shared.store.session import enqueue
from shared.store.tables import Model
from shared.types import Job

router = APIRouter(tags=["models"])


@router.get("/v1/models")
def list_models(db: Db, _: CanRead) -> ModelsOut:
    """All registered models, with the published one marked."""
    live = generations.published(db)
    return {"models": [_model(row, live.model_id if live else None) for row in generations.models(db)]}


@router.post(
    "/v1/models",
    status_code=201,
    responses={200: LOCATED | {"description": "It was registered before", "model": ModelDetail}, 201: LOCATED},
)
def add_model(rt: Rt, db: Db, bearer: CanAdmin, asked: ModelIn, response: Response) -> ModelDetail:
    """Test and register a model of the models folder; the first one is also published. Idempotent."""
    card = rt.proved(asked.card)
    row, new = lifecycle.add_model(db, rt.indexes, asked.card, card)
    enqueue(db, Job.ENCODE)  # images may be waiting for a model
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/models/{row.name}"
    told = _detail(db, row)
    if new:
        said = {"model": row.name, "published": told["published"]}
        reviews.audit(db, bearer.actor, "model-add", said)
    return told


@router.get("/v1/models/{name}")
def show_model(db: Db, _: CanRead, name: ModelName) -> ModelDetail:
    """By its name, or by eight or more digits of its fingerprint."""
    return _detail(db, generations.model(db, name))


@router.post("/v1/models/{name}:hash", status_code=201, responses={201: LOCATED})
def add_hashed(rt: Rt, _: CanAdmin, name: ModelName, asked: HashIn, response: Response) -> ModelDetail:
    """Register the model, with a hash code fitted to the archive's embeddings, as a new model without a generation."""
    models = rt.settings.models_dir
    lifecycle.add_hashed(rt.transaction, rt.indexes, models, name, asked.name, asked.bits, rotate=asked.rotate)
    response.headers["Location"] = f"/v1/models/{asked.name}"
    with rt.transaction() as db:
        return _detail(db, generations.model(db, asked.name))


def _model(row: Model, live: int | None) -> ModelOut:
    card = Card.from_json(dict(row.card))
    return {
        "name": row.name,
        "fingerprint": row.fingerprint,
        "label": card.label,
        "trained": card.weights.trained,
        "architecture": card.architecture,
        "dim": card.dim,
        "bits": card.bits,
        "published": row.id == live,
        "created_at": row.created_at,
    }


def _detail(db: Session, row: Model) -> ModelDetail:
    live = generations.published(db)
    own = [generation.id for generation in generations.every(db) if generation.model_id == row.id]
    return {**_model(row, live.model_id if live else None), "card": row.card, "generations": own}
