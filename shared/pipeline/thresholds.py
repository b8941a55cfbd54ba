"""Thresholds of gate 3: made from scores of known images, put in force, and replayed on what is stored.

A threshold belongs to one model and one modality. Putting one in force judges what comes; a replay judges, with the
same function, what is stored: first as a plan that changes nothing, then chunk by chunk as an operation.
"""

import json
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from shared.encoder import ood
from shared.encoder.cards import Card
from shared.encoder.ood import Rule
from shared.errors import Conflict, Invalid
from shared.imaging.reasons import Reason
from shared.pipeline import quarantine
from shared.pipeline.judge import judge, statistic
from shared.pipeline.lease import Keeper
from shared.store import calibrations, generations, operations, reviews
from shared.store.calibrations import Chosen, Scored, Threshold
from shared.store.images import check_move
from shared.store.locks import Lock, share
from shared.store.operations import Held
from shared.store.reviews import Actor
from shared.store.session import Begin, enqueue
from shared.store.tables import Calibration, Model, Operation
from shared.types import Job, Status

LEASE_S = 30.0
CHUNK = 500  #: images judged in one transaction


def bring(db: Session, model_id: int, card: Card) -> None:
    """What the card calibrates is in force, unless the archive has something of its own or had it brought before."""
    known = calibrations.in_force(db, model_id)
    for modality, one in sorted(card.calibrations.items()):
        if modality not in known:
            calibrations.add(db, model_id, modality, "card", None, **_columns(one))


def _columns(one: ood.Calibration) -> dict[str, Any]:
    return asdict(one) | {"quantiles": dict(one.quantiles)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of a call to calibrate; `skipped` and `left_out` count images, by modality."""

    calibrations: tuple[Calibration, ...]
    skipped: dict[str, int]  #: modalities with too few scores
    left_out: dict[str, int]  #: stopped by gate 3: not taken for known, so a threshold made again can only sink


def calibrate(
    db: Session,
    model: Model,
    actor: Actor,
    rule: Rule = "mean+3sd",
    *,
    modality: str | None = None,
    operation_id: uuid.UUID | None = None,
    folder: Path | None = None,
) -> Made:
    """From the stored scores of encoded images; it judges from the commit on, and changes nothing that is stored.

    Raises: `Invalid` where the named modality, or every one, has too few scores.
    """
    made, skipped, left_out = [], {}, {}
    for one in [modality] if modality is not None else calibrations.scored_modalities(db, model.id):
        chosen = Chosen(modality=one, operation_id=operation_id, folder=_prefix(folder))
        known, stopped = _known(calibrations.every_scored(db, model.id, chosen))
        if stopped:
            left_out[one] = stopped
        if len(known) < ood.MIN_SCORES:
            skipped[one] = len(known)
            continue
        made.append(calibrations.add(db, model.id, one, "archive", actor.name, **_columns(_made(known, rule))))
        said = {"calibration": made[-1].id, "model": model.name, "modality": one, "rule": rule}
        reviews.audit(db, actor, "calibrate", said)
    if not made:
        raise Invalid(
            f"a calibration takes at least {ood.MIN_SCORES} scores of encoded images; "
            f"{model.name} has {max(skipped.values(), default=0)}"
        )
    return Made(calibrations=tuple(made), skipped=skipped, left_out=left_out)


def _prefix(folder: Path | None) -> bytes | None:
    return None if folder is None else os.fsencode(folder).rstrip(b"/") + b"/"


def _known(rows: Iterable[Scored]) -> tuple[list[tuple[str, float]], int]:
    """(name, score) of images that are taken for known, and how many gate 3 had stopped."""
    known, stopped = [], 0
    for row in rows:
        score = statistic(row.frames)
        if row.status != Status.ENCODED:
            stopped += 1
        elif score is not None and math.isfinite(score):
            known.append((row.digest.hex(), score))
    return known, stopped


def _made(known: Sequence[tuple[str, float]], rule: Rule) -> ood.Calibration:
    return ood.calibrate([score for _, score in known], ood.data_digest(name for name, _ in known), rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which threshold is replayed: at most one of these; none means the one in force."""

    threshold: float | None = None
    rule: Rule | None = None  #: from the scores that are stored now
    calibration_id: int | None = None  #: an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A threshold, and its row if it is to be put in force again or for the first time."""

    threshold: float
    source: str
    columns: dict[str, Any]
    calibration_id: int | None = None  #: it is in force already


def propose(db: Session, model: Model, modality: str, choice: Choice) -> Proposal:
    """Raises: `Invalid` for more than one choice, `NotFound`, `Conflict` for another model's or modality's."""
    named = [one for one in (choice.threshold, choice.rule, choice.calibration_id) if one is not None]
    if len(named) > 1:
        raise Invalid("name one of a threshold, a rule and a calibration")
    now = calibrations.in_force(db, model.id).get(modality)
    if choice.rule is not None:
        columns, source = _columns(_made(_stored(db, model, modality), choice.rule)), "archive"
    elif choice.threshold is not None:
        columns, source = _given(_stored(db, model, modality), choice.threshold), "given"
    else:
        columns, source = _earlier(db, model, modality, choice.calibration_id or (now.calibration_id if now else None))
    same = now is not None and now.threshold == columns["threshold"]
    number = now.calibration_id if now is not None and same else None
    return Proposal(threshold=columns["threshold"], source=source, columns=columns, calibration_id=number)


def _stored(db: Session, model: Model, modality: str) -> list[tuple[str, float]]:
    return _known(calibrations.every_scored(db, model.id, Chosen(modality=modality)))[0]


def _earlier(db: Session, model: Model, modality: str, number: int | None) -> tuple[dict[str, Any], str]:
    if number is None:
        raise Conflict("no calibration of this model is in force for this modality: name a threshold or a rule")
    row = calibrations.get(db, number)
    if (row.model_id, row.modality) != (model.id, modality):
        raise Conflict(f"calibration {row.id} is of another model or modality: a threshold belongs to one")
    names = ("rule", "threshold", "mean", "std", "quantiles", "n", "data_sha256")
    return {name: getattr(row, name) for name in names}, row.source


def _given(known: Sequence[tuple[str, float]], threshold: float) -> dict[str, Any]:
    """A person's threshold, beside the numbers of what is stored, as far as there are enough."""
    if not math.isfinite(threshold):
        raise Invalid("a threshold is a number")
    if len(known) >= ood.MIN_SCORES:
        return _columns(_made(known, "mean+3sd")) | {"rule": "given", "threshold": threshold}
    digest = ood.data_digest(name for name, _ in known)
    return {
        "rule": "given",
        "threshold": threshold,
        "mean": None,
        "std": None,
        "quantiles": {},
        "n": len(known),
        "data_sha256": digest,
    }


@dataclass(frozen=True, slots=True)
class Flip:
    """An image whose place another threshold changes."""

    image_id: int
    sop_uid: str
    score: float | None


@dataclass(kw_only=True)
class Plan:
    """What a replay would change; the lists hold the first `shown` images of each way, by id."""

    threshold: float
    counts: Counter[str] = field(default_factory=Counter)  #: stop, admit, stay, decided, unmeasured
    stop: list[Flip] = field(default_factory=list)  #: searchable now
    admit: list[Flip] = field(default_factory=list)  #: in the quarantine now


def plan(db: Session, model: Model, modality: str, threshold: float, shown: int = 100) -> Plan:
    """What would flip if this threshold were replayed now; nothing is changed."""
    found = Plan(threshold=threshold)
    for row in calibrations.every_scored(db, model.id, Chosen(modality=modality)):
        way, score = _way(row, threshold)
        found.counts[way] += 1
        flips = {"stop": found.stop, "admit": found.admit}.get(way)
        if flips is not None and len(flips) < shown:
            flips.append(Flip(row.image_id, row.sop_uid, score))
    return found


def _way(row: Scored, threshold: float) -> tuple[str, float | None]:
    """Where this threshold leads an image: the one rule of plan and replay."""
    if row.decided:
        return "decided", None
    own = judge(statistic(row.frames), Threshold(0, threshold))
    if own.word == "unmeasured":
        return "unmeasured", None
    if own.stops == (row.status == Status.QUARANTINED):
        return "stay", own.score
    return ("stop" if own.stops else "admit"), own.score


def begin_replay(db: Session, model: Model, modality: str, found: Proposal, actor: Actor) -> Operation:
    """The proposed threshold is in force, and the operation that judges what is stored by it is due.

    Raises: `Conflict` for a model that is not published, which judges nothing.
    """
    live = generations.published(db)
    if live is None or live.model_id != model.id:
        raise Conflict("only the published model judges: publish it, then replay its threshold")
    number = found.calibration_id
    if number is None:
        number = calibrations.add(db, model.id, modality, found.source, actor.name, **found.columns).id
    params = {"calibration": number, "model": model.name, "modality": modality}
    operation = operations.create(db, "replay", params)
    operation.total = calibrations.judged_again(db, modality)
    reviews.audit(db, actor, "replay", params | {"threshold": found.threshold})
    enqueue(db, Job.REPLAY)
    return operation


def advance(
    begin: Begin, *, chunk: int = CHUNK, budget_s: float = 20.0, alive: Callable[[], None] = lambda: None
) -> bool:
    """One due replay has got on; True: call again, there may be more to do."""
    with begin() as db:
        held = operations.claim(db, "replay", LEASE_S)
    if held is None:
        return False
    until = time.monotonic() + budget_s
    with Keeper(begin, LEASE_S, lambda db: operations.renew(db, held, LEASE_S)):
        while time.monotonic() < until:
            alive()
            with begin() as db:
                if not _step(db, held, chunk):
                    return True
    with begin() as db:
        operations.rest(db, held, 0.0)
    return True


def _step(db: Session, held: Held, chunk: int) -> bool:
    """The next images stand by the threshold; False: it has ended, or is another's."""
    share(db, Lock.GENERATIONS)
    if not operations.mine(db, held):
        return False
    operation = operations.get(db, held.id)
    row = calibrations.get(db, held.params["calibration"])
    if why := _overtaken(db, row):
        operations.end(db, held, "failed", why)
        return False
    counts = Counter({name: int(n) for name, n in operation.counts.items()})
    rows, last = calibrations.lock_scored(db, row.model_id, Chosen(modality=row.modality), counts["looked_at"], chunk)
    if last is None:
        operations.end(db, held, "succeeded")
        return False
    counts += _apply(db, row, rows)
    counts["looked_at"] = last
    done = operation.done + len(rows)
    total = max(done, operation.total or 0)
    operations.progress(db, held, done=done, total=total, counts=json.dumps(counts), lease_s=LEASE_S)
    return True


def _overtaken(db: Session, row: Calibration) -> str | None:
    live = generations.published(db)
    if live is None or live.model_id != row.model_id:
        return "another model was published meanwhile"
    in_force = calibrations.in_force(db, row.model_id).get(row.modality)
    if in_force is None or in_force.calibration_id != row.id:
        return "another threshold came into force meanwhile"
    return None


def _apply(db: Session, row: Calibration, rows: Sequence[Scored]) -> Counter[str]:
    """These locked images stand by the threshold, with what the index must hold of them."""
    ways: dict[str, list[int]] = {"stop": [], "admit": [], "stay": [], "decided": [], "unmeasured": []}
    verdicts: dict[int, tuple[str, float | None]] = {}
    for one in rows:
        way, score = _way(one, row.threshold)
        ways[way].append(one.image_id)
        status = {"stop": Status.QUARANTINED, "admit": Status.ENCODED}.get(way, Status(one.status))
        if status != one.status:
            check_move(Status(one.status), status)
        if way in ("stop", "admit", "stay"):
            verdicts[one.image_id] = (status.value, score)
    calibrations.judge(db, row.id, Reason.UNLIKE.value, verdicts)
    if ways["stop"]:
        quarantine.withdraw(db, ways["stop"])
    if ways["admit"]:
        quarantine.admit(db, ways["admit"])
    return Counter({way: len(images) for way, images in ways.items() if images})
