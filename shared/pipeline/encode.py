"""Encode: claimed images become embeddings, codes and scores, or stop at a gate.

Decoding runs one batch ahead of the forward pass, in the sandbox. Nothing is written until the batch is settled; then
everything about the images whose claims are still held (the fence) is written in one transaction.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol

from sqlalchemy.orm import Session

from shared.encoder.base import Encoder
from shared.errors import Gate, Invalid, NotFound, Unavailable
from shared.imaging.reasons import LOST, PASSING, Reason
from shared.log import get
from shared.pipeline import quarantine
from shared.pipeline.batch import Decoder, Result, Work, again, decode, forward
from shared.pipeline.judge import judge_image, standards
from shared.pipeline.lease import Keeper
from shared.store import calibrations, catchup, encodings, files, generations, images, ledger
from shared.store.generations import Published
from shared.store.images import Claimed, Verdict
from shared.store.locks import Lock, share
from shared.store.session import Begin, enqueue
from shared.types import Job, Status, point_id

log = get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a worker claims at once, for how long, and when it gives up."""

    batch: int = 8
    lease_s: float = 10.0
    max_failures: int = 5  #: attempts that fail by errors of Similis, before the image is given up
    wedged_s: float = 300.0  #: a batch without progress for longer ends the process


class Source(Protocol):
    """Where batches come from, and where their results go."""

    def claim(self, *, beside: bool = False) -> Work:
        """Claim a batch; `beside` another one, none that a lost worker left behind."""

    def settle(self, work: Work, result: Result) -> int:
        """Write the images whose claims are still held, in one transaction; return how many."""

    def renew(self, db: Session, claimed: Sequence[Claimed]) -> None: ...

    def give_back(self, verdicts: Sequence[Verdict]) -> None:
        """Make the images due again, and write nothing else about them; each verdict has the status `received`."""


class Holding:
    """The claims of this process, renewed together; a batch that hangs ends the process."""

    def __init__(self, effort: Effort, source: Source) -> None:
        self.effort, self._source = effort, source
        self._held: list[Work] = []  # by time of claim: those behind the first are decoded ahead, then wait
        self._lock = threading.Lock()

    def take(self, work: Work) -> None:
        with self._lock:
            self._held.append(work)

    def leave(self, work: Work) -> None:
        with self._lock:
            self._held.remove(work)

    def works(self) -> list[Work]:
        with self._lock:
            return list(self._held)

    def claims(self) -> list[Claimed]:
        return [c for work in self.works() for c in work.claimed]

    def renew(self, db: Session) -> None:
        works = self.works()
        busy = [work for place, work in enumerate(works) if place == 0 or not work.read]
        if wedged := [work for work in busy if time.monotonic() - work.moved > self.effort.wedged_s]:
            unread = [c for work in wedged if not work.read for c in work.claimed]
            beside = [c for work in works if work not in wedged for c in work.claimed]
            log.error("worker_wedged", count=len(self.claims()), reason=Reason.UNREADABLE.value if unread else None)
            self._end(unread, beside)
        if claims := self.claims():
            self._source.renew(db, claims)

    def _end(self, unread: Sequence[Claimed], beside: Sequence[Claimed]) -> NoReturn:
        """End the process: a native call that never returns cannot be interrupted otherwise.

        Before that, images that were still being read are given back with a back-off, as their share may hang, and
        images of other batches without one. If the call returns meanwhile, the fence decides which result counts.
        """
        late = threading.Timer(self.effort.lease_s, os._exit, (70,))  # the database may hang, too
        late.daemon = True
        late.start()
        try:
            at_once = [Verdict(image=c, status=Status.RECEIVED) for c in beside]
            self._source.give_back([again(c, Reason.UNREADABLE, our_fault=False) for c in unread] + at_once)
        finally:
            os._exit(70)


def drain(
    begin: Begin,
    sandbox: Decoder,
    encoder_of: Callable[[Published], Encoder],
    effort: Effort,
    budget_s: float = 20.0,
) -> int:
    """Encode due images until none is left or `budget_s` is used up; return how many were settled."""
    intake = Intake(begin, encoder_of, effort)
    done = work_off(begin, intake, sandbox, encoder_of, effort, budget_s)
    for reason, count in intake.put_back.items():  # not for each batch: a share may be away with a million images
        log.warning("images_put_back", reason=reason, count=count)
    return done


def work_off(
    begin: Begin,
    source: Source,
    sandbox: Decoder,
    encoder_of: Callable[[Published], Encoder],
    effort: Effort,
    budget_s: float,
) -> int:
    """Settle batches of the source until none comes or `budget_s` is used up; return how many images.

    The budget keeps one task short, so that a worker stops quickly; the caller sends the message again. If an error
    ends this, claims that are not settled are given back.
    """
    until, settled, holding = time.monotonic() + budget_s, 0, Holding(effort, source)
    with Keeper(begin, effort.lease_s, holding.renew), ThreadPoolExecutor(1, "decode") as ahead:

        def start() -> Future[Work] | None:
            if time.monotonic() >= until:
                return None
            work = source.claim(beside=bool(holding.works()))
            if not work.claimed:
                return None
            holding.take(work)
            return ahead.submit(decode, sandbox, work)

        try:
            coming = start()
            while coming is not None:
                work = coming.result()
                coming = None if work.alone else start()
                settled += source.settle(work, forward(work, encoder_of))
                holding.leave(work)
                if work.alone:
                    coming = start()
        finally:
            if left := holding.claims():
                try:
                    source.give_back([Verdict(image=c, status=Status.RECEIVED) for c in left])  # due at once
                except Unavailable:  # their leases will end; the first error is the one to raise
                    log.warning("claims_not_given_back", count=len(left))
    return settled


def give_up(db: Session, effort: Effort) -> None:
    """Mark as `failed` the images on which Similis failed too often, and forget what was made of earlier bytes."""
    if given_up := images.exhaust(db, effort.max_failures):
        quarantine.forget(db, given_up)


def loads(encoder_of: Callable[[Published], Encoder], model: Published, *, needed: bool = False) -> bool:
    """Whether the model can be loaded here; a `needed` one that cannot raises `NotFound` or `Invalid`."""
    try:
        encoder_of(model)
    except (NotFound, Invalid):
        if needed:
            raise
        log.warning("model_not_loaded", fingerprint=model.fingerprint, exc_info=True)
        return False
    return True


@dataclass(frozen=True, slots=True)
class Intake:
    """The `Source` of images that the live model has not judged yet; other open models encode them in the same pass."""

    begin: Begin
    encoder_of: Callable[[Published], Encoder]
    effort: Effort
    put_back: Counter[str | None] = field(default_factory=Counter)  #: images that are due again, by reason

    def claim(self, *, beside: bool = False) -> Work:
        """Load every model with an open generation and claim a batch.

        Without an open generation nothing is claimed: the images wait for a model. Another model than the live one that
        cannot be loaded here is left to catch-up.

        Raises: `NotFound`, `Invalid` if the live model cannot be loaded: this worker's fault, so nothing is claimed.
        """
        with self.begin() as db:
            opened = list({p.model_id: p for p in generations.opened(db)}.values())
        models = [model for i, model in enumerate(opened) if loads(self.encoder_of, model, needed=i == 0)]
        if not models:
            return Work([], [])
        effort = self.effort
        with self.begin() as db:
            give_up(db, effort)
            claimed = images.claim(
                db, limit=effort.batch, lease_s=effort.lease_s, max_failures=effort.max_failures, beside=beside
            )
        return Work(claimed, models)

    def settle(self, work: Work, result: Result) -> int:
        with self.begin() as db:
            share(db, Lock.GENERATIONS)  # no generation is opened unseen until the commit
            result.verdicts = _feature_gate(db, work.models[0], result)
            ours = images.settle(db, result.verdicts)
            lost_place = [
                v.image.id
                for v in result.verdicts
                if v.image.id in ours and v.status not in (Status.ENCODED, Status.RECEIVED)
            ]
            quarantine.forget(db, lost_place)  # made of earlier bytes; what a reviewer may release is written below
            encoded = [v.image.id for v in result.verdicts if v.image.id in ours and v.status is Status.ENCODED]
            encodings.forget_closed(db, encoded)  # of earlier bytes: these models do not encode the new ones
            write(db, work, result, ours)
            _hand_over(db, work, result, encoded)
            enqueue(db, Job.PROJECT)
        if len(ours) < len(result.verdicts):
            log.info("claims_lost", count=len(result.verdicts) - len(ours))
        stopped = [v for v in result.verdicts if v.image.id in ours and v.status in (Status.QUARANTINED, Status.FAILED)]
        for (outcome, gate, reason), count in Counter((v.status.value, v.gate, v.reason) for v in stopped).items():
            log.info("images_stopped", outcome=outcome, gate=gate, reason=reason, count=count)
        self.put_back.update(v.reason for v in result.verdicts if v.status is Status.RECEIVED)
        return len(ours)

    def renew(self, db: Session, claimed: Sequence[Claimed]) -> None:
        images.renew(db, claimed, self.effort.lease_s)

    def give_back(self, verdicts: Sequence[Verdict]) -> None:
        with self.begin() as db:
            images.settle(db, verdicts)


def _feature_gate(db: Session, model: Published, result: Result) -> list[Verdict]:
    """Apply gate 3 in the settling transaction: a new threshold is ordered before or after each judgement."""
    frames: dict[int, list[encodings.Row]] = {}
    for row in result.rows:
        if row.model_id == model.model_id:
            frames.setdefault(row.image_id, []).append(row)
    modalities = calibrations.modalities(db, list(frames)) if frames else {}
    in_force = standards(db, model.model_id, set(modalities.values())) if frames else {}
    verdicts = []
    for verdict in result.verdicts:
        found = verdict
        if verdict.status is Status.ENCODED:
            rows = frames[verdict.image.id]
            standard = in_force.get(modalities.get(verdict.image.id, ""))
            packed = (encodings.pack(row.embedding) for row in rows)
            own = judge_image([row.ood for row in rows], packed, standard)
            found = replace(verdict, score=own.score, distance=own.distance, calibration_id=own.calibration_id)
            if own.reason is not None and not verdict.image.released:
                found = replace(found, status=Status.QUARANTINED, gate=Gate.FEATURES.value, reason=own.reason.value)
        verdicts.append(found)
    return verdicts


def write(db: Session, work: Work, result: Result, revisions: Mapping[int, int]) -> None:
    """Write encodings, thumbnails and ledger rows of the images in `revisions` (image id -> revision).

    A stopped image keeps its encodings, so that it can be released without another pass, but gets no ledger row.
    """
    shown = {v.image.id for v in result.verdicts if v.status is Status.ENCODED}
    rows = [r for r in result.rows if r.image_id in revisions]
    encodings.save(db, rows)
    encodings.save_thumbnails(db, [t for t in result.thumbnails if t[0] in revisions])
    said = [v for v in (*result.verdicts, *(v for _, v in result.exceptions)) if v.image.id in revisions]
    lost = [v.image.id for v in said if v.reason in LOST]
    files.reread_images(db, lost)
    elsewhere = images.elsewhere(db, lost)
    if elsewhere:  # the file at their path no longer counts as theirs, so that each is tried once
        files.mark_missing(db, files.numbers(db, list(elsewhere.values())))
        images.due_again(db, elsewhere)
        catchup.found_again(db, list(elsewhere))
        enqueue(db, Job.ENCODE)
        enqueue(db, Job.CATCH_UP)
    images.try_another_file(db, [*elsewhere, *(v.image.id for v in said if v.reason in PASSING)])
    uids = {c.id: c.sop_uid for c in work.claimed}
    failed = {(m, v.image.id) for m, v in result.exceptions if v.status is not Status.RECEIVED}
    for model in work.models:
        mine = [r for r in rows if r.model_id == model.model_id]
        entries = [
            ledger.Entry(point_id(uids[r.image_id], r.frame), r.image_id, r.frame, revisions[r.image_id])
            for r in mine
            if r.image_id in shown
        ]
        kept = [(r.image_id, r.frame) for r in mine]
        looked_at = {i for i, _ in kept} | {i for m, i in failed if m == model.model_id and i in revisions}
        gone = encodings.drop_other_frames(db, model.model_id, sorted(looked_at), kept)
        entries += [ledger.Entry(point_id(uids[i], frame), i, frame, revisions[i], "delete") for i, frame in gone]
        ledger.post(db, model.model_id, entries)  # into every open generation of this model


def _hand_over(db: Session, work: Work, result: Result, encoded: Sequence[int]) -> None:
    """Queue for catch-up what open models have not encoded of these images, or record their exceptions."""
    catchup.drop(db, encoded, [model.model_id for model in work.models])
    late = {p.model_id for p in generations.opened(db)} - {model.model_id for model in work.models}
    mine = [(model, verdict) for model, verdict in result.exceptions if verdict.image.id in set(encoded)]
    again = [(model, v.image.id) for model, v in mine if v.status is Status.RECEIVED]
    catchup.add(
        db,
        due=[*again, *((model, image) for model in sorted(late) for image in encoded)],
        failed=[(model, v.image.id, v.reason or v.status) for model, v in mine if v.status is not Status.RECEIVED],
    )
    if late or again:
        enqueue(db, Job.CATCH_UP)
