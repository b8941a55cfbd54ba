"""Thresholds of gate 3: made from known images, and put in force.

A calibration belongs to one model and one modality, and has a threshold of reconstruction errors, of distances from
the known images, or of both. In force, it judges new images; `replay` judges stored ones.
"""

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from shared.encoder import ood
from shared.encoder.cards import Card
from shared.encoder.ood import Gaussian, Rule
from shared.errors import Conflict, Invalid
from shared.pipeline.judge import Standard, statistic
from shared.store import calibrations, encodings, generations, reviews
from shared.store.calibrations import Chosen, Known
from shared.store.reviews import Actor
from shared.store.tables import Calibration, Model

MANY = 300  #: searchable images of a modality that are enough for good thresholds
MOST_SCORES = 100_000  #: most images whose errors make a threshold: a hundred lie above the 99.9 % quantile
MOST = 1024  #: known images that distances are measured from; chosen by digest, so the same ones each time


def wanting(db: Session) -> tuple[str, dict[str, int]]:
    """Return the published model's name, and the number of images of each modality that should be calibrated here."""
    live = generations.published(db)
    return ("", {}) if live is None else (str(live.card["name"]), calibrations.wanting(db, live.model_id, MANY))


def bring(db: Session, model_id: int, card: Card) -> None:
    """Put the card's calibrations in force for the modalities that have none of this model yet."""
    known = calibrations.in_force(db, model_id)
    for modality, one in sorted(card.calibrations.items()):
        if modality not in known:
            calibrations.add(db, model_id, modality, "card", None, **asdict(Numbers.of(one)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a calibration measured: columns of its row. A vote without a threshold is not cast."""

    rule: str  #: one of `ood.Rule`, or given
    n: int  #: images it is made from
    data_sha256: str
    threshold: float | None = None  #: of reconstruction errors, as the next three
    mean: float | None = None
    std: float | None = None
    quantiles: Mapping[str, float] = field(default_factory=dict)
    distances: Mapping[str, Any] | None = None  #: threshold, mean, std, quantiles and n of distances
    gaussian: bytes | None = None  #: from which distances are measured, packed

    @classmethod
    def of(cls, scores: ood.Calibration) -> Self:
        return cls(**asdict(scores))

    @classmethod
    def stored(cls, row: Calibration) -> Self:
        return cls(**{one.name: getattr(row, one.name) for one in fields(cls)})

    def standard(self, calibration_id: int) -> Standard:
        if self.distances is None or self.gaussian is None:
            return Standard(calibration_id, self.threshold)
        return Standard(calibration_id, self.threshold, self.distances["threshold"], Gaussian.unpack(self.gaussian))

    @property
    def votes(self) -> tuple[float | None, Mapping[str, Any] | None, bytes | None]:
        return self.threshold, self.distances, self.gaussian

    def with_distances_of(self, other: "Numbers") -> Self:
        return replace(self, distances=other.distances, gaussian=other.gaussian)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The result of `calibrate`; `skipped` and `left_out` count images, by modality."""

    calibrations: tuple[Calibration, ...]
    skipped: dict[str, int]  #: modalities with too few images
    left_out: dict[str, int]  #: stopped by gate 3, and so not known: a threshold made again can only sink


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
    """Make thresholds from stored encodings; they judge new images from the commit on, and no stored ones.

    Thresholds of distances in any case, of reconstruction errors if the model has them.

    Raises: `Invalid` if the named modality, or every one, has too few images.
    """
    made: dict[str, Numbers] = {}
    skipped, left_out = {}, {}
    for one in [modality] if modality is not None else calibrations.encoded_modalities(db, model.id):
        chosen = Chosen(modality=one, operation_id=operation_id, folder=_prefix(folder))
        if stopped := calibrations.stopped(db, chosen):
            left_out[one] = stopped
        numbers, count = _made(db, model, chosen, rule)
        if numbers is None:
            skipped[one] = count
        else:
            made[one] = numbers
    if not made:
        raise Invalid(
            f"a calibration needs at least {ood.MIN_SCORES} encoded images; "
            f"model {model.name} has {max(skipped.values(), default=0)}"
        )
    rows = []
    for one, numbers in made.items():  # all are computed before the first takes the lock that holds up intake
        rows.append(calibrations.add(db, model.id, one, "archive", actor.name, **asdict(numbers)))
        said = {"calibration": rows[-1].id, "model": model.name, "modality": one, "rule": rule}
        reviews.audit(db, actor, "calibrate", said)
    return Made(calibrations=tuple(rows), skipped=skipped, left_out=left_out)


def _prefix(folder: Path | None) -> bytes | None:
    return None if folder is None else os.fsencode(folder).rstrip(b"/") + b"/"


def _scores(db: Session, model: Model, chosen: Chosen) -> list[tuple[str, float]]:
    """Return (digest, score) of the known images, without scores that are not finite."""
    rows = calibrations.known_scores(db, model.id, chosen, MOST_SCORES)
    measured = [(digest.hex(), statistic(frames)) for digest, frames in rows]
    return [(name, score) for name, score in measured if score is not None and math.isfinite(score)]


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    patient: bytes
    vectors: list[NDArray[np.float32]]  #: (dim,) of each frame


def _usable(images: Sequence[Known]) -> list[_Image]:
    """Return the images whose embeddings are all finite and not zero."""
    made = [_Image(one.digest.hex(), one.patient, [encodings.unpack(e) for e in one.embeddings]) for one in images]
    return [one for one in made if all(np.isfinite(v).all() and v.any() for v in one.vectors)]


def _made(db: Session, model: Model, chosen: Chosen, rule: Rule) -> tuple[Numbers | None, int]:
    """Return a threshold for each vote that has enough images, None if neither has, and how many images there are."""
    scores = _scores(db, model, chosen)
    images = _usable(calibrations.known(db, model.id, chosen, MOST))
    count = max(len(scores), len(images))
    if count < ood.MIN_SCORES:
        return None, count
    if len(scores) >= ood.MIN_SCORES:
        made = _of_scores(scores, rule)
    else:
        made = Numbers(rule=rule, n=len(images), data_sha256=ood.data_digest(one.name for one in images))
    return (_of_distances(made, images, rule) if len(images) >= ood.MIN_SCORES else made), count


def _of_scores(scores: Sequence[tuple[str, float]], rule: Rule) -> Numbers:
    return Numbers.of(ood.calibrate([score for _, score in scores], ood.data_digest(name for name, _ in scores), rule))


def _of_distances(made: Numbers, images: Sequence[_Image], rule: Rule) -> Numbers:
    """Add the Gaussian of the known images and the threshold of their distances, each with its patient held out."""
    known = np.stack([vector for one in images for vector in one.vectors])
    apart = iter(ood.held_out(known, [one.patient for one in images for _ in one.vectors]))
    own = np.array([statistic([next(apart) for _ in one.vectors]) for one in images], np.float64)
    told = asdict(ood.calibrate(own, "", rule))
    distances = {name: told[name] for name in ("threshold", "mean", "std", "quantiles", "n")}
    return replace(made, distances=distances, gaussian=Gaussian.fit(known).pack())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which thresholds are replayed: given ones, a rule, or an earlier calibration; none means those in force."""

    threshold: float | None = None
    distance_threshold: float | None = None
    rule: Rule | None = None  #: from what is stored now
    calibration_id: int | None = None  #: an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Proposed thresholds."""

    source: Literal["card", "archive", "given"]
    numbers: Numbers
    calibration_id: int | None = None  #: of these thresholds, if they are in force already

    @property
    def standard(self) -> Standard:
        return self.numbers.standard(self.calibration_id or 0)


def propose(db: Session, model: Model, modality: str, choice: Choice) -> Proposal:
    """Return the chosen thresholds.

    Raises: `Invalid` for choices that exclude each other, or for too few images; `NotFound`; `Conflict` for a
    calibration of another model or modality, or if none is in force.
    """
    given = choice.threshold is not None or choice.distance_threshold is not None
    if sum((given, choice.rule is not None, choice.calibration_id is not None)) > 1:
        raise Invalid("give only one of: thresholds, a rule, a calibration")
    now = calibrations.in_force(db, model.id).get(modality)
    current = Numbers.stored(calibrations.get(db, now.calibration_id)) if now else None
    source: Literal["card", "archive", "given"]
    if choice.rule is not None:
        numbers, source = _stored(db, model, modality, choice.rule), "archive"
    elif given:
        numbers, source = _given(db, model, modality, choice, current), "given"
    else:
        row = _earlier(db, model, modality, choice.calibration_id or (now.calibration_id if now else None))
        numbers, source = Numbers.stored(row), row.source
    same = current is not None and current.votes == numbers.votes
    return Proposal(source=source, numbers=numbers, calibration_id=now.calibration_id if now and same else None)


def _stored(db: Session, model: Model, modality: str, rule: Rule) -> Numbers:
    numbers, count = _made(db, model, Chosen(modality=modality), rule)
    if numbers is not None:
        return numbers
    raise Invalid(f"a calibration needs at least {ood.MIN_SCORES} encoded images; there are {count}")


def _earlier(db: Session, model: Model, modality: str, number: int | None) -> Calibration:
    if number is None:
        raise Conflict("no calibration of this model is in force for this modality: name a threshold or a rule")
    row = calibrations.get(db, number)
    if (row.model_id, row.modality) != (model.id, modality):
        raise Conflict(f"calibration {row.id} belongs to another model or modality")
    return row


def _given(db: Session, model: Model, modality: str, choice: Choice, current: Numbers | None) -> Numbers:
    """Return the given thresholds with the statistics of stored images; a vote without a given one stays as it is.

    Distances are measured from the known images of the calibration in force, or of those that are stored now.
    """
    numbers = (choice.threshold, choice.distance_threshold)
    if not all(math.isfinite(one) for one in numbers if one is not None):
        raise Invalid("a threshold must be a finite number")
    made = current
    if choice.threshold is not None:
        scores = _scores(db, model, Chosen(modality=modality))
        digest = ood.data_digest(name for name, _ in scores)
        made = Numbers(rule="given", n=len(scores), data_sha256=digest)
        if len(scores) >= ood.MIN_SCORES:
            made = _of_scores(scores, "mean+3sd")
        made = replace(made, threshold=choice.threshold)
        if current is not None:
            made = made.with_distances_of(current)
    if choice.distance_threshold is not None:
        if made is None or made.distances is None:
            stored = _stored(db, model, modality, "mean+3sd")
            made = replace(stored, threshold=None) if made is None else made.with_distances_of(stored)
        made = replace(made, distances={**(made.distances or {}), "threshold": choice.distance_threshold})
    assert made is not None  # noqa: S101 - one of the two is given
    return replace(made, rule="given")
