"""Encode: claimed images become embeddings, codes and scores, or stop at a gate.

Decoding runs one batch ahead of the forward pass, in the sandbox. Nothing is written before the images are
settled under their fence; then everything about a batch is written in one transaction.
"""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as Pillow
from sqlalchemy.orm import Session

from shared.encoder.base import Encoded, Encoder
from shared.errors import Invalid, Rejected, Unavailable
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe
from shared.log import get
from shared.pipeline.lease import Keeper
from shared.store import encodings, generations, images, ledger
from shared.store.generations import Published
from shared.store.images import Claimed, Verdict
from shared.store.session import Begin, enqueue
from shared.types import Decoded, Job, Status, point_id

log = get(__name__)

RETRY_S = 20.0  #: an image that failed for our own or a passing reason waits so long, twice as long each time ...
MOST_RETRY_S = 600.0  #: ... up to this
PASSING = frozenset({Reason.UNREADABLE.value, Reason.SANDBOX.value})  #: a share that is away comes back


class Decoder(Protocol):
    """What encoding needs of the sandbox."""

    def decode_many(self, paths: Sequence[Path], recipe: Recipe) -> Iterator[Decoded | Rejected]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is claimed at once and for how long."""

    batch: int = 8
    lease_s: float = 10.0
    max_failures: int = 5  #: of one image by our own fault, before it is given up
    wedged_s: float = 300.0  #: a batch that takes longer is given up with its process


@dataclass
class Work:
    """One claimed batch on its way."""

    claimed: list[Claimed]
    models: list[Published]
    decoded: dict[Recipe, list[Decoded | Rejected]] = field(default_factory=dict)


class Holding:
    """The claims of this process, renewed together; a wedged batch ends the process."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self._held: dict[int, tuple[Claimed, float]] = {}
        self._lock = threading.Lock()

    def take(self, claimed: Sequence[Claimed]) -> None:
        with self._lock:
            self._held.update({c.id: (c, time.monotonic()) for c in claimed})

    def leave(self, claimed: Sequence[Claimed]) -> None:
        with self._lock:
            for c in claimed:
                self._held.pop(c.id, None)

    def claims(self) -> list[Claimed]:
        with self._lock:
            return [claimed for claimed, _ in self._held.values()]

    def renew(self, db: Session) -> None:
        with self._lock:
            oldest = min((since for _, since in self._held.values()), default=time.monotonic())
        if time.monotonic() - oldest > self.effort.wedged_s:
            log.error("worker_wedged", count=len(self.claims()))
            os._exit(70)  # a native call that never returns cannot be interrupted otherwise
        if claims := self.claims():
            images.renew(db, claims, self.effort.lease_s)


def drain(
    begin: Begin,
    sandbox: Decoder,
    encoder_of: Callable[[Published], Encoder],
    effort: Effort,
    budget_s: float = 20.0,
) -> int:
    """Due images have been settled until none was left or the budget was used; returns how many.

    The budget keeps one message short, so that stopping a worker is quick; whoever calls rings again. Whatever is
    claimed and not settled when an error ends this is given back.
    """
    until, settled, holding = time.monotonic() + budget_s, 0, Holding(effort)
    with Keeper(begin, effort.lease_s, holding.renew), ThreadPoolExecutor(1, "decode") as ahead:

        def start() -> Future[Work] | None:
            if time.monotonic() >= until:
                return None
            work = claim(begin, encoder_of, effort)
            holding.take(work.claimed)
            return ahead.submit(decode, sandbox, work) if work.claimed else None

        try:
            coming = start()
            while coming is not None:
                work = coming.result()
                coming = start()
                settled += settle(begin, work, forward(work, encoder_of))
                holding.leave(work.claimed)
        finally:
            if left := holding.claims():
                give_back(begin, left)
    return settled


def claim(begin: Begin, encoder_of: Callable[[Published], Encoder], effort: Effort) -> Work:
    """A batch is ours, and every model that it needs is loaded.

    Without an open generation nothing is claimed: the images wait for a model. Nor is anything while a model cannot
    be loaded here, which is this worker's fault and not the images'.
    """
    with begin() as db:
        models = list({p.model_id: p for p in generations.opened(db)}.values())
    for model in models:
        encoder_of(model)
    if not models:
        return Work([], [])
    with begin() as db:
        images.exhaust(db, effort.max_failures)
        claimed = images.claim(db, limit=effort.batch, lease_s=effort.lease_s, max_failures=effort.max_failures)
    return Work(claimed, models)


def give_back(begin: Begin, claimed: Sequence[Claimed]) -> None:
    """The images are due again at once, and it does not count against them; at worst their leases end."""
    try:
        with begin() as db:
            images.settle(db, [Verdict(image=c, status=Status.RECEIVED) for c in claimed])
    except Unavailable:
        log.warning("claims_not_given_back", count=len(claimed))


def decode(sandbox: Decoder, work: Work) -> Work:
    """Each file has been decoded once per different recipe."""
    paths = [Path(os.fsdecode(c.path)) for c in work.claimed]
    for model in work.models:
        recipe = recipe_of(model)
        if recipe not in work.decoded:
            work.decoded[recipe] = list(sandbox.decode_many(paths, recipe))
    return work


def recipe_of(model: Published) -> Recipe:
    return Recipe.from_json(model.card["recipe"])


@dataclass
class Result:
    """What is to be written of a batch, if it is still ours."""

    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[encodings.Row] = field(default_factory=list)
    thumbnails: list[tuple[int, bytes]] = field(default_factory=list)


def forward(work: Work, encoder_of: Callable[[Published], Encoder]) -> Result:
    """Gates 1 and 2, then one forward pass per model over all frames of the batch."""
    result = Result()
    good = [c for i, c in enumerate(work.claimed) if _admit(work, i, c, result)]
    by_id = {c.id: i for i, c in enumerate(work.claimed)}
    failed: set[int] = set()
    for model in work.models:
        parts = [(c, work.decoded[recipe_of(model)][by_id[c.id]]) for c in good if c.id not in failed]
        decoded = [(c, d) for c, d in parts if isinstance(d, Decoded)]
        for c, d, encoded in _encode(decoded, encoder_of, model):
            if isinstance(encoded, Encoded):
                result.rows += _rows(c, d, encoded, model)
            else:
                failed.add(c.id)
                result.verdicts.append(encoded)
    result.rows = [r for r in result.rows if r.image_id not in failed]
    for c in good:
        if c.id not in failed:
            result.verdicts.append(Verdict(image=c, status=Status.ENCODED))
            first = next(d for d in (ds[by_id[c.id]] for ds in work.decoded.values()) if isinstance(d, Decoded))
            result.thumbnails.append((c.id, _jpeg(first)))
    return result


def _admit(work: Work, position: int, claimed: Claimed, result: Result) -> bool:
    """One image passes decoding and gates 1 and 2, or has its verdict."""
    for recipe, decoded in work.decoded.items():
        one = decoded[position]
        stop = one if isinstance(one, Rejected) else metadata_gate(one.header, recipe) or pixel_gate(one.stats)
        if stop is not None:
            result.verdicts.append(_stopped(claimed, stop))
            if isinstance(one, Decoded):  # whoever reviews it needs a picture
                result.thumbnails.append((claimed.id, _jpeg(one)))
            return False
    return True


def _stopped(claimed: Claimed, stop: Rejected) -> Verdict:
    if stop.reason in PASSING:
        return _again(claimed, stop.reason, our_fault=False)
    gate = stop.gate.value if stop.gate else None
    return Verdict(image=claimed, status=Status(stop.outcome.value), gate=gate, reason=stop.reason)


def _again(claimed: Claimed, reason: str, *, our_fault: bool) -> Verdict:
    delay = min(RETRY_S * 2 ** min(claimed.attempt - 1, 10), MOST_RETRY_S)
    return Verdict(image=claimed, status=Status.RECEIVED, reason=reason, retry_after_s=delay, our_fault=our_fault)


def _encode(
    decoded: Sequence[tuple[Claimed, Decoded]], encoder_of: Callable[[Published], Encoder], model: Published
) -> Iterator[tuple[Claimed, Decoded, Encoded | Verdict]]:
    """One pass over all frames; if that fails, one image at a time, so that each answers for itself."""
    if not decoded:
        return
    encoder = encoder_of(model)
    try:
        whole = encoder.encode(np.concatenate([d.pixels for _, d in decoded]))
    except Exception:
        log.warning("batch_failed", count=len(decoded), exc_info=True)
        for c, d in decoded:
            yield c, d, _encode_one(encoder, c, d)
        return
    start = 0
    for c, d in decoded:
        stop = start + len(d.pixels)
        yield c, d, _cut(whole, slice(start, stop))
        start = stop


def _encode_one(encoder: Encoder, claimed: Claimed, decoded: Decoded) -> Encoded | Verdict:
    try:
        return encoder.encode(decoded.pixels)
    except Invalid:
        return Verdict(image=claimed, status=Status.FAILED, reason=Reason.BAD_EMBEDDING)
    except Exception:
        log.warning("image_failed", image_id=claimed.id, attempt=claimed.attempt, exc_info=True)
        return _again(claimed, Reason.ENCODER_ERROR, our_fault=True)


def _cut(whole: Encoded, part: slice) -> Encoded:
    return Encoded(
        embeddings=whole.embeddings[part],
        codes=None if whole.codes is None else whole.codes[part],
        ood=None if whole.ood is None else whole.ood[part],
        runtime=whole.runtime,
    )


def _rows(claimed: Claimed, decoded: Decoded, encoded: Encoded, model: Published) -> list[encodings.Row]:
    runtime = describe(encoded.runtime)
    return [
        encodings.Row(
            image_id=claimed.id,
            frame=frame,
            model_id=model.model_id,
            embedding=encoded.embeddings[i],
            code=None if encoded.codes is None else encoded.codes[i].tobytes(),
            ood=None if encoded.ood is None else float(encoded.ood[i]),
            runtime=runtime,
        )
        for i, frame in enumerate(decoded.frames)
    ]


def describe(runtime: Mapping[str, str] | None) -> str:
    return " ".join((runtime or {}).values())


def _jpeg(decoded: Decoded) -> bytes:
    """A thumbnail that we encode ourselves; nothing of the file's own bytes is passed on."""
    out = io.BytesIO()
    Pillow.fromarray(decoded.thumbnail).save(out, "JPEG", quality=85)
    return out.getvalue()


def settle(begin: Begin, work: Work, result: Result) -> int:
    """The batch is written in one transaction, as far as it is still ours; returns how many images were."""
    with begin() as db:
        ours = images.settle(db, result.verdicts)
        rows = [r for r in result.rows if r.image_id in ours]
        encodings.save(db, rows)
        encodings.save_thumbnails(db, [t for t in result.thumbnails if t[0] in ours])
        _post(db, work, rows, ours)
        lost_place = [
            v.image.id
            for v in result.verdicts
            if v.image.id in ours and v.status not in (Status.ENCODED, Status.RECEIVED)
        ]
        ledger.withdraw(db, lost_place)  # an image that was searchable and no longer belongs
        enqueue(db, Job.PROJECT)
    if len(ours) < len(result.verdicts):
        log.info("claims_lost", count=len(result.verdicts) - len(ours))
    return len(ours)


def _post(db: Session, work: Work, rows: Sequence[encodings.Row], revisions: Mapping[int, int]) -> None:
    """Every open generation of each model is told what it must hold now."""
    uids = {c.id: c.sop_uid for c in work.claimed}
    for model in work.models:
        mine = [r for r in rows if r.model_id == model.model_id]
        entries = [
            ledger.Entry(point_id(uids[r.image_id], r.frame), r.image_id, r.frame, revisions[r.image_id]) for r in mine
        ]
        kept = [(r.image_id, r.frame) for r in mine]
        gone = encodings.drop_other_frames(db, model.model_id, sorted({i for i, _ in kept}), kept)
        entries += [ledger.Entry(point_id(uids[i], frame), i, frame, revisions[i], "delete") for i, frame in gone]
        ledger.post(db, model.model_id, entries)
