"""Gate 3: is an image unlike those that the model's threshold was calibrated on?

Where there is no threshold for its modality an image passes, and that is said, never silent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.store.calibrations import Threshold

#: `unmeasured`: the model has no score; `uncalibrated`: there is no threshold for the modality.
Word = Literal["passed", "stopped", "uncalibrated", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says of one image."""

    word: Word
    score: float | None = None  #: higher is stranger; None also where it came out as no number
    threshold: float | None = None
    calibration_id: int | None = None

    @property
    def stops(self) -> bool:
        return self.word == "stopped"


def statistic(frames: Sequence[float | None]) -> float | None:
    """One score of an image: the mean over its frames, so that a threshold made on single pictures holds for a cine.

    Exactly rounded, and so the same in whatever order: what was judged once is judged alike when it is replayed.
    """
    known = [score for score in frames if score is not None]
    if not known or len(known) < len(frames):
        return None
    return math.fsum(known) / len(known) if all(map(math.isfinite, known)) else math.nan


def judge(score: float | None, threshold: Threshold | None) -> Judgement:
    """A score that is no number stops an image wherever there is a threshold."""
    if score is None:
        return Judgement("unmeasured")
    told = score if math.isfinite(score) else None
    if threshold is None:
        return Judgement("uncalibrated", told)
    word: Word = "passed" if score <= threshold.threshold else "stopped"
    return Judgement(word, told, threshold.threshold, threshold.calibration_id)
