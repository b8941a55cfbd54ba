"""Search by hash codes: a Hamming ball from the index, ranked by what Postgres holds of the images.

Thousands of images share a distance, so the ball alone ranks nothing. Its images are ordered by their content, the
Pearson correlation of the embeddings, then by id. The correlation is computed here, from stored embeddings, and not
by the engines: so ids and order are the same on each of them. Source: arXiv 2503.09370, content-guided ranking.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from shared.errors import Conflict
from shared.index import checks
from shared.index.base import Answer, Ball, CodeQuery, Hit, Index, Metric, Near, Query, Spec
from shared.index.grouping import emulate
from shared.index.memory import score
from shared.pipeline.rank import HAMMING, QueryImage
from shared.store import encodings, neighbours
from shared.store.generations import Published
from shared.types import Embeddings

Search = Callable[[Sequence[QueryImage], Sequence[Query]], list[Answer]]
#: A hybrid search looks at so many times the images that it is asked for; `benchmarks.hashes` says what that finds.
WIDE: Final = 10
HELD: Final = 10_000  #: embeddings in memory at a time: as many as a ball may hold, 20 MB at 1,024 dimensions
DIGITS: Final = 6  #: of a score: what lies below is the rounding of sums, and equal images must be equal


def searcher(
    connection: sa.Connection, index: Index, live: Published, mode: Literal["hash", "hybrid"], radius: int | None
) -> Search:
    """Raises: `Conflict` where the published generation holds no codes."""
    if not index.spec.bits:
        raise Conflict("the published model has no hash codes: publish a generation of one that has, or ask mode=dense")
    widening = WIDE if mode == "hybrid" else 1

    def flat(images: Sequence[QueryImage], queries: Sequence[Query]) -> list[Answer]:
        balls = index.near(
            [_ball(image, query, widening, radius) for image, query in zip(images, queries, strict=True)]
        )
        answers = []
        stored: dict[uuid.UUID, bytes] = {}
        for query, ball in zip(queries, balls, strict=True):
            missing = [hit.id for hit in ball.hits if hit.id not in stored]
            if len(stored) + len(missing) > HELD:  # of one ball, or of several small ones
                stored, missing = {}, [hit.id for hit in ball.hits]
            stored |= neighbours.embeddings(connection, live.generation_id, live.model_id, missing)
            known = [hit for hit in ball.hits if hit.id in stored]  # an orphan has no content
            matrix = encodings.stack([stored[hit.id] for hit in known]).reshape(-1, index.spec.dim)
            scores = (
                content(query.vector, matrix) if mode == "hash" else _as_the_index(index.spec, query.vector, matrix)
            )
            answers.append(_answer(query, ball, known, scores, radius))
        return answers

    def alone(image: QueryImage) -> Callable[[Sequence[Query]], list[Answer]]:
        return lambda asked: flat([image] * len(asked), asked)

    def search(images: Sequence[QueryImage], queries: Sequence[Query]) -> list[Answer]:
        if all(query.group_by is None for query in queries):
            return flat(images, queries)
        return [emulate(alone(image), [query])[0] for image, query in zip(images, queries, strict=True)]

    return search


def content(vector: NDArray[np.float32], matrix: Embeddings) -> NDArray[np.float32]:
    """Pearson correlation of (dim,) with each of (n, dim); of a vector without variance 0.

    Row by row: a BLAS product sums the rows of one matrix in several orders, and equal images would differ.
    """
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    own = vector - vector.mean()
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(own)
    products = np.einsum("ij,j->i", centred, own)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(matrix), np.float32), where=lengths > 0))


def _as_the_index(spec: Spec, vector: NDArray[np.float32], matrix: Embeddings) -> NDArray[np.float32]:
    """The score that a dense search gives, exactly."""
    (own,) = checks.prepare(spec, [vector])
    return score(Metric(spec.metric), checks.prepare(spec, list(matrix)), np.arange(len(matrix)), own)


def _ball(image: QueryImage, query: Query, widening: int, radius: int | None) -> CodeQuery:
    if image.code is None:
        raise Conflict("an image of this study has no hash code yet")
    return CodeQuery(
        code=image.code,
        k=min(widening * query.limit, HELD) if radius is None else None,
        radius=radius,
        filter=query.filter,
        fields=query.fields,
    )


def _answer(query: Query, ball: Ball, hits: Sequence[Near], scores: NDArray[np.float32], radius: int | None) -> Answer:
    rounded = np.round(scores.astype(np.float64), DIGITS)
    ranked = sorted(
        (
            Hit(hit.id, float(value), {**hit.payload, HAMMING: hit.distance})
            for hit, value in zip(hits, rounded, strict=True)
        ),
        key=lambda hit: (-hit.score, hit.id.int),
    )
    kept = ranked if radius is not None else ranked[: query.limit]
    return Answer(hits=tuple(kept), exact=True, cut=ball.cut, engine_ms=ball.engine_ms)
