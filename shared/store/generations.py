"""Models, generations and the one published pointer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound
from shared.store.tables import Generation, Live, Model


@dataclass(frozen=True, slots=True)
class Published:
    """What the pointer names: read once per query, kept for its whole life."""

    generation_id: int
    collection: str
    model_id: int
    fingerprint: str
    folder: str
    card: Mapping[str, Any]
    read_at: datetime | None = None  #: when the pointer was read, by the database's clock


_PUBLISHED = sa.text(
    "SELECT g.id, g.collection, m.id, m.fingerprint, m.folder, m.card, clock_timestamp() FROM live l "
    "JOIN generation g ON g.id = l.generation_id JOIN model m ON m.id = g.model_id"
)


def published(db: Session | sa.Connection) -> Published | None:
    row = db.execute(_PUBLISHED).one_or_none()
    return None if row is None else Published(*row)


def add_model(db: Session, *, fingerprint: str, name: str, folder: str, card: dict[str, Any]) -> Model:
    """The model is known; adding the same card again changes nothing.

    Raises: `Conflict` if the name belongs to another model.
    """
    found = db.scalar(sa.select(Model).where(sa.or_(Model.fingerprint == fingerprint, Model.name == name)))
    if found is not None:
        if found.fingerprint != fingerprint or found.name != name:
            raise Conflict("another model has this name, or this model another name")
        return found
    model = Model(fingerprint=fingerprint, name=name, folder=folder, card=card)
    db.add(model)
    db.flush()  # generations refer to its id
    return model


def models(db: Session) -> Sequence[Model]:
    return db.scalars(sa.select(Model).order_by(Model.id)).all()


def model(db: Session, name_or_fingerprint: str) -> Model:
    """Raises: `NotFound`. A fingerprint may be shortened to eight characters or more."""
    match = Model.name == name_or_fingerprint
    if len(name_or_fingerprint) >= 8 and name_or_fingerprint.isalnum():
        match = sa.or_(match, Model.fingerprint.startswith(name_or_fingerprint))
    found = db.scalars(sa.select(Model).where(match).limit(2)).all()
    if len(found) != 1:
        raise NotFound("no such model")
    return found[0]


def add(db: Session, model_id: int, spec: dict[str, Any]) -> Generation:
    """A generation is open: from this commit on every encoding of its model gets a row in its ledger."""
    number = db.scalar(sa.select(sa.func.coalesce(sa.func.max(Generation.id), 0) + 1))
    generation = Generation(model_id=model_id, collection=f"g{number}-m{model_id}", spec=spec)
    db.add(generation)
    db.flush()  # its id names it everywhere
    return generation


def opened(db: Session | sa.Connection) -> list[Published]:
    """Every generation that is kept up to date, the live one among them."""
    rows = db.execute(
        sa.text(
            "SELECT g.id, g.collection, m.id, m.fingerprint, m.folder, m.card FROM generation g "
            "JOIN model m ON m.id = g.model_id WHERE g.state = 'open' ORDER BY g.id"
        )
    )
    return [Published(*row) for row in rows]


def get(db: Session, generation_id: int) -> Generation:
    """Raises: `NotFound`."""
    found = db.get(Generation, generation_id)
    if found is None:
        raise NotFound("no such generation")
    return found


def every(db: Session) -> Sequence[Generation]:
    return db.scalars(sa.select(Generation).order_by(Generation.id)).all()


def publish(db: Session, generation_id: int) -> None:
    """The pointer names this generation.

    Raises: `Conflict` if it is retired.
    """
    if get(db, generation_id).state != "open":
        raise Conflict("a retired generation cannot be published")
    live = db.get(Live, 1, with_for_update=True)
    if live is None:
        db.add(Live(id=1, generation_id=generation_id))
    else:
        live.generation_id = generation_id
        live.published_at = sa.func.clock_timestamp()


def used(db: Session) -> bool:
    """Something is encoded, or on its way, with the models there are."""
    return bool(
        db.scalar(
            sa.text("SELECT EXISTS (SELECT 1 FROM encoding) OR EXISTS (SELECT 1 FROM image WHERE status = 'encoding')")
        )
    )


def retire(db: Session, generation_id: int) -> None:
    """Nothing more is written to this generation.

    Raises: `Conflict` for the published one.
    """
    live = db.get(Live, 1)
    if live is not None and live.generation_id == generation_id:
        raise Conflict("the published generation cannot be retired")
    get(db, generation_id).state = "retired"
