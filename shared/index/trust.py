"""Checks an engine's Hamming distances on the points that it stores.

Some layouts give all codes one score, without an error, and a server may quantise a segment hours after it took the
points. So the engine is queried with its own points, before the first ball and then at intervals.
"""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from shared.errors import Unavailable
from shared.index.base import Ball, CodeQuery, Index, Point

QUESTIONS, K, MOST = 4, 20, 100
TRIES = 3  #: a point may be written between the search and the read that it is compared with
EVERY_S = 600.0

Near = Callable[[Sequence[CodeQuery]], list[Ball]]


class Trust:
    """Checks the distances of one collection, again when the last success is `every_s` seconds old."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._until = 0.0
        self._lock = threading.Lock()

    def check(self, index: Index, near: Near) -> None:
        """Raises: `Unavailable` while the engine's distances do not match the codes it holds."""
        if time.monotonic() < self._until:
            return
        with self._lock:
            if time.monotonic() < self._until:
                return
            if not any(right(index, near) for _ in range(TRIES)):
                raise Unavailable("the vector engine gives wrong Hamming distances: searches by codes are refused")
            self._until = time.monotonic() + self._every_s


def right(index: Index, near: Near) -> bool:
    """Whether stored points, as queries, find themselves, and others at the distances that their bits give."""
    some = next(iter(index.scan(QUESTIONS)), ())
    points = [point for point in index.get([id_ for id_, _ in islice(some, QUESTIONS)]) if point.code is not None]
    queries = [CodeQuery(code=p.code, k=K, most=MOST, fields=()) for p in points if p.code is not None]
    for point, ball in zip(points, near(queries), strict=True):
        held = {one.id: one for one in index.get([hit.id for hit in ball.hits])}
        if not ball.cut and point.id not in held:
            return False
        if any(hit.id in held and hit.distance != _bits(point, held[hit.id]) for hit in ball.hits):
            return False
    return True


def _bits(a: Point, b: Point) -> int:
    return -1 if a.code is None or b.code is None else int(np.bitwise_count(a.code ^ b.code).sum())
