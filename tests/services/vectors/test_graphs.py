"""When new points get a small graph beside the large one, and when one graph is built of all."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from services.vectors import optimize
from services.vectors.optimize import Optimizer
from services.vectors.refused import Refused
from services.vectors.shards import Collection, Shards
from shared.index import messages
from shared.index.protobuf import pb
from tests.contracts.test_index import id_of
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

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """The next rebuild has begun, and ends after the block."""
        config = self.collection.folder / "collection.json"
        said = config.read_text(encoding="utf-8")
        config.unlink()
        os.mkfifo(config)  # the child waits here, before it links
        self.optimizer.consider(self.collection)
        until(lambda: self.optimizer._child is not None)
        yield
        with config.open("w", encoding="utf-8") as pipe:
            config.unlink()
            config.write_text(said, encoding="utf-8")  # for later children
            pipe.write(said)

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
    growing.optimizer.stop()  # two of them would rebuild the same copy
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


def test_a_rebuild_that_hangs_is_ended_and_the_next_one_succeeds(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = growing.collection.folder / "collection.json"
    said = config.read_text(encoding="utf-8")
    config.unlink()
    os.mkfifo(config)  # nobody ever writes to it
    with monkeypatch.context() as patient:
        patient.setattr(optimize, "LOOK_S", 0.2)
        patient.setattr(optimize, "SILENT_LOOKS", 5)
        growing.write(range(60))
    assert growing.optimizer.failed(growing.collection)
    assert growing.collection.unindexed() == 60
    config.unlink()
    config.write_text(said, encoding="utf-8")
    growing.write(range(60, 70))
    assert growing.graphs() == (1, 70)


def test_what_is_written_during_a_merge_asks_for_no_second_one(growing: Growing) -> None:
    growing.write(range(1600))
    growing.write(range(1600, 1800))
    growing.optimizer.request(growing.collection)
    with growing.held_up():
        write(growing.held, revised(range(1800, 1810), 1))
        growing.optimizer.consider(growing.collection)
    growing.wait()
    assert (growing.collection.info().segments_count, growing.collection.unindexed()) == (optimize.ONE_GRAPH, 10)
    assert growing.optimizer._states[growing.collection].due is None


def test_what_is_written_while_points_are_linked_waits_as_long_as_that_took(growing: Growing) -> None:
    growing.write(range(1600))
    write(growing.held, revised(range(1600, 1800), 1))
    with growing.held_up():
        began = time.monotonic()
        write(growing.held, revised(range(1800, 1900), 1))
        growing.optimizer.consider(growing.collection)
        time.sleep(2)
    until(lambda: growing.collection.unindexed() == 100)
    took = time.monotonic() - began
    until(lambda: growing.collection.unindexed() == 0)
    assert time.monotonic() - began > 2 * took


def test_two_graphs_that_do_not_merge_are_left_alone(growing: Growing) -> None:
    """Edge would be asked to for ever, and each time copy the shard. These two have lost all their points."""
    growing.write(range(1600))
    growing.write(range(1600, 1800))
    gone = pb.DeletePoints(collection_name="a")
    gone.points.points.ids.extend(messages.point_id(id_of(number)) for number in range(1800))
    growing.collection.write("Delete", gone.SerializeToString(), [])
    assert growing.graphs() == (2, 1600)
    growing.optimizer.request(growing.collection)
    growing.wait()
    assert growing.graphs() == (2, 1600)
    growing.optimizer.consider(growing.collection)
    growing.optimizer.request(growing.collection)
    assert growing.optimizer._states[growing.collection].due is None
    assert not growing.optimizer.busy(growing.collection)


def test_a_shard_that_cannot_be_asked_at_the_start_is_linked_later(growing: Growing) -> None:
    forward, asked = growing.collection.ask, []

    def failing(name: str, _: bytes) -> bytes:
        asked.append(name)
        raise OSError(errno.EMFILE, "too many open files")

    growing.collection.ask = failing  # type: ignore[method-assign]
    restarted = Optimizer(growing.held.loaded())
    try:
        until(lambda: bool(asked))
        growing.collection.ask = forward  # type: ignore[method-assign]
        write(growing.held, revised(range(100), 1))
        restarted.consider(growing.collection)
        until(lambda: growing.collection.unindexed() == 0)
    finally:
        restarted.stop()
