"""How many candidates a search looks at."""

import uuid
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from shared.index import effort as module
from shared.index import faiss, messages, qdrant
from shared.index.base import Point, Query, Recall, Spec
from shared.index.effort import SUFFICES, effort
from tests.contracts.engines import local_mode


@pytest.mark.parametrize("table", [messages.EF, faiss.EF])
def test_more_recall_costs_more_effort(table: tuple[tuple[float, int], ...]) -> None:
    efforts = [effort(table, target, 100) for target in (0.5, 0.97, 0.99, 1.0)]
    assert efforts == sorted(efforts)
    assert len(set(efforts)) > 2


def test_the_effort_grows_with_the_graph_once_that_is_large() -> None:
    efforts = [effort(messages.EF, 0.9, points) for points in (0, SUFFICES, 4 * SUFFICES, 9 * SUFFICES)]
    assert efforts == [48, 48, 96, 144]


def test_a_collection_is_asked_for_its_size_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUFFICES", 100)
    with closing(local_mode()) as store:
        index = store.create("a", Spec(dim=4, scale="hnsw"))
        ask, efforts = index._wire.points.QueryBatch, []

        def noting(request: Any, **options: Any) -> Any:
            efforts.append(request.query_points[0].params.hnsw_ef)
            return ask(request, **options)

        monkeypatch.setattr(index._wire.points, "QueryBatch", noting)
        for numbers in (range(100), range(100, 400)):
            rows = np.random.default_rng(numbers.start).standard_normal((len(numbers), 4)).astype(np.float32)
            index.write(
                [
                    Point(id=uuid.UUID(int=n + 1), vector=v, payload={"revision": 1})
                    for n, v in zip(numbers, rows, strict=True)
                ]
            )
            index.search([Query(vector=rows[0], limit=3, accuracy=Recall(0.9))])
        monkeypatch.setattr(qdrant, "SIZED_FOR_S", 0.0)
        index._sized_until = 0.0
        index.search([Query(vector=rows[0], limit=3, accuracy=Recall(0.9))])
    assert efforts == [48, 48, 96]
