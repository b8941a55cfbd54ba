"""The request and the answer of a search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

from shared.errors import Invalid, Rejected
from shared.index.base import Accuracy, Between, Condition, Exact, Match, Recall
from shared.pipeline.judge import Judgement
from shared.pipeline.rank import QueryImage
from shared.store.generations import Published
from shared.store.neighbours import HitRow

#: The recall that the engine is asked for over all the hits it returns, `ask.DEPTH` times those shown. Of the first
#: ten, it then finds 0.99 of the images and 0.98 of the studies (`benchmarks/results/search.md`).
TARGET = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """QIDO-style attributes; an empty tuple or None does not filter."""

    modality: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    laterality: tuple[str, ...] = ()
    density: tuple[str, ...] = ()
    birads: tuple[int, ...] = ()
    date_from: date | None = None
    date_to: date | None = None

    def conditions(self) -> tuple[Condition, ...]:
        matches: list[Condition] = [
            Match(field=name, values=values)
            for name, values in (
                ("modality", self.modality),
                ("view", self.view),
                ("laterality", self.laterality),
                ("density", self.density),
                ("birads", self.birads),
            )
            if values
        ]
        if self.date_from or self.date_to:
            low, high = (None if d is None else int(d.strftime("%Y%m%d")) for d in (self.date_from, self.date_to))
            matches.append(Between(field="study_date", low=low, high=high))
        return tuple(matches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parameters of a search, without its subject."""

    k: int = 10
    #: "patient" hides all of the query's patient, "study" its study, "self" its images
    exclude: frozenset[str] = frozenset({"self", "study", "patient"})
    view: str = "any"  #: "match" compares an image with images of the same view only
    filters: Filters = field(default_factory=Filters)
    exact: bool = False
    cursor: str | None = None
    #: "hash" takes the Hamming ball and ranks it by content, "hybrid" takes a wide ball and ranks it by the embedding
    mode: Literal["dense", "hash", "hybrid"] = "dense"
    radius: int | None = None  #: of the ball, in bits; None: the distance of the k-th nearest image

    def check(self, max_k: int) -> None:
        """Raises: `Invalid`."""
        if not 1 <= self.k <= max_k:
            raise Invalid(f"k must be between 1 and {max_k}")
        if self.exclude - {"self", "study", "patient"}:
            raise Invalid("exclude may contain self, study and patient only")
        if self.view not in ("any", "match"):
            raise Invalid("view must be any or match")
        if self.radius is not None and (self.mode != "hash" or self.radius < 0):
            raise Invalid("radius must be a non-negative number of bits and requires mode=hash")

    @property
    def accuracy(self) -> Accuracy:
        return Exact() if self.exact else Recall(TARGET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a search is about: a stored study, or an uploaded image."""

    images: tuple[QueryImage, ...]
    study_uid: str | None = None
    study_id: int | None = None
    image_ids: tuple[int, ...] = ()
    #: patients of the images; for an uploaded image, the archive and its header may name two different ones
    patients: tuple[bytes, ...] = ()
    #: gates that would have stopped the query image, reported and never hidden
    stops: tuple[Rejected, ...] = ()
    features: Judgement | None = None  #: of gate 3, for an uploaded image


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A query image and the image of the found study that is most like it."""

    query: QueryImage
    hit: HitRow
    score: float
    hamming: int | None = None  #: bits in which the codes differ, where the search was by codes
    content: float | None = None  #: Pearson correlation of the embeddings, where the search was by codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    study_id: int
    study_uid: str
    study_date: date | None
    score: float  #: mean over the query images of the best match, higher is better
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The answer to one subject."""

    subject: Subject
    studies: tuple[Found, ...]
    before: int  #: studies on the pages before
    hidden_studies: int
    hidden_images: int
    published: Published
    exact: bool
    emulated: frozenset[str]
    cut: bool  #: not all was looked at: a Hamming ball was cut, or few studies filled the list of hits
    as_of: datetime
    next: str | None
    timings_ms: Mapping[str, float]
