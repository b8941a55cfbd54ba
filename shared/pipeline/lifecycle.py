"""Models and generations: registered, opened beside the live one, published."""

from typing import Any

from sqlalchemy.orm import Session

from shared.encoder.cards import Card
from shared.index.base import IndexStore, Metric, Spec
from shared.store import generations
from shared.store.tables import Generation, Model


def add_model(db: Session, indexes: IndexStore, folder: str, card: Card) -> Model:
    """The model is known. The first one also gets a generation, which is published: the archive has a voice.

    Raises: `Conflict` if the name belongs to another model.
    """
    model = generations.add_model(db, fingerprint=card.fingerprint, name=card.name, folder=folder, card=card.to_json())
    if generations.published(db) is None:
        generation = open_generation(db, indexes, model)
        generations.publish(db, generation.id)
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
