"""Gate 3: is an image unlike those that the model's thresholds were calibrated on?

Two votes, either of which stops an image: its reconstruction error, where the model has a decoder, and the distance of
its embedding from those of known images of its modality. Without a threshold for its modality an image passes, with
the verdict `uncalibrated`.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.encoder.ood import Gaussian
from shared.imaging.reasons import Reason
from shared.store import calibrations, encodings
from shared.store.calibrations import Threshold

#: `unmeasured`: no score or distance that has a threshold; `uncalibrated`: there is no threshold for the modality.
GateVerdict = Literal["passed", "stopped", "uncalibrated", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Standard:
    """The thresholds for images of one modality: for both votes, or for one of them."""

    calibration_id: int
    threshold: float | None  #: of the score
    distance: float | None = None  #: of the distance
    known: Gaussian | None = None  #: the embeddings of known images, from which distances are measured

    def measure(self, packed: Iterable[bytes]) -> float | None:
        """Distance of an image, given the embeddings of its frames as they are stored; None without a Gaussian."""
        return None if self.known is None else statistic(self.known.distances(map(encodings.unpack, packed)))


@dataclass(frozen=True, slots=True)
class Judgement:
    """Gate 3's judgement of one image."""

    verdict: GateVerdict
    score: float | None = None  #: higher is stranger; None also if it is not finite
    threshold: float | None = None
    distance: float | None = None  #: ditto
    distance_threshold: float | None = None
    calibration_id: int | None = None
    reason: Reason | None = None  #: why it is stopped; if both votes stop it, that of the score

    @property
    def stops(self) -> bool:
        return self.verdict == "stopped"


def standards(db: Session | sa.Connection, model_id: int, modalities: Collection[str]) -> dict[str, Standard]:
    """Return the thresholds in force, by modality; a modality without any is missing."""
    chosen = {name: one for name, one in calibrations.in_force(db, model_id).items() if name in modalities}
    known = _gaussians(db, [one for one in chosen.values() if one.distance is not None])
    return {
        name: Standard(one.calibration_id, one.threshold, one.distance, known.get(one.calibration_id))
        for name, one in chosen.items()
    }


#: Cache by id and time, which no two calibrations share: rows never change, and reading one takes 5 ms.
_KEPT: dict[tuple[int, datetime], Gaussian] = {}
_MOST_KEPT = 64


def _gaussians(db: Session | sa.Connection, chosen: Sequence[Threshold]) -> dict[int, Gaussian]:
    found = {one: _KEPT.get((one.calibration_id, one.created_at)) for one in chosen}
    lacking = [one.calibration_id for one, gaussian in found.items() if gaussian is None]
    packed = calibrations.gaussians(db, lacking) if lacking else {}
    made = {one: gaussian or Gaussian.unpack(packed[one.calibration_id]) for one, gaussian in found.items()}
    if len(_KEPT) > _MOST_KEPT:
        _KEPT.clear()
    _KEPT.update({(one.calibration_id, one.created_at): gaussian for one, gaussian in made.items()})
    return {one.calibration_id: gaussian for one, gaussian in made.items()}


def statistic(frames: Sequence[float | None]) -> float | None:
    """Return an image's score: the mean over its frames, so that a threshold from single images holds for a cine.

    None if a frame has none, NaN if one is not finite. The sum is exact, so a replay in another order judges alike.
    """
    known = [score for score in frames if score is not None]
    if not known or len(known) < len(frames):
        return None
    return math.fsum(known) / len(known) if all(map(math.isfinite, known)) else math.nan


def judge_image(scores: Sequence[float | None], packed: Iterable[bytes], standard: Standard | None) -> Judgement:
    """Judge one image by the scores of its frames and their embeddings, packed as they are stored.

    Intake, search and replay all judge the packed embeddings, and therefore alike.
    """
    return judge(statistic(scores), standard.measure(packed) if standard else None, standard)


def judge(score: float | None, distance: float | None, standard: Standard | None) -> Judgement:
    """Judge one image by its score and distance; NaN stops it if there is a threshold for that vote."""
    told = Judgement("unmeasured", _number(score), distance=_number(distance))
    if score is None and distance is None:
        return told
    if standard is None:
        return replace(told, verdict="uncalibrated")
    votes = (
        (score, standard.threshold, Reason.UNLIKE),
        (distance, standard.distance, Reason.FAR),
    )
    cast = [(value, limit, why) for value, limit, why in votes if value is not None and limit is not None]
    if not cast:
        return told
    against = [why for value, limit, why in cast if not value <= limit]
    return replace(
        told,
        verdict="stopped" if against else "passed",
        threshold=standard.threshold,
        distance_threshold=standard.distance,
        calibration_id=standard.calibration_id,
        reason=against[0] if against else None,
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
