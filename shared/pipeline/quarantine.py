"""The quarantine: what was stopped waits for a person, and is decided on once each time.

Every act is one transaction: the image's row is locked, the decision, its record and what the index must hold are
written together, so a kill leaves all of it or nothing. A decision is about these bytes; no threshold
overturns one on what a gate stopped.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.orm import Session

from shared.errors import Conflict, Gate, Invalid, NotFound
from shared.imaging.reasons import SENTENCES, Reason
from shared.pipeline.letters import scan_again
from shared.store import catchup, encodings, files, generations, ledger, reviews
from shared.store.locks import Lock, share
from shared.store.reviews import Actor, Stopped, Wanted
from shared.store.session import enqueue
from shared.store.tables import Review
from shared.types import Decision, Job, Status

MOST_AT_ONCE = 10_000  #: images of one bulk retry
#: Gates that say whether an image belongs; the others say that it cannot be read, which no person changes.
RELEASABLE = frozenset({Gate.METADATA, Gate.PIXELS, Gate.FEATURES})


def release(db: Session, image_id: int, actor: Actor, note: str = "", since: datetime | None = None) -> Review:
    """The image becomes searchable: at once where its encoding is stored, else after it was encoded without gates.

    What a rule of the site held is judged by the gates then, as none has seen it yet. The same key saying it again
    changes nothing.

    Args:
        since: when the image that was looked at had been stopped; None where nobody says so.

    Raises: `NotFound` where it was erased, `Conflict` where it was decided on, was stopped anew after `since` (it may
        have other bytes by now), or cannot be decoded.
    """
    share(db, Lock.GENERATIONS)  # no generation is opened that would miss it
    return _decide(db, image_id, Decision.RELEASED, actor, note, since)


def reject(db: Session, image_id: int, actor: Actor, note: str = "", since: datetime | None = None) -> Review:
    """The image never becomes searchable, whatever comes under its UID. Raises: as `release`."""
    return _decide(db, image_id, Decision.REJECTED, actor, note, since)


def _decide(db: Session, image_id: int, decision: Decision, actor: Actor, note: str, since: datetime | None) -> Review:
    stopped = reviews.lock(db, image_id)
    if stopped is None:
        raise NotFound("no such image")
    if stopped.status != Status.QUARANTINED:
        said = next((one for one in reviews.of(db, image_id) if one.digest == stopped.digest), None)
        if said is None:
            raise Conflict(f"this image is {stopped.status}, not in the quarantine")
        if (said.decision, said.key_id) == (decision, actor.key_id):
            return said
        raise Conflict(f"this image was {said.decision} already")
    if since is not None and since != stopped.since:
        raise Conflict("this image was stopped anew after it was looked at: look at it again")
    if decision is Decision.RELEASED:
        _check_readable(stopped)
    review = reviews.add(db, stopped, decision, actor, note)
    word = "release" if decision is Decision.RELEASED else "reject"
    reviews.audit(db, actor, word, {"gate": stopped.gate, "reason": stopped.reason}, image_id)
    if decision is Decision.REJECTED:
        reviews.move(db, [image_id], Status.REJECTED)
    elif stopped.gate == Gate.FEATURES and _admissible(db, image_id):
        reviews.move(db, [image_id], Status.ENCODED)
        post(db, [image_id])
    else:
        reviews.move(db, [image_id], Status.RECEIVED)
        enqueue(db, Job.ENCODE)
    return review


def _check_readable(stopped: Stopped) -> None:
    if stopped.gate in RELEASABLE:
        return
    why = SENTENCES[Reason(stopped.reason)] if stopped.reason else ""
    raise Conflict(
        f"this image cannot be read, so it cannot be released: {why} Retry it after a codec or limit changed."
    )


def _admissible(db: Session, image_id: int) -> bool:
    """The published model has encoded these bytes: only gate 3 keeps what it stopped."""
    live = generations.published(db)
    return live is not None and encodings.stand(db, live.model_id, image_id)


def post(db: Session, images: Sequence[int]) -> None:
    """Encoded images, locked by the caller, are due in every open generation, encoded anew where a model lacks them."""
    models = {p.model_id for p in generations.opened(db)}
    lacking = []
    for model in sorted(models):
        entries = ledger.stored(db, model, images)
        ledger.post(db, model, entries)
        held = {entry.image_id for entry in entries}
        lacking += [(model, image) for image in images if image not in held]
    catchup.add(db, lacking)
    enqueue(db, Job.PROJECT)
    if lacking:
        enqueue(db, Job.CATCH_UP)


def withdraw(db: Session, images: Sequence[int]) -> None:
    """Whatever stands of these images leaves every generation; their encodings stay, for a release."""
    ledger.withdraw(db, images)
    catchup.drop(db, images)
    enqueue(db, Job.PROJECT)


def forget(db: Session, images: Sequence[int]) -> None:
    """Nothing stands of what was made of these images: no point in any generation, no encoding, no picture."""
    withdraw(db, images)
    encodings.forget(db, images)


def retry(db: Session, image_id: int, actor: Actor) -> None:
    """The image is decoded and judged again, by the codecs, limits and thresholds of today.

    Raises: `NotFound`, `Conflict` for one that is not in the quarantine, or that a rule of the site holds: encoding
    does not ask the rules, and would let it pass.
    """
    stopped = reviews.lock(db, image_id)
    if stopped is None:
        raise NotFound("no such image")
    if stopped.status != Status.QUARANTINED:
        raise Conflict(f"this image is {stopped.status}, not in the quarantine")
    if stopped.reason == Reason.SITE_RULE:
        raise Conflict("a rule of this site holds this image, which no retry changes: release or reject it")
    _due_again(db, [image_id])
    reviews.audit(db, actor, "retry", {"gate": stopped.gate, "reason": stopped.reason}, image_id)


def retry_file(db: Session, file_id: int, actor: Actor) -> None:
    """The file is read again by the scan that met it; one that was sent, from our store. Raises: `NotFound`."""
    found = files.reread_stopped(db, file_id=file_id)
    if not found:
        raise NotFound("no such file")
    scan_again(db, found)
    reviews.audit(db, actor, "retry", {"file": file_id})


class Retried(NamedTuple):
    """How much of what was named is due again."""

    images: int
    files: int
    held: int  #: images that are not: a rule of the site holds them


def retry_many(db: Session, wanted: Wanted, actor: Actor) -> Retried:
    """All that one gate or one reason stopped is tried again, but for what a rule of the site holds.

    Raises: `Invalid` where neither a gate nor a reason is named.
    """
    if wanted.gate is None and wanted.reason is None:
        raise Invalid("name a gate or a reason to retry")
    images = reviews.lock_pending(db, wanted, MOST_AT_ONCE)
    held = reviews.held(db, wanted)
    _due_again(db, images)
    readers = files.reread_stopped(db, gate=wanted.gate, reason=wanted.reason) if wanted.modality is None else []
    scan_again(db, readers)
    done = Retried(len(images), len(readers), held)
    reviews.audit(db, actor, "retry", {"gate": wanted.gate, "reason": wanted.reason} | done._asdict())
    return done


def _due_again(db: Session, images: Sequence[int]) -> None:
    encodings.forget(db, images)  # while it is not judged again, no build may take it for one that belongs
    reviews.move(db, images, Status.RECEIVED)
    enqueue(db, Job.ENCODE)
