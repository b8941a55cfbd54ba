"""Search by hash codes: a Hamming ball from the index, ranked by the embeddings in Postgres.

Thousands of images share a distance, so distances alone rank nothing. The images are ordered by content, the Pearson
correlation of the embeddings, then by id. The correlation is computed here, from stored embeddings, and not by the
engines: so ids and order are the same on each of them. Source: arXiv 2503.09370, content-guided ranking. The paper
does not say how many images are ranked: here, the k nearest codes and all ties of the last, or all within the radius.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from shared.errors import Conflict
from shared.index import checks
from shared.index.base import Answer, Ball, CodeQuery, Hit, Index, Metric, Near, Query, Spec
from shared.index.grouping import emulate
from shared.index.memory import score
from shared.pipeline.rank import QueryImage
from shared.store import encodings, neighbours
from shared.store.generations import Published
from shared.types import Embeddings

Search = Callable[[Sequence[QueryImage], Sequence[Query]], list[Answer]]
#: A hybrid search ranks this many times the images that are asked for; `benchmarks.hybrid` measures what that finds.
WIDE: Final = 10
Mode = Literal["hash", "hybrid"]
HELD: Final = 10_000  #: embeddings in memory at a time: as many as a ball may hold, 20 MB at 1,024 dimensions
DIGITS: Final = 6  #: of a score: the rest is rounding error, and identical images must tie


def searcher(connection: sa.Connection, index: Index, live: Published, mode: Mode, radius: int | None) -> Search:
    """Return the search function of `mode`. Raises: `Conflict` if the published generation holds no codes."""
    if not index.spec.bits:
        raise Conflict(
            "the published model has no hash codes: publish a generation of a model with codes, "
            "or search with mode=dense"
        )

    def flat(images: Sequence[QueryImage], queries: Sequence[Query]) -> list[Answer]:
        wanted = [_ball(image, query, mode, radius) for image, query in zip(images, queries, strict=True)]
        stored = Stored(connection, live)
        answers = []
        for query, asked, first in zip(queries, wanted, index.near(wanted), strict=True):
            ball, known = _whole(index, stored, asked, first)
            matrix = encodings.stack([stored[hit.id] for hit in known]).reshape(-1, index.spec.dim)
            answers.append(_answer(index.spec, query, ball, known, matrix, mode, radius))
        return answers

    def alone(image: QueryImage) -> Callable[[Sequence[Query]], list[Answer]]:
        return lambda asked: flat([image] * len(asked), asked)

    def search(images: Sequence[QueryImage], queries: Sequence[Query]) -> list[Answer]:
        if all(query.group_by is None for query in queries):
            return flat(images, queries)
        return [emulate(alone(image), [query], nested=False)[0] for image, query in zip(images, queries, strict=True)]

    return search


def trusted(index: Index) -> None:
    """Check the engine's Hamming distances, if the index holds codes. Raises: `Unavailable` if they are wrong."""
    if index.spec.bits:
        index.near([])


class Stored:
    """Cache of the embeddings of points that searches may show, at most as many as one large ball has."""

    def __init__(self, connection: sa.Connection, live: Published) -> None:
        self._connection, self._live = connection, live
        self._held: dict[uuid.UUID, bytes] = {}

    def of(self, hits: Sequence[Near]) -> list[Near]:
        """Return the hits that have an embedding. An orphan, whose image was erased or is being written, has none."""
        missing = [hit.id for hit in hits if hit.id not in self._held]
        if len(self._held) + len(missing) > HELD:  # keep one ball, or several small ones
            self._held, missing = {}, [hit.id for hit in hits]
        self._held |= neighbours.embeddings(self._connection, self._live.generation_id, self._live.model_id, missing)
        return [hit for hit in hits if hit.id in self._held]

    def __getitem__(self, id_: uuid.UUID) -> bytes:
        return self._held[id_]


def _whole(index: Index, stored: Stored, asked: CodeQuery, ball: Ball) -> tuple[Ball, list[Near]]:
    """Return the ball and its images that may be shown, widened until orphans displace none that were asked for."""
    known, wanted = stored.of(ball.hits), asked.k
    if wanted is None:
        return ball, known
    width = wanted
    while len(known) < wanted and width <= len(ball.hits) < asked.most:  # with fewer hits than `width`: all images
        width = min(2 * len(ball.hits), asked.most)
        (ball,) = index.near([replace(asked, k=width)])
        known = stored.of(ball.hits)
    if len(known) < wanted:
        return ball, known
    rim = known[wanted - 1].distance  # hits come by distance; cut what only the widening brought
    return ball, [hit for hit in known if hit.distance <= rim]


def content(vector: NDArray[np.float32], matrix: Embeddings) -> NDArray[np.float32]:
    """Pearson correlation of (dim,) with each of (n, dim); 0 for a vector without variance.

    Row by row: BLAS may sum the rows of one matrix in different orders, and identical images would differ.
    """
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    own = vector - vector.mean()
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(own)
    products = np.einsum("ij,j->i", centred, own)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(matrix), np.float32), where=lengths > 0))


def _as_the_index(spec: Spec, vector: NDArray[np.float32], matrix: Embeddings) -> NDArray[np.float32]:
    """Return exactly the scores that a dense search gives."""
    (own,) = checks.prepare(spec, [vector])
    return score(Metric(spec.metric), checks.prepare(spec, list(matrix)), np.arange(len(matrix)), own)


def _ball(image: QueryImage, query: Query, mode: Mode, radius: int | None) -> CodeQuery:
    if image.code is None:
        raise Conflict("an image of this study has no hash code yet")
    widening = WIDE if mode == "hybrid" else 1
    return CodeQuery(
        code=image.code,
        k=min(widening * query.limit, HELD) if radius is None else None,
        radius=radius,
        filter=query.filter,
        fields=query.fields,
    )


def _answer(
    spec: Spec, query: Query, ball: Ball, hits: Sequence[Near], matrix: Embeddings, mode: Mode, radius: int | None
) -> Answer:
    """Rank by content, or in a hybrid search by the embedding: exact within the ball, which may lack a neighbour."""
    likeness = _rounded(content(query.vector, matrix))
    scores = likeness if mode == "hash" else _rounded(_as_the_index(spec, query.vector, matrix))
    ranked = sorted(
        (
            Hit(hit.id, score, hit.payload, hit.distance, alike)
            for hit, score, alike in zip(hits, scores, likeness, strict=True)
        ),
        key=lambda hit: (-hit.score, hit.id.int),
    )
    kept = ranked if radius is not None else ranked[: query.limit]
    return Answer(hits=tuple(kept), exact=mode == "hash", cut=ball.cut, engine_ms=ball.engine_ms)


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [float(value) for value in np.round(values.astype(np.float64), DIGITS)]
