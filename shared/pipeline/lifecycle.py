"""Models and generations: registered, opened beside the live one, published."""

from typing import Any

from sqlalchemy.orm import Session

from shared.encoder.cards import Card
from shared.index.base import IndexStore, Metric, Spec
from shared.store import generations
from shared.store.tables import Generation, Model


def add_model(db: Session, indexes: IndexStore, folder: str, card: Card) -> Model:
    """The model is known. While nothing is encoded, the newest one is published: the archive will speak with it.

    Once something is encoded the published model stays; another one is a re-index, not a switch.

    Raises: `Conflict` if the name belongs to another model.
    """
    before = {model.id for model in generations.models(db)}
    model = generations.add_model(db, fingerprint=card.fingerprint, name=card.name, folder=folder, card=card.to_json())
    live = generations.published(db)
    if live is None or (model.id not in before and not generations.used(db)):
        generations.publish(db, open_generation(db, indexes, model).id)
        if live is not None:
            generations.retire(db, live.generation_id)
    return model


def open_generation(db: Session, indexes: IndexStore, model: Model, **choices: Any) -> Generation:  # noqa: ANN401
    """A collection stands ready and its ledger is open; `choices` are fields of `Spec`."""
    card = model.card
    spec = Spec(dim=card["dim"], metric=Metric(card.get("metric", "cosine")), **choices)
    generation = generations.add(
        db,
        model.id,
        {"dim": spec.dim, "metric": spec.metric.value, "scale": spec.scale, "m": spec.m, "ef": spec.ef_construct},
    )
    indexes.create(generation.collection, spec)
    return generation
