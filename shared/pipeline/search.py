"""Search: the studies most like a stored study, or like an uploaded image.

One read for the query's vectors, one batch to the index with filters and exclusions, one read for the rows
behind the hits. The published pointer is read once; a query keeps its generation for its whole life.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import sqlalchemy as sa

from shared.encoder.base import Encoded, Encoder
from shared.errors import Conflict, Gate, Invalid, NotFound, Outcome, Rejected, Unavailable
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.pseudonym import patient_key
from shared.imaging.recipe import Recipe
from shared.index.base import Answer, Index, Query
from shared.pipeline import cursor, hashes, rank
from shared.pipeline.ask import Asked, ask
from shared.pipeline.hashes import Search
from shared.pipeline.judge import Judgement, judge_image, standards
from shared.pipeline.question import Found, Pair, Ranking, Request, Subject
from shared.pipeline.rank import Candidate, QueryImage
from shared.store import encodings, generations, neighbours
from shared.store.generations import Published
from shared.store.neighbours import HitRow, QueryRow
from shared.types import Decoded, Header

MAX_VECTORS = 16  #: of a study; of a CT, evenly spaced slices


def by_studies(
    connection: sa.Connection,
    index_of: Callable[[str], Index],
    study_uids: Sequence[str],
    request: Request,
) -> list[Ranking]:
    """One ranking per study, in the order asked.

    Raises: `NotFound` for an unknown study, `Conflict` for one that is not encoded yet or a stale cursor,
    `Unavailable` before a model is published, or where its index is gone.
    """
    started = time.perf_counter()
    live = _published(connection)
    by_uid: dict[str, list[QueryRow]] = {}
    for row in neighbours.vectors(connection, study_uids, live.model_id):
        by_uid.setdefault(row.study_uid, []).append(row)
    for place, uid in enumerate(study_uids, 1):
        if uid not in by_uid:
            which = f" (number {place} of the {len(study_uids)} asked for)" if len(study_uids) > 1 else ""
            if not neighbours.exists(connection, uid):
                raise NotFound(f"no such study{which}")
            raise Conflict(f"no image of this study is encoded by the published model{which}")
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
    """Return the ranking for an uploaded image; nothing of the image is stored.

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
    """Judge an uploaded image by gate 3, with the thresholds that are in force for intake."""
    scores = [] if encoded.ood is None else [float(score) for score in encoded.ood]
    standard = standards(connection, live.model_id, {modality}).get(modality)
    return judge_image(scores, map(encodings.pack, encoded.embeddings), standard)


def _outsider(connection: sa.Connection, header: Header, said: Subject, secret: bytes) -> Subject:
    """Add to an uploaded image's subject what the archive knows of it or its study, even if its header is anonymous.

    The patient that the header names is hidden, too: the archive may know the study under an earlier patient ID.
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


@contextmanager
def _of_a_standing_index() -> Iterator[None]:
    """Raises: `Unavailable` if the engine has lost the collection; `NotFound` would speak of the caller's study."""
    try:
        yield
    except NotFound:
        raise Unavailable("the published index is gone: `similis doctor --repair` makes it again") from None


@_of_a_standing_index()
def _rank(
    connection: sa.Connection,
    index_of: Callable[[str], Index],
    live: Published,
    subjects: Sequence[Subject],
    request: Request,
    started: float,
) -> list[Ranking]:
    if request.cursor is not None and len(subjects) != 1:
        raise Invalid("a cursor can be used with one query only")
    page = cursor.read(request, live.generation_id, subjects[0]) if request.cursor else cursor.first(live.read_at)
    index = index_of(live.collection)
    search = _searcher(connection, index, live, request)
    rankings = []
    for subject, found, asked, answered in _answers(search, subjects, request, page):
        own, more = found
        shown, all_there = _shown(connection, live, subject, own, request, page)
        if len(shown) < request.k and not all_there:  # hits that may not be shown displaced others
            ((own, more),) = ask(search, [subject], request, page, deep=True)
            shown, _ = _shown(connection, live, subject, own, request, page)
        short = len(shown) < request.k
        last = short and not (more and shown)  # a page that is not full is the last one, if all was looked at
        hidden = _hidden(connection, subject, request)
        rankings.append(
            Ranking(
                subject=subject,
                studies=shown,
                before=len(page.seen),
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


def _searcher(connection: sa.Connection, index: Index, live: Published, request: Request) -> Search:
    if request.mode != "dense":
        return hashes.searcher(connection, index, live, request.mode, request.radius)

    def search(_: Sequence[QueryImage], queries: Sequence[Query]) -> list[Answer]:
        return index.search(queries)

    return search


def _answers(
    search: Search, subjects: Sequence[Subject], request: Request, page: cursor.Page
) -> Iterator[tuple[Subject, Asked, float, float]]:
    """Yield each subject with its hits, whether there are more, and the times of the query and of its answer.

    All subjects are one batch; in searches by codes each subject is a batch, as a ball may hold thousands.
    """
    batches = [subjects] if request.mode == "dense" else [[one] for one in subjects]
    for batch in batches:
        asked = time.perf_counter()
        found = ask(search, batch, request, page)
        answered = time.perf_counter()
        for subject, own in zip(batch, found, strict=True):
            yield subject, own, asked, answered


def _shown(
    connection: sa.Connection,
    live: Published,
    subject: Subject,
    answers: Sequence[Answer],
    request: Request,
    page: cursor.Page,
) -> tuple[tuple[Found, ...], bool]:
    """Return the studies to show, and whether every hit of the leading ones may be shown.

    Studies are ranked by the payloads of the hits, so that rows are read for the leaders only. If a row is missing
    (an orphan, erased, newer than the page, or just being written), others may move up: then all rows are read.
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


def _hidden(connection: sa.Connection, subject: Subject, request: Request) -> tuple[int, int]:
    return neighbours.hidden(
        connection,
        patients=subject.patients if "patient" in request.exclude else (),
        study_id=subject.study_id if "study" in request.exclude else None,
        image_ids=subject.image_ids if "self" in request.exclude else (),
    )
