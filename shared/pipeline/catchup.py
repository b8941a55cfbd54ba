"""Catch-up: encode the images that a model has not encoded yet, beside intake and with the same code.

Only that model's encodings are written, fenced by the claim and by the image's revision. New images come first:
while some are due, each call encodes one batch per model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from shared.encoder.base import Encoder
from shared.pipeline import encode
from shared.pipeline.batch import Decoder, Result, Work
from shared.pipeline.encode import Effort
from shared.pipeline.pace import allow
from shared.store import catchup, encodings, generations, images, ledger, operations
from shared.store.generations import Published
from shared.store.images import Claimed, Verdict
from shared.store.locks import Lock, share
from shared.store.session import Begin, enqueue
from shared.store.tables import Generation
from shared.types import UNDER_WAY, Job, Status


def drain(
    begin: Begin,
    sandbox: Decoder,
    encoder_of: Callable[[Published], Encoder],
    effort: Effort,
    budget_s: float = 20.0,
) -> int:
    """Encode the images that each model has to catch up on, or record why not; return how many were settled.

    Each model gets an equal share of `budget_s`, except those that cannot be loaded here: they wait.
    """
    with begin() as db:
        asking = set(catchup.asking(db))
        models = {p.model_id: p for p in generations.opened(db) if p.model_id in asking}
    loaded = [model for model in models.values() if encode.loads(encoder_of, model)]
    return sum(
        encode.work_off(begin, CatchUp(begin, model, effort), sandbox, encoder_of, effort, budget_s / len(loaded))
        for model in loaded
    )


@dataclass(slots=True)
class CatchUp:
    """The `Source` of images that this model has not encoded yet.

    While new images are due, only its first batch is claimed.
    """

    begin: Begin
    model: Published
    effort: Effort
    claims: int = 0  #: so far

    def claim(self, *, beside: bool = False) -> Work:
        """Claim a batch, within throttle and hours; none while the model is paused."""
        first, self.claims = self.claims == 0, self.claims + 1
        model, effort = self.model, self.effort
        with self.begin() as db:
            if model.model_id not in catchup.asking(db) or (not first and images.any_due(db)):
                return Work([], [])
            share(db, Lock.GENERATIONS)  # a publish counts what is given up here
            _give_up(db, model, effort)  # locks images before `allow` locks generations, as `settle` does
            limit = min((allow(db, one, effort.batch) for one in _building(db, model.model_id)), default=effort.batch)
            if limit == 0:
                return Work([], [])
            claimed = catchup.claim(
                db, model.model_id, limit=limit, lease_s=effort.lease_s, max_failures=effort.max_failures, beside=beside
            )
        return Work(claimed, [model])

    def settle(self, work: Work, result: Result) -> int:
        """Write the images whose claim is held and whose revision is unchanged, in one transaction; return how many."""
        model_id = self.model.model_id
        with self.begin() as db:
            share(db, Lock.GENERATIONS)
            ours = catchup.settle(db, model_id, result.verdicts)
            result.exceptions = [(model_id, v) for v in result.verdicts if v.status is not Status.ENCODED]
            result.thumbnails = []  # the live model writes them
            encode.write(db, work, result, ours)
            lost = [v.image for v in result.verdicts if v.image.id not in ours]
            catchup.release(db, model_id, lost)  # their revision changed: due again at once
            enqueue(db, Job.PROJECT)
        return len(ours)

    def renew(self, db: Session, claimed: Sequence[Claimed]) -> None:
        catchup.renew(db, self.model.model_id, claimed, self.effort.lease_s)

    def give_back(self, verdicts: Sequence[Verdict]) -> None:
        with self.begin() as db:
            catchup.release(db, self.model.model_id, [v.image for v in verdicts])  # also those whose revision changed
            catchup.settle(db, self.model.model_id, [v for v in verdicts if v.reason])


def _give_up(db: Session, model: Published, effort: Effort) -> None:
    """Record images on which this model failed too often as its exceptions, and drop its encodings of earlier bytes."""
    if given_up := catchup.exhaust(db, model.model_id, effort.max_failures):
        encodings.drop_other_frames(db, model.model_id, given_up, kept=())
        ledger.withdraw(db, given_up, model.model_id)
        enqueue(db, Job.PROJECT)


def _building(db: Session, model_id: int) -> list[Generation]:
    """Return the model's generations that are being built: throttle and hours of others do not count."""
    mine = [one for one in generations.every(db) if one.model_id == model_id and one.state == "open"]
    states = {one.id: operations.get(db, one.operation_id).state for one in mine if one.operation_id}
    return [one for one in mine if states.get(one.id) in UNDER_WAY]
