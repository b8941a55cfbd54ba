"""Thresholds of gate 3: made from known images, and put in force.

A calibration belongs to one model and one modality, and has a threshold of reconstruction errors, of distances from
the known images, or of both. In force, it judges new images; `replay` judges stored ones.
"""

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
            calibrations.add(db, model_id, modality, "card", None, **_columns(one))


def _columns(one: ood.Calibration) -> dict[str, Any]:
    return asdict(one) | {"quantiles": dict(one.quantiles)}


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
    made: dict[str, dict[str, Any]] = {}
    skipped, left_out = {}, {}
    for one in [modality] if modality is not None else calibrations.encoded_modalities(db, model.id):
        chosen = Chosen(modality=one, operation_id=operation_id, folder=_prefix(folder))
        if stopped := calibrations.stopped(db, chosen):
            left_out[one] = stopped
        columns, count = _made(db, model, chosen, rule)
        if columns:
            made[one] = columns
        else:
            skipped[one] = count
    if not made:
        raise Invalid(
            f"a calibration needs at least {ood.MIN_SCORES} encoded images; "
            f"model {model.name} has {max(skipped.values(), default=0)}"
        )
    rows = []
    for one, columns in made.items():  # all are computed before the first takes the lock that holds up intake
        rows.append(calibrations.add(db, model.id, one, "archive", actor.name, **columns))
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


_NO_SCORES: dict[str, Any] = {"threshold": None, "mean": None, "std": None, "quantiles": {}}
_NO_DISTANCES: dict[str, Any] = {"distances": None, "gaussian": None}


def _made(db: Session, model: Model, chosen: Chosen, rule: Rule) -> tuple[dict[str, Any], int]:
    """Return a row's columns, with a threshold for each vote that has enough images, and how many images there are.

    Without a vote that has enough, there are no columns.
    """
    scores = _scores(db, model, chosen)
    images = _usable(calibrations.known(db, model.id, chosen, MOST))
    first = _of_scores(scores, rule) if len(scores) >= ood.MIN_SCORES else {}
    second = _of_distances(images, rule) if len(images) >= ood.MIN_SCORES else {}
    if not first and second:
        digest = ood.data_digest(one.name for one in images)
        first = _NO_SCORES | {"rule": rule, "n": len(images), "data_sha256": digest}
    return first | (second or _NO_DISTANCES) if first else {}, max(len(scores), len(images))


def _of_scores(scores: Sequence[tuple[str, float]], rule: Rule) -> dict[str, Any]:
    return _columns(ood.calibrate([score for _, score in scores], ood.data_digest(name for name, _ in scores), rule))


def _of_distances(images: Sequence[_Image], rule: Rule) -> dict[str, Any]:
    """Return the Gaussian of the known images and the threshold of their distances, each with its patient held out."""
    known = np.stack([vector for one in images for vector in one.vectors])
    apart = iter(ood.held_out(known, [one.patient for one in images for _ in one.vectors]))
    own = np.array([statistic([next(apart) for _ in one.vectors]) for one in images], np.float64)
    told = _columns(ood.calibrate(own, "", rule))
    kept = ("threshold", "mean", "std", "quantiles", "n")
    return {"distances": {name: told[name] for name in kept}, "gaussian": Gaussian.fit(known).pack()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which thresholds are replayed: given ones, a rule, or an earlier calibration; none means those in force."""

    threshold: float | None = None
    distance_threshold: float | None = None
    rule: Rule | None = None  #: from what is stored now
    calibration_id: int | None = None  #: an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Proposed thresholds, as the columns of a calibration's row."""

    source: str
    columns: dict[str, Any]
    calibration_id: int | None = None  #: of these thresholds, if they are in force already

    @property
    def standard(self) -> Standard:
        return standard_of(self.columns, self.calibration_id or 0)


def standard_of(columns: Mapping[str, Any], calibration_id: int) -> Standard:
    distances = columns["distances"]
    if distances is None:
        return Standard(calibration_id, columns["threshold"])
    known = Gaussian.unpack(columns["gaussian"])
    return Standard(calibration_id, columns["threshold"], distances["threshold"], known)


def propose(db: Session, model: Model, modality: str, choice: Choice) -> Proposal:
    """Return the chosen thresholds.

    Raises: `Invalid` for choices that exclude each other, or for too few images; `NotFound`; `Conflict` for a
    calibration of another model or modality, or if none is in force.
    """
    given = choice.threshold is not None or choice.distance_threshold is not None
    if sum((given, choice.rule is not None, choice.calibration_id is not None)) > 1:
        raise Invalid("give only one of: thresholds, a rule, a calibration")
    now = calibrations.in_force(db, model.id).get(modality)
    current = columns_of(calibrations.get(db, now.calibration_id)) if now else None
    if choice.rule is not None:
        columns, source = _stored(db, model, modality, choice.rule), "archive"
    elif given:
        columns, source = _given(db, model, modality, choice, current), "given"
    else:
        columns, source = _earlier(db, model, modality, choice.calibration_id or (now.calibration_id if now else None))
    same = current is not None and all(current[name] == columns[name] for name in ("threshold", *_NO_DISTANCES))
    return Proposal(source=source, columns=columns, calibration_id=now.calibration_id if now and same else None)


_COLUMNS = ("rule", "threshold", "mean", "std", "quantiles", "n", "data_sha256", "distances", "gaussian")


def columns_of(row: Calibration) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _COLUMNS}


def _stored(db: Session, model: Model, modality: str, rule: Rule) -> dict[str, Any]:
    columns, count = _made(db, model, Chosen(modality=modality), rule)
    if columns:
        return columns
    raise Invalid(f"a calibration needs at least {ood.MIN_SCORES} encoded images; there are {count}")


def _earlier(db: Session, model: Model, modality: str, number: int | None) -> tuple[dict[str, Any], str]:
    if number is None:
        raise Conflict("no calibration of this model is in force for this modality: name a threshold or a rule")
    row = calibrations.get(db, number)
    if (row.model_id, row.modality) != (model.id, modality):
        raise Conflict(f"calibration {row.id} belongs to another model or modality")
    return columns_of(row), row.source


def _given(
    db: Session, model: Model, modality: str, choice: Choice, current: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the given thresholds with the statistics of stored images; a vote without a given one stays as it is.

    Distances are measured from the known images of the calibration in force, or of those that are stored now.
    """
    numbers = (choice.threshold, choice.distance_threshold)
    if not all(math.isfinite(one) for one in numbers if one is not None):
        raise Invalid("a threshold must be a finite number")
    chosen = Chosen(modality=modality)
    if choice.threshold is not None:
        scores = _scores(db, model, chosen)
        known = _of_scores(scores, "mean+3sd") if len(scores) >= ood.MIN_SCORES else {}
        digest = ood.data_digest(name for name, _ in scores)
        first = _NO_SCORES | {"n": len(scores), "data_sha256": digest} | known | {"threshold": choice.threshold}
    else:
        first = {name: current[name] for name in _COLUMNS if name not in _NO_DISTANCES} if current else {}
    second = {name: current[name] for name in _NO_DISTANCES} if current else _NO_DISTANCES
    if choice.distance_threshold is not None:
        if second["distances"] is None:
            stored = _stored(db, model, modality, "mean+3sd")
            second = {name: stored[name] for name in _NO_DISTANCES}
            first = first or stored | {"threshold": None}
        second = second | {"distances": second["distances"] | {"threshold": choice.distance_threshold}}
    return first | second | {"rule": "given"}
