"""Preprocessing as data: the part of a model card that defines how a file becomes encoder input.

Ingest, query, training and evaluation all run the same recipe. Order: choose frames, decode at no more resolution
than needed, turn a picture by its Exif orientation, modality transform, box-reduce, VOI transform, polarity, crop,
mirror, pad, resize.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from shared.errors import Invalid

Pad = Literal["squash", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    size: int = 224  #: side of the square input
    voi: Literal["apply", "ignore"] = "apply"  #: apply: LUT or window of the file, or the full range without one
    frames: int = 8  #: at most this many, evenly spaced
    crop: Literal["none", "breast"] = "none"  #: breast: to the bounding box of the non-background
    mirror: Literal["none", "left"] = "none"  #: left: chest wall to the left, by orientation, laterality or brightness
    pad: Pad = "squash"  #: squash as in the papers; square keeps the aspect ratio
    for_processing: Literal["stop", "allow"] = "stop"  #: raw detector data never mixes with images for presentation

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises: `Invalid` for an unknown key: a key that is silently ignored would change embeddings."""
        unknown = data.keys() - set(cls.__dataclass_fields__)
        if unknown:
            raise Invalid(f"unknown recipe keys: {', '.join(sorted(unknown))}")
        return cls(**data)


def chosen_frames(frames: int, most: int) -> tuple[int, ...]:
    """Return 1-based frame numbers: all, or the middle frames of `most` equal stretches."""
    if frames <= most:
        return tuple(range(1, frames + 1))
    return tuple((2 * i + 1) * frames // (2 * most) + 1 for i in range(most))
