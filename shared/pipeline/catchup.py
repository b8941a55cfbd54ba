"""Catch-up: images that a model has not encoded yet are, beside intake and with the same machinery.

Only that model's encodings are written, fenced by the claim and by the image's revision. New images come first:
while some are due, each call does one batch.
"""

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from shared.encoder.base import Encoder
from shared.errors import Invalid, NotFound
from shared.log import get
from shared.pipeline import encode
from shared.pipeline.batch import Decoder, Result, Work
from shared.pipeline.encode import Effort, Source
from shared.pipeline.pace import allow
from shared.store import catchup, encodings, generations, images, ledger, operations
from shared.store.generations import Published
from shared.store.images import Claimed, Verdict
from shared.store.locks import Lock, share
from shared.store.session import Begin, enqueue
from shared.store.tables import Generation
from shared.types import Job, Status

log = get(__name__)


def drain(
    begin: Begin,
    sandbox: Decoder,
    encoder_of: Callable[[Published], Encoder],
    effort: Effort,
    budget_s: float = 20.0,
) -> int:
    """Due images of every model that asks have been encoded or have their reason; returns how many.

    A model that cannot be loaded here waits, and holds up no other.
    """
    with begin() as db:
        asking = set(catchup.asking(db))
        models = {p.model_id: p for p in generations.opened(db) if p.model_id in asking}
    settled = 0
    for model in models.values():
        try:
            encoder_of(model)
        except (NotFound, Invalid):
            log.warning("model_not_loaded", fingerprint=model.fingerprint, exc_info=True)
            continue
        settled += encode.work_off(begin, _source(begin, model, effort), sandbox, encoder_of, effort, budget_s)
    return settled


def _source(begin: Begin, model: Published, effort: Effort) -> Source:
    batches = 0

    def claim(beside: bool) -> Work:
        nonlocal batches
        batches += 1
        return _claim(begin, model, effort, first=batches == 1, beside=beside)

    def renew(db: Session, claimed: Sequence[Claimed]) -> None:
        catchup.renew(db, model.model_id, claimed, effort.lease_s)

    def give_back(verdicts: Sequence[Verdict]) -> None:
        with begin() as db:
            catchup.settle(db, model.model_id, [v for v in verdicts if v.reason])
            catchup.release(db, model.model_id, [v.image for v in verdicts])  # also those of another revision by now

    return Source(
        claim=claim, settle=lambda work, result: _settle(begin, model, work, result), renew=renew, give_back=give_back
    )


def _claim(begin: Begin, model: Published, effort: Effort, *, first: bool, beside: bool = False) -> Work:
    """A batch of this model is ours, as far as throttle and hours allow; none while it is paused or new images wait."""
    with begin() as db:
        if model.model_id not in catchup.asking(db) or (not first and images.any_due(db)):
            return Work([], [])
        share(db, Lock.GENERATIONS)  # who publishes counts what is given up
        _give_up(db, model, effort)  # which locks images, before `allow` locks generations: as who settles
        limit = min((allow(db, one, effort.batch) for one in _building(db, model.model_id)), default=effort.batch)
        if limit == 0:
            return Work([], [])
        claimed = catchup.claim(
            db, model.model_id, limit=limit, lease_s=effort.lease_s, max_failures=effort.max_failures, beside=beside
        )
    return Work(claimed, [model])


def _give_up(db: Session, model: Published, effort: Effort) -> None:
    """What this model failed at too often is its exception, and nothing of its own stands of the bytes before."""
    if given_up := catchup.exhaust(db, model.model_id, effort.max_failures):
        encodings.drop_other_frames(db, model.model_id, given_up, kept=())
        ledger.withdraw(db, given_up, model.model_id)
        enqueue(db, Job.PROJECT)


def _building(db: Session, model_id: int) -> list[Generation]:
    """Those of the model that are still being built: pace and hours of one that stands hold up no other."""
    mine = [one for one in generations.every(db) if one.model_id == model_id and one.state == "open"]
    states = {one.id: operations.get(db, one.operation_id).state for one in mine if one.operation_id}
    return [one for one in mine if states.get(one.id) in ("pending", "running")]


def _settle(begin: Begin, model: Published, work: Work, result: Result) -> int:
    """The batch is written in one transaction, as far as it is still ours and of the same revision."""
    with begin() as db:
        share(db, Lock.GENERATIONS)
        ours = catchup.settle(db, model.model_id, result.verdicts)
        result.exceptions = [(model.model_id, v) for v in result.verdicts if v.status is not Status.ENCODED]
        result.thumbnails = []  # the picture is the live model's
        encode.write(db, work, result, ours)
        lost = [v.image for v in result.verdicts if v.image.id not in ours]
        catchup.release(db, model.model_id, lost)  # of another revision by now: due again at once
        enqueue(db, Job.PROJECT)
    return len(ours)
