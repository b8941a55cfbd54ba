"""The seam to vector engines: one collection is one generation; callers state intent, never engine flags.

An index is a projection of Postgres: all of it can be written again from the stored encodings. Scores are
always "higher is better": cosine, dot product, or the negative Euclidean distance.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unavailable

#: Stored with a vector: opaque numbers and coded attributes, no UID, no name (see `PAYLOAD`).
Payload = Mapping[str, int | str]

#: The payload fields and how they are filtered: "id" and "code" by equality with any value, "number" also by range.
PAYLOAD: Mapping[str, Literal["id", "code", "number"]] = {
    "image": "id",  # image.id
    "study": "id",  # study.id
    "patient": "id",  # 63 bits of the keyed pseudonym
    "revision": "number",  # of the image: an older one never overwrites a newer one
    "modality": "code",
    "view": "code",
    "laterality": "code",
    "density": "code",
    "birads": "number",
    "study_date": "number",  # YYYYMMDD
}


class Damaged(Unavailable):
    """The engine is up but cannot open this collection: only a repair helps."""


class Metric(StrEnum):
    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The requirements of a generation. `scale` says how the engine should store and link vectors."""

    dim: int
    metric: Metric = Metric.COSINE
    #: an HNSW graph and int8 copies pay off from about 2,000 vectors on (`exact` never builds a graph)
    scale: Literal["exact", "hnsw", "hnsw-int8"] = "hnsw-int8"
    #: Of m 8, 16 and 32 with ef_construct 100 and 200, this pair equals the best at recall 0.99 and links in half the
    #: processor time of ef_construct 200 (`benchmarks/results/latency/graphs`)
    m: int = 16
    ef_construct: int = 100
    bits: int = 0  #: length of the hash code that every point carries beside its vector; 0: none

    def to_json(self) -> dict[str, int | str]:
        """The form in which a generation's row stores it and the API returns it."""
        told: dict[str, int | str] = {"dim": self.dim, "metric": self.metric.value, "scale": self.scale}
        return told | {"m": self.m, "ef": self.ef_construct, "bits": self.bits}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """The spec from its `to_json` form."""
        fields = {name: value for name, value in told.items() if name != "ef"}
        return cls(**fields | {"metric": Metric(told["metric"]), "ef_construct": told["ef"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    id: uuid.UUID
    vector: NDArray[np.float32]  #: (dim,)
    payload: Payload  #: must hold "revision"
    code: NDArray[np.uint8] | None = None  #: (bits / 8,), packed most significant bit first, where the spec has bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The field equals one of the values."""

    field: str
    values: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The field lies in [low, high]; None leaves a side open. A point without the field does not match."""

    field: str
    low: int | None = None
    high: int | None = None


Condition = Match | Between


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """All of `must`, none of `must_not`."""

    must: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Exact:
    """The true nearest neighbours."""


@dataclass(frozen=True, slots=True)
class Recall:
    """At least this share of the true neighbours on average; the engine picks its own effort."""

    target: float = 0.97


Accuracy = Exact | Recall


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    vector: NDArray[np.float32]  #: (dim,)
    limit: int
    filter: Filter = field(default_factory=Filter)
    accuracy: Accuracy = field(default_factory=Recall)
    #: at most `group_limit` hits of each value of this payload field; None: no grouping
    group_by: str | None = None
    group_limit: int = 1
    #: the payload fields that the hits must carry, at least; None: all of them
    fields: tuple[str, ...] | None = None


class Hit(NamedTuple):
    """A point that was found; a named tuple, because a search makes hundreds of them."""

    id: uuid.UUID
    score: float
    payload: Payload
    hamming: int | None = None  #: of a search by codes: the bits that differ
    content: float | None = None  #: of a search by codes: the correlation of the embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hits by falling score, equal scores by id. `engine_ms` is the engine's own time, where it reports one."""

    hits: tuple[Hit, ...]
    exact: bool
    emulated: frozenset[str] = frozenset()
    cut: bool = False  #: not all was looked at: a Hamming ball was cut, or emulated groups took too many rounds
    engine_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeQuery:
    """A Hamming ball: all points whose code differs in at most `radius` bits, or in no more than the k-th nearest.

    It is never cut at k: hundreds of images share a distance, and the choice among them would be arbitrary.
    """

    code: NDArray[np.uint8]  #: (bits / 8,), packed
    k: int | None = None  #: exactly one of `k` and `radius`
    radius: int | None = None  #: in bits, inclusive
    filter: Filter = field(default_factory=Filter)
    most: int = 10_000  #: a larger ball is cut, nearest first, equal distances by id
    fields: tuple[str, ...] | None = None  #: as in `Query`


class Near(NamedTuple):
    id: uuid.UUID
    distance: int  #: Hamming, in bits
    payload: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """The points of a ball by rising distance, equal distances by id: exact on every engine."""

    hits: tuple[Near, ...]
    radius: int  #: of the whole ball; the k-th distance where the query has `k`
    cut: bool = False  #: more points lie within the radius than the query's `most`
    engine_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    points: int
    indexed: int  #: points that the graph covers; the rest is searched by brute force
    optimizing: bool = False  #: points are being linked at this moment


class Index(Protocol):
    """One open collection.

    Raises everywhere: `Invalid` for a vector that is NaN, infinite, zero under cosine or of another dimension,
    an unknown payload field or a limit below 1; `NotFound` when the collection is gone; `Unavailable` when the
    engine is down or its disk is full.
    """

    spec: Spec

    def write(self, points: Sequence[Point]) -> None:
        """Make the points durable and searchable, except where a newer revision of the same id is stored."""

    def delete(self, ids: Sequence[uuid.UUID]) -> None:
        """The points are gone, durably; unknown ids are no error."""

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer per query, in order; an empty list gives an empty list."""

    def near(self, queries: Sequence[CodeQuery]) -> list[Ball]:
        """One ball per query, in order.

        Raises: `Invalid` where the points carry no codes, or codes of another length; `Unavailable`, even without
        queries, where the engine's distances do not match the codes that it holds.
        """

    def get(self, ids: Sequence[uuid.UUID]) -> list[Point]:
        """The points that exist, in the order asked; vectors as the engine holds them (cosine: unit length)."""

    def scan(self, batch: int = 1000) -> Iterator[Sequence[tuple[uuid.UUID, int]]]:
        """Every (id, revision), each once, ordered by id; points written meanwhile may be missing."""

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002 - the engines' own word
        ...

    def info(self) -> Info: ...

    def optimize(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Link the unindexed points and make the index its fastest; True if there was something to do.

        Searches go on meanwhile.

        An engine that links in a process of its own is waited for only while `goes_on()`, asked about once a second,
        is true; after that it finishes alone, and the answer is False.
        """


class IndexStore(Protocol):
    """The collections of one engine. `name` matches [a-z0-9-]{1,64}."""

    def create(self, name: str, spec: Spec) -> Index:
        """Create the collection with its payload indexes, or open it if it exists with this spec.

        Raises: `Conflict` if it exists with another spec.
        """

    def open(self, name: str) -> Index:
        """Raises: `NotFound`, `Damaged`."""

    def drop(self, name: str) -> None:
        """The collection is gone; an unknown one is no error."""

    def names(self) -> list[str]: ...

    def ping(self) -> None:
        """Raises: `Unavailable`."""

    def close(self) -> None: ...
