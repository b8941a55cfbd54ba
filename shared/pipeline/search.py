"""Search: the studies most like a study, or like an image that somebody holds in their hand.

One read for the query's vectors, one batch to the index with filters and exclusions, one read for the rows
behind the hits. The published pointer is read once; a query keeps its generation for its whole life.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Literal

import numpy as np
import sqlalchemy as sa

from shared.encoder.base import Encoded, Encoder
from shared.errors import Conflict, Gate, Invalid, NotFound, Outcome, Rejected, Unavailable
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.pseudonym import patient_key, patient_number
from shared.imaging.recipe import Recipe
from shared.index.base import Accuracy, Answer, Between, Condition, Exact, Filter, Index, Match, Query, Recall
from shared.pipeline import cursor, hashes, rank
from shared.pipeline.hashes import Search
from shared.pipeline.judge import Judgement, judge_image, standards
from shared.pipeline.rank import Candidate, QueryImage
from shared.store import encodings, generations, neighbours
from shared.store.generations import Published
from shared.store.neighbours import HitRow, QueryRow
from shared.types import Decoded, Header

#: Of all the hits that are asked for, `DEPTH` times more than are shown. Of the first ten, 0.997 of the images
#: and 0.986 of the studies came (`benchmarks.search`, 100,000 vectors, against exact search, patient excluded).
TARGET = 0.9
Asked = tuple[list[Answer], bool]  #: of one subject, an answer for each image; and whether there is more than these
MAX_VECTORS = 16  #: of a study; a CT is asked with evenly spaced slices
#: Hits asked per query vector, in multiples of k: several images of one study are one answer. And of each study at
#: most as many, where the hits lie in fewer than k: a CT has hundreds of images that are much alike.
DEPTH = 4
LEAST_DEPTH, MOST_DEPTH = 40, 1000
MOST_OF_GROUPS = 10_000  #: so many hits, of k studies each its part; the largest k there can be


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
    """What is asked, whoever is asked about."""

    k: int = 10
    #: "patient" hides all of the query's patient, "study" its study, "self" its images
    exclude: frozenset[str] = frozenset({"self", "study", "patient"})
    view: str = "any"  #: "match" compares an image with images of the same view only
    filters: Filters = field(default_factory=Filters)
    exact: bool = False
    cursor: str | None = None
    #: "hash" takes the Hamming ball and ranks it by content, "hybrid" takes a wide ball and ranks it by the embedding
    mode: Literal["dense", "hash", "hybrid"] = "dense"
    radius: int | None = None  #: of the ball, in bits; None: as wide as the k-th nearest images lie

    def check(self, max_k: int) -> None:
        """Raises: `Invalid`."""
        if not 1 <= self.k <= max_k:
            raise Invalid(f"k must be between 1 and {max_k}")
        if self.exclude - {"self", "study", "patient"}:
            raise Invalid("exclude takes self, study and patient")
        if self.view not in ("any", "match"):
            raise Invalid("view is any or match")
        if self.radius is not None and (self.mode != "hash" or self.radius < 0):
            raise Invalid("a radius is a number of bits, and goes with mode=hash")

    @property
    def accuracy(self) -> Accuracy:
        return Exact() if self.exact else Recall(TARGET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is asked about: a stored study, or an uploaded image."""

    images: tuple[QueryImage, ...]
    study_uid: str | None = None
    study_id: int | None = None
    image_ids: tuple[int, ...] = ()
    #: whose images they are: of an image from outside the archive and its header may name two
    patients: tuple[bytes, ...] = ()
    #: gates that would have stopped the query image, reported and never hidden
    stops: tuple[Rejected, ...] = ()
    features: Judgement | None = None  #: of gate 3, for an image from outside


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
    hidden_studies: int
    hidden_images: int
    published: Published
    exact: bool
    emulated: frozenset[str]
    cut: bool  #: there is more than was looked at: in a Hamming ball, or of images that few studies share
    as_of: datetime
    next: str | None
    timings_ms: Mapping[str, float]


def by_studies(
    connection: sa.Connection,
    index_of: Callable[[str], Index],
    study_uids: Sequence[str],
    request: Request,
) -> list[Ranking]:
    """One ranking per study, in the order asked.

    Raises: `NotFound` for an unknown study, `Conflict` for one that is not encoded yet or a stale cursor,
    `Unavailable` before a model is published.
    """
    started = time.perf_counter()
    live = _published(connection)
    by_uid: dict[str, list[QueryRow]] = {}
    for row in neighbours.vectors(connection, study_uids, live.model_id):
        by_uid.setdefault(row.study_uid, []).append(row)
    for uid in study_uids:
        if uid not in by_uid:
            if not neighbours.exists(connection, uid):
                raise NotFound("no such study")
            raise Conflict("no image of this study is encoded by the published model")
    subjects = [_subject(by_uid[uid]) for uid in study_uids]
    return _rank(connection, index_of, live, subjects, request, started)


def by_image(
    connection: sa.Connection,
    index_of: Callable[[str], Index],
    decode: Callable[[Recipe], Decoded],
    encoder_of: Callable[[Published], Encoder],
    secret: bytes,
    request: Request,
) -> Ranking:
    """The ranking for an image from outside; nothing of it is stored.

    Raises: `Rejected` for an image that cannot be decoded, `Unavailable` before a model is published.
    """
    started = time.perf_counter()
    live = _published(connection)
    recipe = Recipe.from_json(live.card["recipe"])
    decoded = decode(recipe)
    header = decoded.header
    stops = [metadata_gate(header, recipe), pixel_gate(decoded.stats)]
    encoded = encoder_of(live).encode(decoded.pixels)
    features = _features(connection, live, encoded, header.modality)
    if features.reason is not None:
        stops.append(Rejected(Outcome.QUARANTINED, features.reason.value, Gate.FEATURES))
    images = tuple(
        QueryImage(
            vector=vector,
            frame=frame,
            laterality=header.laterality,
            view=header.view,
            code=None if encoded.codes is None else encoded.codes[i],
        )
        for i, (frame, vector) in enumerate(zip(decoded.frames, encoded.embeddings, strict=True))
    )
    said = Subject(images=images, stops=tuple(s for s in stops if s is not None), features=features)
    subject = _outsider(connection, header, said, secret)
    return _rank(connection, index_of, live, [subject], request, started)[0]


def _features(connection: sa.Connection, live: Published, encoded: Encoded, modality: str) -> Judgement:
    """What gate 3 says of an image from outside, by the thresholds that are in force for those that are taken in."""
    scores = [] if encoded.ood is None else [float(score) for score in encoded.ood]
    standard = standards(connection, live.model_id, {modality}).get(modality)
    return judge_image(scores, map(encodings.pack, encoded.embeddings), standard)


def _outsider(connection: sa.Connection, header: Header, said: Subject, secret: bytes) -> Subject:
    """An uploaded image. If the archive has it, or its study, that is its own, whatever its header hides.

    The patient that the header names is hidden, too: the archive may know the study under a number given before.
    """
    named = [patient_key(secret, header.issuer_of_patient_id, header.patient_id)] if header.patient_id else []
    own = neighbours.whose(connection, header.sop_instance_uid, header.study_instance_uid)
    if own is None:
        return replace(said, patients=tuple(named))
    study_id, patient, image_id = own
    image_ids = () if image_id is None else (image_id,)
    return replace(said, study_id=study_id, image_ids=image_ids, patients=tuple(dict.fromkeys([patient, *named])))


def _published(connection: sa.Connection) -> Published:
    live = generations.published(connection)
    if live is None:
        raise Unavailable("no model is published yet", retry_after_s=5)
    return live


def _subject(rows: Sequence[QueryRow]) -> Subject:
    chosen = [rows[i] for i in spaced(len(rows), MAX_VECTORS)]
    stacked = encodings.stack([row.embedding for row in chosen])
    images = tuple(
        QueryImage(
            vector=vector,
            sop_uid=row.sop_uid,
            frame=row.frame,
            laterality=row.laterality,
            view=row.view,
            code=None if row.code is None else np.frombuffer(row.code, np.uint8),
        )
        for row, vector in zip(chosen, stacked, strict=True)
    )
    return Subject(
        images=images,
        study_uid=rows[0].study_uid,
        study_id=rows[0].study_id,
        image_ids=tuple(dict.fromkeys(row.image_id for row in rows)),
        patients=(rows[0].patient_key,),
    )


def spaced(count: int, most: int) -> list[int]:
    """At most `most` of `range(count)`, evenly spaced, first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _rank(
    connection: sa.Connection,
    index_of: Callable[[str], Index],
    live: Published,
    subjects: Sequence[Subject],
    request: Request,
    started: float,
) -> list[Ranking]:
    if request.cursor is not None and len(subjects) != 1:
        raise Invalid("a cursor belongs to one query")
    page = cursor.read(request, live.generation_id, subjects[0]) if request.cursor else cursor.first(live.read_at)
    index = index_of(live.collection)
    search: Search = lambda _, queries: index.search(queries)  # noqa: E731
    if request.mode != "dense":
        search = hashes.searcher(connection, index, live, request.mode, request.radius)
    rankings = []
    for subject, found, asked, answered in _answers(search, subjects, request, page):
        own, more = found
        shown, all_there = _shown(connection, live, subject, own, request, page)
        if len(shown) < request.k and not all_there:  # what may not be shown took the places of others
            ((own, more),) = _ask(search, [subject], request, page, MOST_DEPTH)
            shown, _ = _shown(connection, live, subject, own, request, page)
        short = len(shown) < request.k
        last = short and not (more and shown)  # a page that is not full is the last one, if all was looked at
        hidden = _hidden(connection, subject, request)
        rankings.append(
            Ranking(
                subject=subject,
                studies=shown,
                hidden_studies=hidden[0],
                hidden_images=hidden[1],
                published=live,
                exact=all(answer.exact for answer in own),
                emulated=frozenset().union(*(answer.emulated for answer in own)),
                cut=any(answer.cut for answer in own) or (short and more),
                as_of=page.as_of,
                next=None if last else cursor.write(request, live.generation_id, subject, page, shown),
                timings_ms=_timings(started, asked, answered, own),
            )
        )
    return rankings


def _answers(
    search: Search, subjects: Sequence[Subject], request: Request, page: cursor.Page
) -> Iterator[tuple[Subject, Asked, float, float]]:
    """Each subject with its hits and whether there are more, and when they were asked for and came.

    All in one batch; by codes one subject after the other, as a ball may hold thousands.
    """
    batches = [subjects] if request.mode == "dense" else [[one] for one in subjects]
    for batch in batches:
        asked = time.perf_counter()
        found = _ask(search, batch, request, page)
        answered = time.perf_counter()
        for subject, own in zip(batch, found, strict=True):
            yield subject, own, asked, answered


def _ask(
    search: Search, subjects: Sequence[Subject], request: Request, page: cursor.Page, depth: int = LEAST_DEPTH
) -> list[Asked]:
    """The hits of each subject's images, in one batch; of the best `k` studies where the first lie in fewer."""
    depth = min(max(DEPTH * request.k, depth), MOST_DEPTH)
    found = _batch(search, subjects, request, [_queries(one, request, page, depth) for one in subjects])
    short = [i for i, (answers, more) in enumerate(found) if more and _studies(answers) < request.k]
    if short:
        of_each = min(DEPTH, MOST_OF_GROUPS // request.k)
        grouped = [
            [replace(query, group_by="study", group_limit=of_each) for query in queries]
            for queries in (_queries(subjects[i], request, page, of_each * request.k) for i in short)
        ]
        for i, asked in zip(short, _batch(search, [subjects[i] for i in short], request, grouped), strict=True):
            found[i] = asked
    return found


def _batch(
    search: Search, subjects: Sequence[Subject], request: Request, queries: Sequence[Sequence[Query]]
) -> list[Asked]:
    images = [image for subject in subjects for image in subject.images]
    answers = iter(search(images, [query for own in queries for query in own]))
    found = []
    for own in queries:
        told = [next(answers) for _ in own]
        full = request.radius is None and any(len(a.hits) == q.limit for a, q in zip(told, own, strict=True))
        found.append((told, full or any(answer.cut for answer in told)))  # a ball of a radius is whole, or cut
    return found


def _studies(answers: Sequence[Answer]) -> int:
    return len({hit.payload["study"] for answer in answers for hit in answer.hits})


def _shown(
    connection: sa.Connection,
    live: Published,
    subject: Subject,
    answers: Sequence[Answer],
    request: Request,
    page: cursor.Page,
) -> tuple[tuple[Found, ...], bool]:
    """The studies to show, and whether every hit may be.

    Ranked by what travels with the vectors, so that rows are read for the leaders only. Where one of theirs is missing
    (an orphan, erased, newer than the page, or just being written) others may move up: then all rows are read.
    """

    def rows_of(points: Iterable[uuid.UUID]) -> dict[uuid.UUID, HitRow]:
        as_of = page.as_of if request.cursor else None
        return neighbours.behind(connection, live.generation_id, list(dict.fromkeys(points)), as_of)

    ranking = rank.rank(subject.images, answers)
    lead = rank.leaders(ranking, request.k)
    rows = rows_of(hit.id for study in lead for hit in study.matches.values())
    all_there = all(hit.id in rows for study in lead for hit in study.matches.values())
    if not all_there:
        every = {hit.id for answer in answers for hit in answer.hits}
        rows = rows_of(every)
        ranking = rank.rank(subject.images, answers, gone=every - rows.keys())
        lead = rank.leaders(ranking, request.k)
    found = sorted((_found(subject, study, rows) for study in lead), key=lambda f: (-f.score, f.study_uid))
    return tuple(found[: request.k]), all_there


def _found(subject: Subject, candidate: Candidate, rows: Mapping[uuid.UUID, HitRow]) -> Found:
    pairs = tuple(
        Pair(
            query=subject.images[i],
            hit=rows[hit.id],
            score=hit.score,
            hamming=hit.hamming,
            content=hit.content,
        )
        for i, hit in sorted(candidate.matches.items())
    )
    row = pairs[0].hit
    return Found(
        study_id=row.study_id,
        study_uid=row.study_uid,
        study_date=row.study_date,
        score=candidate.score,
        pairs=pairs,
    )


def _timings(started: float, asked: float, answered: float, answers: Sequence[Answer]) -> dict[str, float]:
    now = time.perf_counter()
    engine = [answer.engine_ms for answer in answers if answer.engine_ms is not None]
    parts = {
        "total": now - started,
        "before_index": asked - started,
        "index": answered - asked,
        "after_index": now - answered,
    }
    timings = {name: round(seconds * 1000, 3) for name, seconds in parts.items()}
    return timings | ({"engine": round(max(engine), 3)} if engine else {})


def _queries(subject: Subject, request: Request, page: cursor.Page, depth: int) -> list[Query]:
    never: list[Condition] = []
    if "patient" in request.exclude and subject.patients:
        never.append(Match(field="patient", values=tuple(map(patient_number, subject.patients))))
    elif "study" in request.exclude and subject.study_id is not None:
        never.append(Match(field="study", values=(subject.study_id,)))
    elif "self" in request.exclude and subject.image_ids:
        never.append(Match(field="image", values=subject.image_ids))
    if page.seen:
        never.append(Match(field="study", values=page.seen))
    must = request.filters.conditions()
    return [
        Query(
            vector=image.vector,
            limit=depth,
            filter=Filter(must=must + _same_view(image, request), must_not=tuple(never)),
            accuracy=request.accuracy,
            fields=rank.FIELDS,
        )
        for image in subject.images
    ]


def _same_view(image: QueryImage, request: Request) -> tuple[Condition, ...]:
    if request.view == "match" and image.view:
        return (Match(field="view", values=(image.view,)),)
    return ()


def _hidden(connection: sa.Connection, subject: Subject, request: Request) -> tuple[int, int]:
    return neighbours.hidden(
        connection,
        patients=subject.patients if "patient" in request.exclude else (),
        study_id=subject.study_id if "study" in request.exclude else None,
        image_ids=subject.image_ids if "self" in request.exclude else (),
    )
