"""Rank: hits of single images become a ranking of studies.

A study's score is the mean, over the query's images, of its best match in that study; a match of the same view and
side is preferred. If a query image has no hit in a study, the lowest score of its hits is taken instead: whatever
was not returned scores no higher.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.index.base import Answer, Hit

FIELDS = ("study", "view", "laterality")  #: payload fields of a hit that a ranking reads


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryImage:
    """One query vector."""

    vector: NDArray[np.float32]
    sop_uid: str | None = None
    frame: int = 1
    laterality: str | None = None
    view: str | None = None
    code: NDArray[np.uint8] | None = None  #: packed, where the model has a hash head

    def same_view(self, view: object, laterality: object) -> bool:
        """Whether that view and side are those of this image; False if this image's view is unknown."""
        return bool(self.view) and (self.view, self.laterality or None) == (view, laterality)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A study that was hit, by its internal id, with the best hit of each query image that found something."""

    study: int | str
    score: float
    matches: Mapping[int, Hit]


def rank(images: Sequence[QueryImage], answers: Sequence[Answer], gone: Collection[uuid.UUID] = ()) -> list[Candidate]:
    """Return the studies that were hit, best first; points in `gone` are ignored."""
    hits: defaultdict[int | str, defaultdict[int, list[Hit]]] = defaultdict(lambda: defaultdict(list))  # study, image
    for position, answer in enumerate(answers):
        for hit in answer.hits:
            if not gone or hit.id not in gone:
                hits[hit.payload["study"]][position].append(hit)
    floors = [answer.hits[-1].score if answer.hits else 0.0 for answer in answers]  # hits come best first
    candidates = [_candidate(study, found, images, floors) for study, found in hits.items()]
    return sorted(candidates, key=lambda candidate: -candidate.score)


def _candidate(
    study: int | str, found: Mapping[int, Sequence[Hit]], images: Sequence[QueryImage], floors: Sequence[float]
) -> Candidate:
    matches = {i: hits[0] if len(hits) == 1 else _best(images[i], hits) for i, hits in found.items()}
    scores = [matches[i].score if i in matches else floor for i, floor in enumerate(floors)]
    return Candidate(study, sum(scores) / len(scores), matches)


def _best(image: QueryImage, hits: Sequence[Hit]) -> Hit:
    def preferred(hit: Hit) -> tuple[bool, float]:
        return image.same_view(hit.payload.get("view"), hit.payload.get("laterality")), hit.score

    return max(hits, key=preferred)


def leaders(candidates: Sequence[Candidate], k: int) -> list[Candidate]:
    """Return the first `k` of a ranking and all ties of the last one, whose order the caller decides by their rows."""
    if len(candidates) <= k:
        return list(candidates)
    last = candidates[k - 1].score
    return [candidate for candidate in candidates if candidate.score >= last]
