"""The quarantine: stopped images wait for a person, who decides once each time an image is stopped.

Every action is one transaction: the image's row is locked, and the decision, its record and the ledger rows are
written together, so a kill leaves all of it or nothing. A decision is about these bytes; no threshold overturns a
decision on an image that a gate stopped.
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
#: Gates that judge whether an image belongs; the others say that it cannot be read, which no person can change.
RELEASABLE = frozenset({Gate.METADATA, Gate.PIXELS, Gate.FEATURES})


def release(db: Session, image_id: int, actor: Actor, note: str = "", since: datetime | None = None) -> Review:
    """Release the image: searchable at once if its encoding is stored, else after it was encoded without gates.

    An image that an admission rule held is judged by the gates then, as none has seen it yet. Repeated by the same
    key, a release changes nothing.

    Args:
        since: when the image that the person looked at was stopped; None skips the check.

    Raises: `NotFound` if it was erased, `Conflict` if it was decided on, was stopped again after `since` (it may have
        other bytes by now), or cannot be decoded.
    """
    share(db, Lock.GENERATIONS)  # no generation that would miss it is opened meanwhile
    return _decide(db, image_id, Decision.RELEASED, actor, note, since)


def reject(db: Session, image_id: int, actor: Actor, note: str = "", since: datetime | None = None) -> Review:
    """Reject the image: it never becomes searchable, whatever comes under its UID. Raises: as `release`."""
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
        raise Conflict("this image was stopped again after you looked at it; review it again")
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
    """Whether the published model's encoding is stored: of the gates, only gate 3 keeps those of stopped images."""
    live = generations.published(db)
    return live is not None and encodings.stand(db, live.model_id, image_id)


def post(db: Session, images: Sequence[int]) -> None:
    """Make encoded images, locked by the caller, due in every open generation; models that lack encodings catch up."""
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
    """Remove these images from every generation; their encodings are kept for a release, but none of earlier bytes."""
    ledger.withdraw(db, images)
    catchup.withdraw(db, images)
    enqueue(db, Job.PROJECT)


def forget(db: Session, images: Sequence[int]) -> None:
    """Remove all that was made of these images: points in every generation, encodings, thumbnails."""
    withdraw(db, images)
    encodings.forget(db, images)


def retry(db: Session, image_id: int, actor: Actor) -> None:
    """Make the image due to be decoded and judged again, by the codecs, limits and thresholds of today.

    Raises: `NotFound`; `Conflict` if it is not in the quarantine, or an admission rule holds it: encoding does not
    apply the rules, and would let it pass.
    """
    stopped = reviews.lock(db, image_id)
    if stopped is None:
        raise NotFound("no such image")
    if stopped.status != Status.QUARANTINED:
        raise Conflict(f"this image is {stopped.status}, not in the quarantine")
    if stopped.reason == Reason.SITE_RULE:
        raise Conflict(
            "an admission rule of this site stopped this image, and a retry cannot change that: release or reject it"
        )
    _due_again(db, [image_id])
    reviews.audit(db, actor, "retry", {"gate": stopped.gate, "reason": stopped.reason}, image_id)


def retry_file(db: Session, file_id: int, actor: Actor) -> None:
    """Have the file read again: by the scan that found it, or from the store if it was sent. Raises: `NotFound`."""
    found = files.reread_stopped(db, file_id=file_id)
    if not found:
        raise NotFound("no such file")
    scan_again(db, found)
    reviews.audit(db, actor, "retry", {"file": file_id})


class Retried(NamedTuple):
    """How many images and files are due again."""

    images: int
    files: int
    held: int  #: images that are not due, as an admission rule holds them


def retry_many(db: Session, wanted: Wanted, actor: Actor) -> Retried:
    """Retry all that one gate or one reason stopped, except images that an admission rule holds.

    Raises: `Invalid` if neither a gate nor a reason is named.
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
    encodings.forget(db, images)  # until they are judged again, no build may take in their encodings
    reviews.move(db, images, Status.RECEIVED)
    enqueue(db, Job.ENCODE)
