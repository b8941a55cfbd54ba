"""Models and generations: registered, opened beside the live one, published, rolled back, retired.

Publishing changes one row. It is refused if an image that searches find today would vanish, or if the new index's
recall against exact search has not been measured or is too low.
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
from shared.types import UNDER_WAY, Job, OperationKind, OperationState

PATIENCE_S = 10.0
FITTED_ON = 20_000  #: embeddings that a hash code is fitted to, 80 MB at 1,024 dimensions
TOLD = 5  #: lacking images that a refusal names; `generations show` names more
MOST_GAPS = 10_000  #: lacking images that can be accepted one by one
GROWN = 1.25  #: a measured recall holds until the index has grown by this factor ...
SMALL = 1000  #: ... and by this many points more


def add_model(db: Session, indexes: IndexStore, folder: str, card: Card) -> tuple[Model, bool]:
    """Register the model; return its row, and whether it is new.

    While nothing is encoded, the newest model is published at once. After that, the published model stays, and
    changing it takes a re-index.

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
    """Register a copy of a known model under another name, with a hash code fitted to the archive's embeddings.

    The copy is another model: its generation is built from the images. Fitting takes seconds, outside transactions.

    Raises:
        NotFound: there is no such base.
        Conflict: the name is taken, by a model or in the folder.
        Invalid: the model has a code already, or too few images are encoded for so many bits.
    """
    from shared.encoder.derive import build_hashed

    with begin() as db:
        if any(model.name == name for model in generations.models(db)):
            raise Conflict("a model of this name exists already")
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
    """Create a collection and open a generation on it; `choices` are fields of `Spec`.

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
    """Create the generation's lost collection again, empty, and make all rows of its ledger due."""
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
    """Open a generation beside the live one, with a due operation that fills it.

    With the digest of an Idempotency-Key, a second call returns the first one's generation.
    """
    asked = {"model": model.name, "throttle": throttle, "gate": gate} | choices | ({"hours": hours} if hours else {})
    operation = operations.create(db, OperationKind.REINDEX, asked, key_digest)
    found = generations.built_by(db, operation.id)
    if found is None:
        found = open_generation(db, indexes, model, operation_id=operation.id, throttle=throttle, gate=gate, **choices)
        found.hours = hours
        enqueue(db, Job.REINDEX)
    return found


class _Behind(Conflict):
    """All images that the generation lacks are on their way to its index."""


def publish(
    db: Session, generation_id: int, accept: Collection[str] = (), *, patience_s: float = PATIENCE_S
) -> Generation:
    """Publish the generation: searches use it from the commit on.

    Args:
        accept: image ids or SOP Instance UIDs of the images that it may lack.
        patience_s: how long to wait for new images that are on their way to its index.

    Raises: `Conflict` if it is incomplete, or its recall is not measured, outdated or below its gate; with the numbers.
    """
    found = generations.get(db, generation_id)
    if found.filled_at is None:
        raise Conflict(f"generation {found.id} is not filled yet: images up to {found.filled_to} were looked at")
    _check_recall(db, found)
    return _switch(db, found, accept, patience_s)


def rollback(db: Session, generation_id: int, accept: Collection[str] = ()) -> Generation:
    """Publish again the generation that was published before this one; rolling that one back undoes it.

    Raises: `Conflict` if this one is not published, none was before it, or that one lacks what searches find today.
    """
    found = generations.get(db, _before(db, generation_id))
    return _switch(db, found, {*accept, *map(str, found.accepted)}, PATIENCE_S, leaving=generation_id)


def _before(db: Session, generation_id: int) -> int:
    """Return the generation that a rollback of this one publishes. Raises: `Conflict` if there is none."""
    row = generations.live(db)
    if row is None or row.generation_id != generation_id:
        raise Conflict(f"generation {generation_id} is not published")
    if row.previous_id is None:
        raise Conflict("there is no generation to roll back to")
    return row.previous_id


def _switch(
    db: Session, found: Generation, accept: Collection[str], patience_s: float, leaving: int | None = None
) -> Generation:
    """Check coverage and move the pointer under the lock of all writers: without it the check could be outdated.

    Args:
        leaving: the generation that a rollback leaves; it must still be published, with `found` before it.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            since = coverage.moment(db)
            known = coverage.gaps(db, found.id, found.model_id, MOST_GAPS + 1)
            _check_gaps(db, found, accept, known)  # first without the lock: a refusal holds nobody up
            with db.begin_nested():  # releases the lock if it fails
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
    """Raises: `Conflict` for any gap that is not accepted, or for too many gaps."""
    named = frozenset(accept)
    left = [gap for gap in lacking if named.isdisjoint(gap.named)]
    if left or len(lacking) > MOST_GAPS:
        covered = coverage.count(db, found.id, found.model_id)
        some = ", ".join(f"{gap.image_id} ({gap.reason})" for gap in left[:TOLD])
        raise (_Behind if {gap.reason for gap in left} == {"to-index"} else Conflict)(
            f"generation {found.id} covers {covered.covered} of {covered.images} images, {len(left)} are missing and "
            f"not accepted: {some}{' ...' if len(left) > TOLD else ''}"
        )


def _check_recall(db: Session, found: Generation) -> None:
    if found.measured is None:
        raise Conflict(f"the recall of generation {found.id} has not been measured yet; resume it to have it measured")
    recall = found.measured["recall"]
    if recall < round(found.gate, 6):  # the row has single precision
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
    """Retire the generation: no more writes, and after a grace period its collection and ledger are purged.

    What its model has left to do is dropped by `purge`, too: all writers wait for this commit.

    Raises: `Conflict` for the published one, and without `force` for the one that a rollback would publish.
    """
    operation_id = generations.get(db, generation_id).operation_id
    if operation_id is not None:  # locked before the generation's row, as a fill does
        operations.abandon(db, operation_id)
    found = generations.retire(db, generation_id, force=force)
    enqueue(db, Job.REINDEX)
    return found


def cancel(db: Session, generation_id: int) -> Generation:
    """Cancel a build that is not complete; the encodings of its model are kept.

    Raises: `Conflict` for a generation that is built, which may have been published: use `retire`.
    """
    found = retire(db, generation_id)
    if found.operation_id is None or found.measured is not None:
        raise Conflict(f"generation {found.id} is complete and cannot be cancelled; retire it instead")
    return found


def pause(db: Session, generation_id: int) -> Generation:
    """Pause the build: no more filling and catch-up; new images and deletes still go to the generation.

    Raises: `Conflict` if it is not being built.
    """
    found = _open(db, generation_id)
    if found.operation_id is None:
        raise Conflict(f"generation {found.id} is not being built")
    operations.pause(db, found.operation_id)
    return found


def resume(db: Session, generation_id: int) -> Generation:
    """Resume the build; if it had ended, its exceptions are tried again and its recall is measured again."""
    found = _open(db, generation_id)
    if found.operation_id is None:
        found.operation_id = operations.create(db, OperationKind.REINDEX, {}).id
    else:
        operation = operations.get(db, found.operation_id)
        if operation.state not in UNDER_WAY:
            if operation.state != OperationState.PAUSED:
                catchup.retry(db, found.model_id)
            operations.retry(db, found.operation_id)
    enqueue(db, Job.REINDEX)
    enqueue(db, Job.CATCH_UP)
    return found


def throttle(db: Session, generation_id: int, wanted: Mapping[str, float | str | None]) -> Generation:
    """Set `throttle` and `hours`, as far as they are given, from the build's next step on; None removes a limit.

    Raises: `Conflict` if the generation is retired.
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
