"""Points: compare each open generation's index with its ledger.

A repair makes ledger rows due, and the projector writes to the index. Only points with a newer revision than their
row are deleted here, as the index would keep them, and a collection that cannot be read is created again.
"""

import heapq
import random
import uuid
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from shared.errors import Invalid, NotFound
from shared.index import checks as vectors
from shared.index.base import Damaged, Index, IndexStore, Point, Spec
from shared.pipeline import lifecycle, project
from shared.store import checks, encodings, generations, ledger
from shared.store.generations import Published
from shared.store.locks import Lock, alone
from shared.store.points import Row, apply_again, hold, other_encodings
from shared.store.session import Begin

SAMPLE = 300  #: points of each generation whose vectors are compared, without `deep`
STEP = 256  #: points locked by one transaction
ROWS = 2000  #: of the ledger, read at once
#: A vector whose relative distance from its encoding is greater has a cosine below 0.9999 with it.
APART = 0.014


def compare(begin: Begin, indexes: IndexStore, *, repair: bool, deep: bool) -> dict[str, list[int | str]]:
    """Return ids by kind of mismatch: of points, of images with a bad encoding, of generations without a collection."""
    with begin() as db:
        opened = generations.opened(db)
    wrong: dict[str, list[int | str]] = {}
    for generation in opened:
        try:
            index = indexes.open(generation.collection)
        except (NotFound, Damaged) as error:
            if repair:
                with begin() as db:
                    alone(db, Lock.GENERATIONS)
                    indexes.drop(generation.collection)
                    lifecycle.begin_again(db, indexes, generations.get(db, generation.generation_id))
            kind = "collection-damaged" if isinstance(error, Damaged) else "collection-missing"
            wrong.setdefault(kind, []).append(generation.generation_id)
            continue
        suspects = _suspects(begin, index, generation, deep)
        while step := list(islice(suspects, STEP)):
            for kind, name in _judged(begin, index, generation, step, repair):
                wrong.setdefault(kind, []).append(name)
    return wrong


def _suspects(begin: Begin, index: Index, generation: Published, deep: bool) -> Iterator[uuid.UUID]:
    """Yield the points that are missing on one side or differ in revision, and a sample of the others; all, if `deep`.

    Index and ledger are read by id, a page at a time, and merged, so memory does not grow with the archive.
    """
    seen = (entry for batch in index.scan() for entry in batch)
    rest: list[uuid.UUID] = []
    chance, agreed = random.Random(0), 0  # noqa: S311 - which ones does not matter
    for _, group in groupby(heapq.merge(seen, _held(begin, generation)), key=lambda entry: entry[0]):
        pair = list(group)
        point = pair[0][0]
        if deep or len(pair) != 2 or pair[0][1] != pair[1][1]:
            yield point
            continue
        agreed += 1
        if len(rest) < SAMPLE:
            rest.append(point)
        elif (place := chance.randrange(agreed)) < SAMPLE:
            rest[place] = point
    yield from rest


def _held(begin: Begin, generation: Published) -> Iterator[tuple[uuid.UUID, int]]:
    after = uuid.UUID(int=0)
    while True:
        with begin() as db:
            page = ledger.held(db, generation.generation_id, after, ROWS)
        yield from page
        if len(page) < ROWS:
            return
        after = page[-1][0]


def _judged(
    begin: Begin, index: Index, generation: Published, points: Sequence[uuid.UUID], repair: bool
) -> list[tuple[str, int | str]]:
    """Return (kind, id) of the points that are wrong, judged while their ledger rows are locked."""
    found: list[tuple[str, int | str]] = []
    with begin() as db:
        rows, unknown = hold(db, generation.generation_id, generation.model_id, points)
        here = {point.id: point for point in index.get(list(points))}
        strangers = sorted(unknown & here.keys())
        wrong, newer, bad = [], [], []
        for id_, row in sorted(rows.items()):  # so that findings name the same ones each time
            kind = _diagnosis(db, index.spec, generation, row, here.get(id_))
            if kind == "encoding-invalid":
                bad.append(row.wanted.image_id)
                found.append((kind, row.wanted.image_id))
            elif kind is not None:
                wrong.append(id_)
                found.append((kind, str(id_)))
                if kind == "point-stale" and vectors.revision(here[id_]) > row.wanted.revision:
                    newer.append(id_)  # the index would keep the newer revision
        if repair:
            index.delete(newer)
            apply_again(db, generation.generation_id, wrong, strangers)
            checks.encode_again(db, bad)
    return found + [("point-phantom", str(id_)) for id_ in strangers]


def _diagnosis(db: Session, spec: Spec, generation: Published, row: Row, point: Point | None) -> str | None:
    """Return what is wrong with a point; None if nothing is, or its ledger row is not applied."""
    wanted = row.wanted
    if row.state != "applied":
        return None  # the projector will write it
    if wanted.op == "delete":
        return None if point is None else "point-phantom"
    if wanted.embedding is None or len(wanted.embedding) != 2 * spec.dim:
        return None  # a finding of the checks of rows
    try:
        (expected,) = vectors.prepare(spec, [encodings.unpack(wanted.embedding)])
    except Invalid:
        return "encoding-invalid"
    if point is None:
        return "point-missing"
    if vectors.revision(point) != wanted.revision:
        return "point-stale"
    if not np.isfinite(point.vector).all() or not point.vector.any():
        return "point-zero"
    if _apart(point.vector, expected):
        return _whose(db, spec, generation, row, point)
    if spec.bits and (point.code is None or point.code.tobytes() != wanted.code):
        return "code-differs"
    return "payload-drift" if dict(point.payload) != project.payload(wanted) else None


def _whose(db: Session, spec: Spec, generation: Published, row: Row, point: Point) -> str:
    for other in other_encodings(db, generation.model_id, row.wanted.image_id):
        vector = encodings.unpack(other)
        if vector.shape == (spec.dim,) and not _apart(point.vector, vectors.prepare(spec, [vector])[0]):
            return "wrong-fingerprint"
    return "vector-differs"


def _apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape != b.shape or bool(np.linalg.norm(a - b) > APART * np.linalg.norm(b))
