"""Gate 3: is an image unlike those that the model's thresholds were calibrated on?

Two votes, either of which stops an image: its reconstruction error, where the model has a decoder, and the distance of
its embedding from those of known images of its modality. Where there is no threshold for its modality an image passes,
and that is said, never silent.
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

#: `unmeasured`: there is neither score nor distance; `uncalibrated`: there is no threshold for the modality.
GateVerdict = Literal["passed", "stopped", "uncalibrated", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Standard:
    """What images of one modality are judged by: a threshold for either vote, or for one of them."""

    calibration_id: int
    threshold: float | None  #: of the score
    distance: float | None = None  #: of the distance
    known: Gaussian | None = None  #: what distances are measured from

    def measure(self, packed: Iterable[bytes]) -> float | None:
        """Distance of an image, given the embeddings of its frames as they are stored; None without a Gaussian."""
        return None if self.known is None else statistic(self.known.distances(map(encodings.unpack, packed)))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says of one image."""

    verdict: GateVerdict
    score: float | None = None  #: higher is stranger; None also where it came out as no number
    threshold: float | None = None
    distance: float | None = None  #: ditto
    distance_threshold: float | None = None
    calibration_id: int | None = None
    reason: Reason | None = None  #: why it is stopped; where both votes stop it, the first

    @property
    def stops(self) -> bool:
        return self.verdict == "stopped"


def standards(db: Session | sa.Connection, model_id: int, modalities: Collection[str]) -> dict[str, Standard]:
    """Those in force, by modality; one that is missing has none."""
    chosen = {name: one for name, one in calibrations.in_force(db, model_id).items() if name in modalities}
    known = _gaussians(db, [one for one in chosen.values() if one.distance is not None])
    return {
        name: Standard(one.calibration_id, one.threshold, one.distance, known.get(one.calibration_id))
        for name, one in chosen.items()
    }


#: By id and time, which no two calibrations share: a row never changes, and to read it takes 5 ms.
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
    """One score of an image: the mean over its frames, so that a threshold made on single pictures holds for a cine.

    Exactly rounded, and so the same in whatever order: what was judged once is judged alike when it is replayed.
    """
    known = [score for score in frames if score is not None]
    if not known or len(known) < len(frames):
        return None
    return math.fsum(known) / len(known) if all(map(math.isfinite, known)) else math.nan


def judge_image(scores: Sequence[float | None], packed: Iterable[bytes], standard: Standard | None) -> Judgement:
    """What the gate says of an image, given the scores of its frames and their embeddings as they are stored.

    At once, at a search and at a replay: what was judged by what is stored is judged alike later.
    """
    return judge(statistic(scores), standard.measure(packed) if standard else None, standard)


def judge(score: float | None, distance: float | None, standard: Standard | None) -> Judgement:
    """A score or a distance that is no number stops an image wherever there is a threshold for it."""
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
