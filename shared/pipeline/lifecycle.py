"""Models and generations: registered, opened beside the live one, published, rolled back, retired.

The switch is one row. It is refused unless nothing that searches find today would vanish by it, and the new index
has shown that it finds what an exact search finds.
"""

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from shared.encoder.cards import Card
from shared.errors import Conflict
from shared.index.base import IndexStore, Metric, Spec
from shared.pipeline import thresholds
from shared.store import catchup, coverage, encodings, generations, ledger, operations, points
from shared.store.coverage import Gap
from shared.store.locks import Lock, alone, share
from shared.store.session import Begin, enqueue
from shared.store.tables import Generation, Model
from shared.types import Job

PATIENCE_S = 10.0
FITTED_ON = 20_000  #: embeddings that a hash code is fitted to, 80 MB at 1,024 dimensions
TOLD = 5  #: images that a refusal names; all of them stand with the generation
MOST_GAPS = 10_000  #: that can be accepted one by one
GROWN = 1.25  #: a recall was measured on an index of about this size, or is measured again ...
SMALL = 1000  #: ... but so few points more change nothing


def add_model(db: Session, indexes: IndexStore, folder: str, card: Card) -> tuple[Model, bool]:
    """The model is known, and whether it is new.

    While nothing is encoded, the newest model becomes the published one. Once something is, the published model stays,
    and another one is a re-index, not a switch.

    Raises: `Conflict` if the name belongs to another model.
    """
    model, new = generations.add_model(
        db, fingerprint=card.fingerprint, name=card.name, folder=folder, card=card.to_json()
    )
    thresholds.bring(db, model.id, card)
    live = generations.published(db)
    if live is None or (new and not generations.has_encodings(db)):
        generations.publish(db, open_generation(db, indexes, model).id)
        if live is not None:
            generations.retire(db, live.generation_id, force=True)
    return model, new


def add_hashed(
    begin: Begin, indexes: IndexStore, models: Path, base: str, name: str, bits: int, *, rotate: bool = True
) -> None:
    """A known model with a hash code, fitted to what the archive holds, is known under another name.

    It is another model: its generation is built from the images. Fitting takes seconds, and no transaction waits.

    Raises:
        NotFound: there is no such base.
        Conflict: the name is taken, by a model or in the folder.
        Invalid: the model has a code, or too little is encoded for so many bits.
    """
    from shared.encoder.derive import build_hashed

    with begin() as db:
        if any(model.name == name for model in generations.models(db)):
            raise Conflict("there is a model of this name")
        row = generations.model(db, base)
        folder, known = models / row.folder, encodings.sample(db, row.id, FITTED_ON)
    card = build_hashed(models / name, folder, known, bits, name=name, rotate=rotate)
    with begin() as db:
        add_model(db, indexes, name, card)


def open_generation(
    db: Session,
    indexes: IndexStore,
    model: Model,
    *,
    operation_id: uuid.UUID | None = None,
    throttle: float | None = None,
    gate: float | None = None,
    **choices: Any,  # noqa: ANN401 - each of its own type
) -> Generation:
    """A collection stands ready and its ledger is open; `choices` are fields of `Spec`.

    Raises: `Invalid` for a spec that no index can have.
    """
    card = model.card
    own = {"dim": card["dim"], "metric": Metric(card.get("metric", "cosine")), "bits": card.get("bits", 0)}
    spec = Spec(**own | choices)
    share(db, Lock.CREATING)
    number = generations.reserve(db)
    indexes.create(generations.collection_of(number, model.id), spec)
    return generations.add(
        db, model.id, spec.to_json(), number=number, operation_id=operation_id, throttle=throttle, gate=gate
    )


def begin_again(db: Session, indexes: IndexStore, generation: Generation) -> None:
    """The generation's collection, which was lost, stands empty, and all that its ledger says is due."""
    indexes.create(generation.collection, Spec.of(generation.spec))
    points.all_due(db, generation.id)


def begin_generation(
    db: Session,
    indexes: IndexStore,
    model: Model,
    *,
    key_digest: bytes | None = None,
    throttle: float | None = None,
    hours: str | None = None,
    gate: float | None = None,
    **choices: Any,  # noqa: ANN401 - fields of `Spec`
) -> Generation:
    """A generation is open beside the live one, and the operation that fills it is due.

    With the digest of an Idempotency-Key, a second call returns the first one's generation.
    """
    asked = {"model": model.name, "throttle": throttle, "gate": gate} | choices | ({"hours": hours} if hours else {})
    operation = operations.create(db, "reindex", asked, key_digest)
    found = generations.built_by(db, operation.id)
    if found is None:
        found = open_generation(db, indexes, model, operation_id=operation.id, throttle=throttle, gate=gate, **choices)
        found.hours = hours
        enqueue(db, Job.REINDEX)
    return found


class _Behind(Conflict):
    """All it lacks is on its way to the index."""


def publish(
    db: Session, generation_id: int, accept: Collection[str] = (), *, patience_s: float = PATIENCE_S
) -> Generation:
    """Searches ask this generation from the commit on.

    Args:
        accept: image ids or SOP Instance UIDs of those that it may lack, each named.
        patience_s: for new images that the live generation got a moment earlier.

    Raises: `Conflict` where it is not complete, its recall is not measured or below its gate; with the numbers.
    """
    found = generations.get(db, generation_id)
    if found.filled_at is None:
        raise Conflict(f"generation {found.id} is not filled yet: images up to {found.filled_to} were looked at")
    _check_recall(db, found)
    return _switch(db, found, accept, patience_s)


def rollback(
    db: Session, generation_id: int, accept: Collection[str] = (), *, patience_s: float = PATIENCE_S
) -> Generation:
    """Searches leave this generation for the one that was published before it; rolling that back undoes it.

    Raises: `Conflict` where this one is not published, nothing was before it, or that lacks what searches find today.
    """
    found = generations.get(db, _before(db, generation_id))
    return _switch(db, found, {*accept, *map(str, found.accepted)}, patience_s, leaving=generation_id)


def _before(db: Session, generation_id: int) -> int:
    """The generation that a rollback of this one leads to. Raises: `Conflict`."""
    row = generations.live(db)
    if row is None or row.generation_id != generation_id:
        raise Conflict(f"generation {generation_id} is not published")
    if row.previous_id is None:
        raise Conflict("there is no generation to roll back to")
    return row.previous_id


def _switch(
    db: Session, found: Generation, accept: Collection[str], patience_s: float, leaving: int | None = None
) -> Generation:
    """Checked and switched while nobody writes: what was complete a moment ago may be behind by now.

    Nor may another have moved the pointer meanwhile: `leaving` is the generation that a rollback still has to find.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            since = coverage.moment(db)
            known = coverage.gaps(db, found.id, found.model_id, MOST_GAPS + 1)
            _check_gaps(db, found, accept, known)  # without the lock: a refusal disturbs nobody
            with db.begin_nested():  # gives the lock back where it fails
                alone(db, Lock.GENERATIONS)
                if leaving is not None and _before(db, leaving) != found.id:
                    raise Conflict("the generation to roll back to has changed meanwhile")
                lacking = coverage.gaps_now(db, found.id, found.model_id, MOST_GAPS + 1, known, since)
                _check_gaps(db, found, accept, lacking)
                found.accepted = [gap.image_id for gap in lacking]
                generations.publish(db, found.id)
        except _Behind:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            return found


def _check_gaps(db: Session, found: Generation, accept: Collection[str], lacking: Sequence[Gap]) -> None:
    """Raises: `Conflict` for any gap that is not accepted."""
    named = frozenset(accept)
    left = [gap for gap in lacking if named.isdisjoint(gap.named)]
    if left or len(lacking) > MOST_GAPS:
        covered = coverage.count(db, found.id, found.model_id)
        some = ", ".join(f"{gap.image_id} ({gap.reason})" for gap in left[:TOLD])
        raise (_Behind if {gap.reason for gap in left} == {"to-index"} else Conflict)(
            f"generation {found.id} covers {covered.covered} of {covered.images} images, {len(left)} are lacking and "
            f"not accepted: {some}{' ...' if len(left) > TOLD else ''}"
        )


def _check_recall(db: Session, found: Generation) -> None:
    if found.measured is None:
        raise Conflict(f"the recall of generation {found.id} has not been measured yet; resume it to have it measured")
    recall = found.measured["recall"]
    if recall < round(found.gate, 6):  # single precision in its row
        raise Conflict(
            f"recall@{found.measured['k']} of generation {found.id} is {recall:.4f} "
            f"({found.measured['sample']} queries), below its gate of {found.gate:.4f}"
        )
    now, then = ledger.point_counts(db, found.id).applied, found.measured["points"]
    if now > GROWN * then + SMALL:
        raise Conflict(
            f"the recall of generation {found.id} was measured on {then} points, and it holds {now} now; resume it to "
            "have it measured again"
        )


def retire(db: Session, generation_id: int, *, force: bool = False) -> Generation:
    """Nothing more is written to it, and after a grace period its collection and ledger are gone.

    Raises: `Conflict` for the live one, and without `force` for the only one that a rollback leads to.
    """
    operation_id = generations.get(db, generation_id).operation_id
    if operation_id is not None:  # before the generation's own row, as a fill locks them
        operations.abandon(db, operation_id)
    found = generations.retire(db, generation_id, force=force)
    catchup.drop_model(db, found.model_id)
    enqueue(db, Job.REINDEX)
    return found


def cancel(db: Session, generation_id: int) -> Generation:
    """A build is given up before it is through; what its model has encoded stays for another time.

    Raises: `Conflict` for what is built, which may have been published: it is retired, if it is neither live nor what a
    rollback leads to.
    """
    found = retire(db, generation_id)
    if found.operation_id is None or found.measured is not None:
        raise Conflict(f"generation {found.id} is built: retire it, if it is to go")
    return found


def pause(db: Session, generation_id: int) -> Generation:
    """Nothing more is filled in or encoded for it; new images still go to it, and deletes too.

    Raises: `Conflict` where nothing is under way.
    """
    found = _open(db, generation_id)
    if found.operation_id is None:
        raise Conflict(f"generation {found.id} is not being built")
    operations.pause(db, found.operation_id)
    return found


def resume(db: Session, generation_id: int) -> Generation:
    """It goes on; if it had ended, its exceptions are tried again, and its recall is measured anew."""
    found = _open(db, generation_id)
    if found.operation_id is None:
        found.operation_id = operations.create(db, "reindex", {}).id
    else:
        operation = operations.get(db, found.operation_id)
        if operation.state not in ("pending", "running"):
            if operation.state != "paused":
                catchup.retry(db, found.model_id)
            operations.retry(db, found.operation_id)
    enqueue(db, Job.REINDEX)
    enqueue(db, Job.CATCH_UP)
    return found


def throttle(db: Session, generation_id: int, wanted: Mapping[str, float | str | None]) -> Generation:
    """Its next step keeps to what is given of `throttle` and `hours`; None takes it away.

    Raises: `Conflict` for one that is retired.
    """
    found = _open(db, generation_id)
    for name in wanted.keys() & {"throttle", "hours"}:
        setattr(found, name, wanted[name])
    enqueue(db, Job.REINDEX)
    enqueue(db, Job.CATCH_UP)
    return found


def _open(db: Session, generation_id: int) -> Generation:
    found = generations.get(db, generation_id)
    if found.state != "open":
        raise Conflict(f"generation {found.id} is retired")
    return found
