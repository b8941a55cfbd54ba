"""Run one batch of claimed images through the decoder, gates 1 and 2 and the open models, without the database.

The live model alone judges an image: by gates 1 and 2 before the forward pass, by gate 3 when the batch is settled.
If another open model cannot encode the image, that is an exception of that model and has no effect elsewhere.
"""

import io
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as Pillow

from shared.encoder.base import Encoded, Encoder
from shared.errors import Invalid, Rejected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.reasons import PASSING, Reason
from shared.imaging.recipe import Recipe
from shared.log import get
from shared.pipeline import original
from shared.pipeline.receive import Inspector
from shared.store import encodings
from shared.store.generations import Published
from shared.store.images import Claimed, Verdict
from shared.types import Decoded, Status

log = get(__name__)

RETRY_S = 20.0  #: back-off after an error of Similis or a transient failure, doubled each time ...
MOST_RETRY_S = 600.0  #: ... up to this


class Decoder(Inspector, Protocol):
    """What encoding needs of the sandbox."""

    def decode_many(self, paths: Sequence[Path], recipe: Recipe) -> Generator[Decoded | Rejected]: ...


@dataclass(eq=False)
class Work:
    """One claimed batch in progress."""

    claimed: list[Claimed]
    models: list[Published]  #: the first is the live model, which judges
    decoded: dict[Recipe, list[Decoded | Rejected]] = field(default_factory=dict)
    moved: float = field(default_factory=time.monotonic)  #: time of the last progress, by `time.monotonic`
    read: bool = False  #: all files are decoded and no longer needed

    def moves(self) -> None:
        """Record progress: several slow files, each within its limit, are not a hang."""
        self.moved = time.monotonic()

    @property
    def alone(self) -> bool:
        """Whether one of its images may have killed its last worker: then no other batch is held meanwhile."""
        return any(c.left_behind for c in self.claimed)


@dataclass
class Result:
    """What to write about a batch, for the claims that are still held."""

    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[encodings.Row] = field(default_factory=list)
    thumbnails: list[tuple[int, bytes]] = field(default_factory=list)
    exceptions: list[tuple[int, Verdict]] = field(default_factory=list)  #: (model, its verdict on a passed image)


def decode(sandbox: Decoder, work: Work) -> Work:
    """Decode each file once per distinct recipe; a file that changed since it was registered gets that reason."""
    paths = [Path(os.fsdecode(c.path)) for c in work.claimed]
    for model in work.models:
        recipe = recipe_of(model)
        if recipe not in work.decoded:
            answers = []
            for answer in sandbox.decode_many(paths, recipe):
                work.moves()
                answers.append(answer)
            work.decoded[recipe] = original.confirmed(sandbox, work.claimed, answers, work.moves)
    work.read = True
    return work


def recipe_of(model: Published) -> Recipe:
    return Recipe.from_json(model.card["recipe"])


def forward(work: Work, encoder_of: Callable[[Published], Encoder]) -> Result:
    """Apply gates 1 and 2, then run one forward pass per model over all frames of the batch."""
    result = Result()
    work.moves()
    judge, *others = work.models
    passed: set[int] = set()
    for c, decoded, found in _through(work, judge, encoder_of):
        if isinstance(decoded, Decoded):  # reviewers of stopped images need a picture, too
            result.thumbnails.append((c.id, _jpeg(decoded)))
        if isinstance(found, Verdict):
            result.verdicts.append(found)
        else:
            passed.add(c.id)
            result.rows += found
            result.verdicts.append(Verdict(image=c, status=Status.ENCODED))
    for model in others:
        for _, _, found in _through(work, model, encoder_of, passed):
            if isinstance(found, Verdict):
                result.exceptions.append((model.model_id, found))
            else:
                result.rows += found
    return result


def _through(
    work: Work, model: Published, encoder_of: Callable[[Published], Encoder], only: set[int] | None = None
) -> Iterator[tuple[Claimed, Decoded | Rejected, list[encodings.Row] | Verdict]]:
    """Run the images, or those in `only`, through one model; yield each one's rows or the verdict that stopped it."""
    recipe, good = recipe_of(model), []
    for c, decoded in zip(work.claimed, work.decoded[recipe], strict=True):
        if only is not None and c.id not in only:
            continue
        if isinstance(decoded, Rejected):
            yield c, decoded, _stopped(c, decoded)
        elif not c.released and (stop := metadata_gate(decoded.header, recipe) or pixel_gate(decoded.stats)):
            yield c, decoded, _stopped(c, stop)
        else:
            good.append((c, decoded))
    for c, d, encoded in _encode(good, encoder_of, model):
        yield c, d, encoded if isinstance(encoded, Verdict) else _rows(c, d, encoded, model)


def _stopped(claimed: Claimed, stop: Rejected) -> Verdict:
    if stop.reason in PASSING:
        return again(claimed, stop.reason, our_fault=False)
    gate = stop.gate.value if stop.gate else None
    return Verdict(image=claimed, status=Status(stop.outcome.value), gate=gate, reason=stop.reason)


def again(claimed: Claimed, reason: str, *, our_fault: bool) -> Verdict:
    """Return the verdict that makes the image due again after a back-off."""
    delay = min(RETRY_S * 2 ** min(claimed.waited, 10), MOST_RETRY_S)
    return Verdict(image=claimed, status=Status.RECEIVED, reason=reason, retry_after_s=delay, our_fault=our_fault)


def _encode(
    decoded: Sequence[tuple[Claimed, Decoded]], encoder_of: Callable[[Published], Encoder], model: Published
) -> Iterator[tuple[Claimed, Decoded, Encoded | Verdict]]:
    """Encode all frames in one pass; if that fails, image by image, so that only the faulty ones fail."""
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
        return again(claimed, Reason.ENCODER_ERROR, our_fault=True)


def _cut(whole: Encoded, part: slice) -> Encoded:
    return Encoded(
        embeddings=whole.embeddings[part],
        codes=None if whole.codes is None else whole.codes[part],
        ood=None if whole.ood is None else whole.ood[part],
        runtime=whole.runtime,
    )


def _rows(claimed: Claimed, decoded: Decoded, encoded: Encoded, model: Published) -> list[encodings.Row]:
    runtime = " ".join((encoded.runtime or {}).values())
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


def _jpeg(decoded: Decoded) -> bytes:
    """Encode the thumbnail as a new JPEG; none of the file's own bytes are passed on."""
    out = io.BytesIO()
    Pillow.fromarray(decoded.thumbnail).save(out, "JPEG", quality=85)
    return out.getvalue()
