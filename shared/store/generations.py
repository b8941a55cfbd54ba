"""Models, generations and the one published pointer.

Opening, publishing and retiring take `Lock.GENERATIONS` exclusively; writing and applying ledgers shares it. So an
image is settled with a row for every open generation, and what is published is what was checked.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound
from shared.store.locks import Lock, alone
from shared.store.session import rows
from shared.store.tables import Generation, Live, Model


@dataclass(frozen=True, slots=True)
class Published:
    """A generation and its model. A query reads the published one once and keeps it to its end."""

    generation_id: int
    collection: str
    model_id: int
    fingerprint: str
    folder: str
    card_json: str
    read_at: datetime | None = None  #: when the pointer was read, by the database's clock

    @property
    def card(self) -> dict[str, Any]:
        """The model's card, parsed at each call: a search by study never looks at it."""
        card: dict[str, Any] = json.loads(self.card_json)
        return card


_PUBLISHED: Final = """
    SELECT g.id, g.collection, m.id, m.fingerprint, m.folder, CAST(m.card AS text), clock_timestamp()
    FROM live l JOIN generation g ON g.id = l.generation_id JOIN model m ON m.id = g.model_id
    """


def published(db: Session | sa.Connection) -> Published | None:
    found = rows(db.connection() if isinstance(db, Session) else db, _PUBLISHED, {})
    return Published(*found[0]) if found else None


def add_model(db: Session, *, fingerprint: str, name: str, folder: str, card: dict[str, Any]) -> tuple[Model, bool]:
    """Register the model; returns its row and whether it is new. The same card again, or at once, changes nothing.

    Raises: `Conflict` if the name belongs to another model.
    """
    row = insert(Model).values(fingerprint=fingerprint, name=name, folder=folder, card=card)
    new = db.scalar(row.on_conflict_do_nothing().returning(Model))
    if new is not None:
        return new, True
    found = db.scalars(sa.select(Model).where(sa.or_(Model.fingerprint == fingerprint, Model.name == name))).all()
    if any((model.fingerprint, model.name) != (fingerprint, name) for model in found):
        raise Conflict("this name belongs to another model, or this model is registered under another name")
    return found[0], False


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


def reserve(db: Session) -> int:
    """A new generation number; one whose transaction is rolled back is not used again."""
    number: int = db.execute(sa.text("SELECT nextval(pg_get_serial_sequence('generation', 'id'))")).scalar_one()
    return number


def collection_of(number: int, model_id: int) -> str:
    return f"g{number}-m{model_id}"


def add(
    db: Session,
    model_id: int,
    spec: dict[str, Any],
    *,
    number: int | None = None,
    operation_id: uuid.UUID | None = None,
    throttle: float | None = None,
    gate: float | None = None,
) -> Generation:
    """Open a generation: from the commit on, every encoding of its model gets a row in its ledger.

    With `operation_id`, that operation has to fill in the existing images; without it, there is nothing to fill in.
    """
    alone(db, Lock.GENERATIONS)
    number = number or reserve(db)
    generation = Generation(
        id=number,
        model_id=model_id,
        collection=collection_of(number, model_id),
        spec=spec,
        operation_id=operation_id,
        throttle=throttle,
    )
    if gate is not None:
        generation.gate = gate
    if operation_id is None:
        generation.filled_at = sa.func.clock_timestamp()
    db.add(generation)
    db.flush()  # other rows refer to it from now on
    return generation


_OPENED = sa.text(
    "SELECT g.id, g.collection, m.id, m.fingerprint, m.folder, CAST(m.card AS text) FROM generation g "
    "JOIN model m ON m.id = g.model_id WHERE g.state = 'open' "
    "ORDER BY g.id = (SELECT generation_id FROM live) DESC NULLS LAST, g.id"
)


def opened(db: Session | sa.Connection) -> list[Published]:
    """Every generation that is kept up to date, the live one first."""
    return [Published(*row) for row in db.execute(_OPENED)]


def get(db: Session, generation_id: int) -> Generation:
    """Raises: `NotFound`."""
    found = db.get(Generation, generation_id)
    if found is None:
        raise NotFound("no such generation")
    return found


def built_by(db: Session, operation_id: uuid.UUID) -> Generation | None:
    return db.scalar(sa.select(Generation).where(Generation.operation_id == operation_id))


def every(db: Session) -> Sequence[Generation]:
    return db.scalars(sa.select(Generation).order_by(Generation.id)).all()


def live(db: Session, *, lock: bool = False) -> Live | None:
    """The pointer's row, with the previous generation, read anew even if this session had loaded it already."""
    return db.get(Live, 1, with_for_update=lock or None, populate_existing=True)


def publish(db: Session, generation_id: int) -> None:
    """Move the pointer to this generation; the previous one is remembered.

    Raises: `Conflict` if it is retired.
    """
    alone(db, Lock.GENERATIONS)
    found = get(db, generation_id)
    db.refresh(found, ["state"])  # the session may have read it before it had the lock
    if found.state != "open":
        raise Conflict("a retired generation cannot be published")
    row = live(db, lock=True)
    if row is None:
        db.add(Live(id=1, generation_id=generation_id))
    elif row.generation_id != generation_id:
        row.previous_id, row.generation_id = row.generation_id, generation_id
        row.published_at = sa.func.clock_timestamp()
    db.flush()


def has_encodings(db: Session) -> bool:
    """Whether an encoding exists or an image is being encoded."""
    return bool(
        db.scalar(
            sa.text("SELECT EXISTS (SELECT 1 FROM encoding) OR EXISTS (SELECT 1 FROM image WHERE status = 'encoding')")
        )
    )


def retire(db: Session, generation_id: int, *, force: bool = False) -> Generation:
    """Nothing more is written to this generation; a while later it is purged.

    Raises: `Conflict` for the published one, and without `force` for the one that a rollback would lead to.
    """
    alone(db, Lock.GENERATIONS)
    row, found = live(db, lock=True), get(db, generation_id)
    if row is not None and row.generation_id == generation_id:
        raise Conflict("the published generation cannot be retired")
    if row is not None and row.previous_id == generation_id:
        if not force:
            raise Conflict("a rollback would lead to this generation: retire it with force, or keep it")
        row.previous_id = None
    if found.state == "open":
        found.state, found.retired_at = "retired", sa.func.clock_timestamp()
    db.flush()
    return found


_ALLOW = sa.text(
    """
    WITH pace AS (
        SELECT id, throttle, now,
            least(now, greatest(coalesce(paced_from, '-infinity'), now - interval '5 seconds')) AS since
        FROM generation, (SELECT clock_timestamp() AS now) AS clock WHERE id = :id
        FOR NO KEY UPDATE OF generation
    ), allowed AS (
        SELECT id, throttle, since, least(:most, floor(extract(epoch FROM now - since) * throttle)) AS n FROM pace
    )
    UPDATE generation SET paced_from = since + make_interval(secs => n / allowed.throttle)
    FROM allowed WHERE generation.id = allowed.id RETURNING CAST(n AS int)
    """
)


def allow(db: Session, generation: Generation, most: int) -> int:
    """How many rows the throttle allows now, at most `most`; unused allowance accumulates for up to five seconds.

    The token bucket is part of the row, so that all workers together keep to the throttle.
    """
    if generation.throttle is None:
        return most
    n: int = db.execute(_ALLOW, {"id": generation.id, "most": most}).scalar_one()
    return n


def counted(db: Session, generation_id: int, calm_s: float) -> None:
    """Record that the generation's gaps were counted; the next count is due in `calm_s` seconds."""
    until = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, calm_s)
    db.execute(sa.update(Generation).where(Generation.id == generation_id).values(count_at=until))


def to_count(db: Session, generation_id: int) -> bool:
    """Whether the generation's gaps are due to be counted, again or for the first time.

    A count that is due in more than a day was put off before the clock was set back.
    """
    now = sa.func.clock_timestamp()
    waits = Generation.count_at.between(now, now + timedelta(days=1))
    return bool(db.execute(sa.select(waits.is_not(True)).where(Generation.id == generation_id)).scalar_one())


_PURGEABLE = sa.text(
    "SELECT id FROM generation WHERE state = 'retired' AND purged_at IS NULL "
    "AND id NOT IN (SELECT generation_id FROM live) "
    "AND retired_at < clock_timestamp() - make_interval(secs => :grace) ORDER BY id"
)


def purgeable(db: Session, grace_s: float) -> list[int]:
    """Generations that were retired `grace_s` ago, so that no query still uses them; never the published one."""
    return list(db.execute(_PURGEABLE, {"grace": grace_s}).scalars())
