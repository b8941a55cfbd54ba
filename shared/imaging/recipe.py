"""Preprocessing as data: the part of a model card that says how a file becomes encoder input.

Ingest, query, training and evaluation all run this one. Order: choose frames, decode no more resolution than
needed, modality transform, box-reduce, VOI transform, polarity, crop, mirror, pad, resize.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from shared.errors import Invalid

Pad = Literal["squash", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    size: int = 224  #: side of the square input
    voi: Literal["apply", "ignore"] = "apply"  #: LUT or window of the file; without one, the full range
    frames: int = 8  #: at most this many, evenly spaced
    crop: Literal["none", "breast"] = "none"  #: to the bounding box of what is not background
    mirror: Literal["none", "left"] = "none"  #: chest wall to the left, by orientation, laterality or mass
    pad: Pad = "squash"  #: the papers squash; square keeps the aspect ratio
    for_processing: Literal["stop", "allow"] = "stop"  #: raw detector data never mixes with presentation

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises `Invalid` for an unknown or ill-typed key: a silently ignored one would change embeddings."""
        unknown = data.keys() - set(cls.__dataclass_fields__)
        if unknown:
            raise Invalid(f"unknown recipe keys: {', '.join(sorted(unknown))}")
        return cls(**data)


def chosen_frames(frames: int, most: int) -> tuple[int, ...]:
    """Return 1-based frame numbers, evenly spaced: the middles of `most` equal stretches, or all."""
    if frames <= most:
        return tuple(range(1, frames + 1))
    return tuple((2 * i + 1) * frames // (2 * most) + 1 for i in range(most))
