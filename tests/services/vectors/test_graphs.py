"""When new points get a small graph beside the large one, and when one graph is built of all."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from services.vectors import optimize
from services.vectors.optimize import Optimizer
from services.vectors.refused import Refused
from services.vectors.shards import Collection, Shards
from shared.index import messages
from tests.services.vectors.test_durability import SPEC, revised, until, write


class Growing:
    """A collection that is linked whenever fifty points are not."""

    def __init__(self, held: Shards, optimizer: Optimizer) -> None:
        held.create(messages.create("a", SPEC))
        self.held, self.optimizer = held, optimizer

    @property
    def collection(self) -> Collection:
        return self.held.get("a")

    def write(self, numbers: range) -> None:
        write(self.held, revised(numbers, 1))
        self.optimizer.consider(self.collection)
        self.wait()

    def wait(self) -> None:
        until(lambda: not self.optimizer.busy(self.collection))

    def graphs(self) -> tuple[int, int]:
        """The number of graphs, which hold all points, and how many points the large one was built of."""
        info = self.collection.info()
        assert info.indexed_vectors_count == info.points_count
        return info.segments_count - 1, int((self.collection.path / optimize.WHOLE).read_text())


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Growing]:
    monkeypatch.setattr(optimize, "threshold", lambda _: 50)
    with ExitStack() as stack:
        held = stack.enter_context(closing(Shards(tmp_path)))
        optimizer = Optimizer()
        stack.callback(optimizer.stop)
        yield Growing(held, optimizer)


def test_a_few_new_points_get_a_graph_beside_and_many_a_graph_of_all(growing: Growing) -> None:
    made = []
    for numbers in (range(1600), range(1600, 1800), range(1800, 1900), range(1900, 2600)):
        growing.write(numbers)
        made.append(growing.graphs())
    assert made == [(1, 1600), (2, 1600), (2, 1600), (1, 2600)]


def test_whoever_asks_for_an_optimisation_gets_one_graph(growing: Growing) -> None:
    growing.write(range(1600))
    growing.write(range(1600, 1800))
    growing.optimizer.request(growing.collection)
    assert growing.optimizer.busy(growing.collection)
    growing.wait()
    assert growing.graphs() == (1, 1800)
    growing.optimizer.request(growing.collection)
    assert not growing.optimizer.busy(growing.collection)


def test_a_graph_beside_is_merged_after_a_while(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    growing.write(range(1600))
    growing.write(range(1600, 1800))
    assert growing.graphs() == (2, 1600)  # and nobody is told to wait for the merge
    monkeypatch.setattr(optimize, "MERGE_AFTER_S", 0.2)
    monkeypatch.setattr(optimize, "MERGE_AFTER_S_PER_POINT", 0.0)
    growing.write(range(1800, 1900))  # links again, so that the wait begins anew
    until(lambda: growing.graphs() == (1, 1900))


def test_a_graph_beside_is_merged_after_a_restart_too(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    growing.write(range(1600))
    growing.write(range(1600, 1800))
    monkeypatch.setattr(optimize, "MERGE_AFTER_S", 0.2)
    monkeypatch.setattr(optimize, "MERGE_AFTER_S_PER_POINT", 0.0)
    restarted = Optimizer(growing.held.loaded())
    try:
        until(lambda: growing.graphs() == (1, 1800))
    finally:
        restarted.stop()


def test_a_write_that_ends_while_its_collection_is_deleted_is_no_matter_of_the_next_one(growing: Growing) -> None:
    write(growing.held, revised(range(100), 1))
    growing.optimizer.forget(growing.collection)
    with suppress(Refused):
        growing.optimizer.consider(growing.collection)
    growing.wait()
    growing.held.drop("a")
    growing.held.create(messages.create("a", SPEC))
    growing.write(range(60))
    assert growing.graphs() == (1, 60)
