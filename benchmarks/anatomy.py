"""Split one search, run in this process, into its parts; and recall per image."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import sqlalchemy as sa

from benchmarks.stack import Stack
from shared.imaging.pseudonym import patient_number
from shared.index.base import Exact, Filter, Match, Query, Recall
from shared.pipeline import search
from shared.pipeline.ask import LEAST_DEPTH
from shared.pipeline.question import TARGET, Request
from shared.store import encodings, neighbours
from shared.store.generations import Published


@contextmanager
def _statements(engine: sa.Engine, spent: list[float]) -> Iterator[None]:
    """Append to `spent` the milliseconds of every statement, from handing it to the driver to having its rows."""

    class Timed(psycopg.Cursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - psycopg's own
            began = time.perf_counter()
            try:
                return super().execute(*args, **kwargs)
            finally:
                spent.append((time.perf_counter() - began) * 1000)

    def use(connection: psycopg.Connection, *_: object) -> None:
        connection.cursor_factory = Timed

    sa.event.listen(engine, "checkout", use)
    try:
        yield
    finally:
        sa.event.remove(engine, "checkout", use)
        engine.dispose()  # connections with the timing cursor must not be reused


def of(stack: Stack, live: Published, uids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Median milliseconds of each SQL statement in order, of the index, and of the Python code around them."""
    index, request, spent = stack.index(live), Request(), list[float]()
    parts: dict[str, list[float]] = defaultdict(list)
    with _statements(stack.store.reads, spent):
        for uid in uids:
            started = time.perf_counter()
            with stack.store.reading() as connection:
                borrowed = time.perf_counter()
                spent.clear()  # drops the time of the connection's ping
                (ranking,) = search.by_studies(connection, lambda _name: index, [uid], request)
            total = (time.perf_counter() - started) * 1000
            parts["connection, with its ping"].append((borrowed - started) * 1000)
            for number, ms in enumerate(spent, 1):
                parts[f"Postgres, statement {number}"].append(ms)
            parts["index, whole"].append(ranking.timings_ms["index"])
            parts["index, engine"].append(ranking.timings_ms.get("engine", 0.0))
            rest = total - (borrowed - started) * 1000 - sum(spent) - ranking.timings_ms["index"]
            parts["Python: rows, grouping, the rest"].append(rest)
            parts["all"].append(total)
    return {"in_process_ms": {name: round(statistics.median(ms), 3) for name, ms in parts.items()}}


def image_recall(stack: Stack, live: Published, uids: Sequence[str], **query: str) -> float:
    """The share of the ten exact nearest points of each query image that approximate search returns.

    The query's own patient is excluded.
    """
    index, shares = stack.index(live), []
    must = tuple(Match(field=name, values=(value,)) for name, value in query.items())
    with stack.store.reading() as connection:
        rows = neighbours.vectors(connection, uids, live.model_id)
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        vectors = encodings.stack([row.embedding for row in part])
        filters = [Filter(must=must, must_not=(_patient(row.patient_key),)) for row in part]
        asked = {
            accuracy: index.search(
                [
                    Query(vector=vector, limit=LEAST_DEPTH, filter=own, accuracy=accuracy)
                    for vector, own in zip(vectors, filters, strict=True)
                ]
            )
            for accuracy in (Exact(), Recall(TARGET))
        }
        for want, got in zip(*asked.values(), strict=True):
            ids = {hit.id for hit in want.hits[:10]}
            if ids:
                shares.append(len(ids & {hit.id for hit in got.hits[:10]}) / len(ids))
    return round(statistics.mean(shares), 4)


def _patient(key: bytes) -> Match:
    return Match(field="patient", values=(patient_number(key),))
