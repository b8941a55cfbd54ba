"""Replay of gate 3: judge stored images by other thresholds, with the function that judges new ones.

First as a plan that changes nothing, then chunk by chunk as an operation.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sqlalchemy.orm import Session

from shared import heartbeat
from shared.errors import Conflict
from shared.imaging.reasons import Reason
from shared.pipeline import quarantine
from shared.pipeline.judge import Judgement, Standard, judge_image, standards
from shared.pipeline.lease import turn
from shared.pipeline.thresholds import Numbers, Proposal
from shared.store import calibrations, generations, operations, reviews
from shared.store.calibrations import Chosen, Measured, Ruling, Scored
from shared.store.images import check_move
from shared.store.locks import Lock, share
from shared.store.operations import Held
from shared.store.reviews import Actor
from shared.store.session import Begin, enqueue
from shared.store.tables import Calibration, Model, Operation
from shared.types import Job, OperationKind, OperationState, Status

AWAY_S = 10.0  #: until a replay goes on after something was unavailable
PREVIEW_S = 10.0  #: longest time that a caller waits for a plan
CHUNK = 500  #: images judged in one transaction, or read at once with their embeddings


@dataclass(frozen=True, slots=True)
class Flip:
    """An image that other thresholds stop or admit; `reason` says why they stop it."""

    image_id: int
    sop_uid: str
    score: float | None
    distance: float | None
    reason: Reason | None


@dataclass(kw_only=True)
class Plan:
    """What a replay would change; each list holds its first `shown` images, by id."""

    counts: Counter[str] = field(default_factory=Counter)  #: stop, admit, stay, decided, unmeasured
    stop: list[Flip] = field(default_factory=list)  #: searchable now
    admit: list[Flip] = field(default_factory=list)  #: in the quarantine now
    complete: bool = True  #: False: time ran out, and only the first images were judged


def plan(
    db: Session, model: Model, modality: str, standard: Standard, shown: int = 100, *, within_s: float = PREVIEW_S
) -> Plan:
    """Return what a replay of these thresholds would change now, as far as is known in time; nothing is changed."""
    found, until = Plan(), time.monotonic() + within_s
    for row in calibrations.every_scored(db, model.id, _chosen(modality, standard), CHUNK):
        if time.monotonic() > until:
            found.complete = False
            break
        way, own = _way(row, standard)
        found.counts[way] += 1
        flips = {"stop": found.stop, "admit": found.admit}.get(way)
        if flips is not None and len(flips) < shown:
            flips.append(Flip(row.image_id, row.sop_uid, own.score, own.distance, own.reason))
    return found


def _chosen(modality: str, standard: Standard) -> Chosen:
    return Chosen(modality=modality, embedded=standard.known is not None)


def _way(row: Scored, standard: Standard) -> tuple[str, Judgement]:
    """Return what these thresholds do to an image, as a key of `Plan.counts`: the one rule of plan and replay."""
    own = judge_image(row.frames, row.embeddings, standard)
    if row.decided:
        return "decided", own
    if own.verdict == "unmeasured":
        return "unmeasured", own
    if own.stops == (row.status == Status.QUARANTINED):
        return "stay", own
    return ("stop" if own.stops else "admit"), own


def begin_replay(db: Session, model: Model, modality: str, found: Proposal, actor: Actor) -> Operation:
    """Put the proposed thresholds in force, with a due operation that judges stored images by them.

    Raises: `Conflict` if the model is not published: only the published one judges.
    """
    live = generations.published(db)
    if live is None or live.model_id != model.id:
        raise Conflict("only thresholds of the published model can be applied: publish this model, then replay them")
    number = found.calibration_id
    if number is None:
        number = calibrations.add(db, model.id, modality, found.source, actor.name, **asdict(found.numbers)).id
    params = {"calibration": number, "model": model.name, "modality": modality}
    operation = operations.create(db, OperationKind.REPLAY, params)
    operation.total = calibrations.judged_again(db, modality)
    said = {"threshold": found.standard.threshold, "distance_threshold": found.standard.distance}
    reviews.audit(db, actor, "replay", params | said)
    enqueue(db, Job.REPLAY)
    return operation


def advance(begin: Begin, *, chunk: int = CHUNK, budget_s: float = 20.0) -> bool:
    """Advance one due replay; return True if there may be more to do."""
    until = time.monotonic() + budget_s
    with turn(begin, OperationKind.REPLAY, AWAY_S) as held:
        if held is None:
            return False
        while time.monotonic() < until:
            heartbeat.beat()
            with begin() as db:
                if not _step(db, held, chunk):
                    return True
        with begin() as db:
            operations.rest(db, held, 0.0)
    return True


def _step(db: Session, held: Held, chunk: int) -> bool:
    """Apply the thresholds to the next images; return False if the replay has ended or was taken over."""
    share(db, Lock.GENERATIONS)
    if not operations.mine(db, held):
        return False
    operation = operations.get(db, held.id)
    row = calibrations.get(db, held.params["calibration"])
    if why := _overtaken(db, row):
        operations.end(db, held, OperationState.FAILED, why)
        return False
    after = (operation.cursor or {"image": 0})["image"]
    standard = Numbers.stored(row).standard(row.id)
    chosen = _chosen(row.modality, standard)
    rows, last = calibrations.lock_scored(db, row.model_id, chosen, after, chunk)
    if last is None:
        operations.end(db, held, OperationState.SUCCEEDED)
        return False
    counts = Counter(operation.counts) + _apply(db, standard, rows)
    done = operation.done + len(rows)
    total = max(done, operation.total or 0)
    operations.progress(db, held, done=done, total=total, counts=counts, cursor={"image": last})
    return True


def _overtaken(db: Session, row: Calibration) -> str | None:
    live = generations.published(db)
    if live is None or live.model_id != row.model_id:
        return "another model was published meanwhile"
    in_force = calibrations.in_force(db, row.model_id).get(row.modality)
    if in_force is None or in_force.calibration_id != row.id:
        return "another threshold came into force meanwhile"
    return None


def _apply(db: Session, standard: Standard, rows: Sequence[Scored]) -> Counter[str]:
    """Judge these locked images by the thresholds, move them and update the ledgers; return counts as in `Plan`."""
    ways: dict[str, list[int]] = {"stop": [], "admit": [], "stay": [], "decided": [], "unmeasured": []}
    rulings = []
    for one in rows:
        way, own = _way(one, standard)
        ways[way].append(one.image_id)
        status = {"stop": Status.QUARANTINED, "admit": Status.ENCODED}.get(way, Status(one.status))
        if status != one.status:
            check_move(Status(one.status), status)
        if way in ("stop", "admit", "stay"):
            rulings.append(Ruling(one.image_id, status.value, own.score, own.distance, own.reason))
    calibrations.judge(db, standard.calibration_id, rulings)
    if ways["stop"]:
        quarantine.withdraw(db, ways["stop"])
    if ways["admit"]:
        quarantine.post(db, ways["admit"])
    return Counter({way: len(images) for way, images in ways.items() if images})


def measure_again(db: Session, images: Sequence[int]) -> None:
    """Store the judgement of the published model's thresholds on these locked images, without moving any."""
    live = generations.published(db)
    modalities = calibrations.modalities(db, images)
    in_force = {} if live is None else standards(db, live.model_id, set(modalities.values()))
    measured: list[Measured] = []
    for row in [] if live is None else calibrations.these(db, live.model_id, images):
        own = judge_image(row.frames, row.embeddings, in_force.get(modalities[row.image_id]))
        measured.append((row.image_id, own.score, own.distance, own.calibration_id))
    calibrations.remember(db, measured)
