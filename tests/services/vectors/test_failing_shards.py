"""A failing shard does not affect the others: one that cannot be loaded, a child that hangs."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from services.vectors import shards
from services.vectors.refused import Refused
from services.vectors.server import THREADS
from services.vectors.shard_client import ForkServer
from services.vectors.shards import ALL_CALLS, CALLS, Shards
from shared.index import checks, messages
from shared.index.base import Damaged, Query, Spec
from shared.index.protobuf import pb
from shared.process import until
from tests.contracts import engines
from tests.contracts.test_index import gallery, matrix

DIM = 32
SPEC = Spec(dim=DIM)


def health(running: engines.VectorsProcess) -> str:
    with grpc.insecure_channel(f"unix://{running.socket}") as channel:
        metadata = [("api-key", engines.KEY)]
        return str(pb.QdrantStub(channel).HealthCheck(pb.HealthCheckRequest(), metadata=metadata).title)


@pytest.mark.parametrize("damage", ["segment", "config"])
def test_a_shard_that_cannot_be_loaded_is_named_and_the_others_are_served(tmp_path: Path, damage: str) -> None:
    with engines.vectors_process(tmp_path) as running:
        with closing(running.store()) as store:
            for name in ("sound", "torn"):
                store.create(name, SPEC).write(gallery(20))
        running.stop()
        torn = running.data / "torn"
        (torn / "collection.json" if damage == "config" else torn / "current" / "edge_config.json").write_text("{")
        running.start()
        with closing(running.store()) as store:
            assert store.open("sound").search([Query(vector=matrix(1)[0], limit=3)])[0].hits
            assert store.names() == ["sound", "torn"]
            with pytest.raises(Damaged, match="cannot load"):
                store.open("torn")
            assert "cannot be loaded: torn" in health(running)
            store.drop("torn")
            store.create("torn", SPEC).write(gallery(5))
            assert store.open("torn").count() == 5
            assert "cannot be loaded" not in health(running)
        assert sorted(path.name for path in running.data.iterdir()) == ["lock", "sound", "torn"]


def test_a_collection_whose_shard_does_not_load_is_named_and_can_be_dropped(tmp_path: Path, monkeypatch) -> None:
    held = Shards(tmp_path, partial(ForkServer, loads_within_s=0.2))
    server, load, locks = held._fork_server._process.pid, held._fork_server.load, []

    def late(shard, layout):
        """Load by a child that tells its pid late, and waits for the shard's lock."""
        locks.append(os.open(shard, os.O_RDONLY))
        fcntl.flock(locks[0], fcntl.LOCK_EX)
        os.kill(server, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (server, signal.SIGCONT)).start()
        return load(shard, layout)

    try:
        monkeypatch.setattr(held._fork_server, "load", late)
        with pytest.raises(Refused, match="cannot be loaded"):
            held.create(messages.create("a", SPEC))
        assert held.names() == ["a"]
        assert until(lambda: children(server) == [], 1), "it would write into the folder that is dropped"
        os.close(locks[0])
        monkeypatch.undo()
        held._fork_server._limits["loads_within_s"] = 60.0
        assert held.drop("a")
        held.create(messages.create("a", SPEC))
        assert held.get("a").info().points_count == 0
    finally:
        held.close()


def test_what_a_full_disk_kept_from_being_loaded_is_loaded_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "WATCH_S", 0.05)
    with closing(Shards(tmp_path)) as held:
        held.create(messages.create("a", SPEC))
    config = tmp_path / "a" / "current" / "edge_config.json"
    whole = config.read_text()
    config.write_text("{")  # Edge may not write what it has to
    monkeypatch.setattr(shards, "MIN_FREE_BYTES", 2**60)
    with closing(Shards(tmp_path)) as held:
        with pytest.raises(Refused, match="cannot be loaded"):
            held.get("a")
        config.write_text(whole)
        monkeypatch.setattr(shards, "MIN_FREE_BYTES", 0)
        assert until(lambda: not held.broken, 20)
        assert held.get("a").info().points_count == 0


def test_what_the_disk_keeps_of_a_dropped_collection_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    try:
        held.create(messages.create("a", SPEC))
        (tmp_path / ".gone.a" / "shard.0").mkdir(parents=True)
        assert held.drop("a")
        assert held.names() == []
        held.create(messages.create("a", SPEC))
    finally:
        held.close()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["a", "lock"]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shards]:
    """One collection of ten points, whose shard has short timeouts."""
    monkeypatch.setattr(shards, "SILENT_S", 0.2)
    held = Shards(tmp_path, partial(ForkServer, answers_within_s=1.5))
    held.create(messages.create("a", SPEC))
    points = gallery(10)
    vectors = checks.prepare(SPEC, [point.vector for point in points])
    request = messages.upsert("a", points, vectors)
    held.get("a").write("Upsert", request.SerializeToString(), [point.id.uuid for point in request.points])
    yield held
    held.close()


def hang(held: Shards) -> None:
    """Stop the child that holds the shard, as if its disk did not answer."""
    (pid,) = children(held._fork_server._process.pid)
    stand_still(pid)


def stand_still(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":  # SIGSTOP takes effect with a delay on another core
        time.sleep(0.001)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("raw", [b"", b"x" * (1 << 22)], ids=["waiting", "sending"])
def test_a_shard_that_hangs_is_killed_and_loaded_again(quick: Shards, raw: bytes) -> None:
    hang(quick)
    started = time.monotonic()
    with pytest.raises(Refused, match="try again") as caught:
        quick.get("a").ask("Count", raw)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 20
    assert quick.get("a").info().points_count == 10


def test_a_hung_shard_is_noticed_when_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WATCH_S", 0.1)
    monkeypatch.setattr(shards, "SILENT_S", 0.2)
    held = Shards(tmp_path, partial(ForkServer, answers_within_s=1.5))
    try:
        held.create(messages.create("a", SPEC))
        (before,) = children(held._fork_server._process.pid)
        hang(held)
        seen, until = [], time.monotonic() + 30
        while (now := children(held._fork_server._process.pid)) in ([], [before]):
            assert time.monotonic() < until
            seen += held.silent()
            time.sleep(0.02)
        assert now != [before]
        assert set(seen) == {"a"}
        assert held.get("a").info().points_count == 0
        assert held.silent() == []
    finally:
        held.close()


def test_a_shard_that_stands_still_holds_up_no_other_collection_and_all_of_them_not_the_rest(tmp_path: Path) -> None:
    many = 2 * THREADS
    with (
        engines.vectors_process(tmp_path) as running,
        closing(running.store()) as store,
        grpc.insecure_channel(f"unix://{running.socket}") as channel,
    ):
        assert running.process is not None
        store.create("still", SPEC)
        (fork_server,) = children(running.process.pid)
        (still,) = children(fork_server)
        store.create("other", SPEC).write(gallery(20))
        (other,) = {*children(fork_server)} - {still}
        count = pb.PointsStub(channel).Count  # type: ignore[no-untyped-call]
        ended = SimpleQueue[grpc.Future]()
        stand_still(still)
        try:
            for _ in range(many):
                request = pb.CountPoints(collection_name="still")
                count.future(request, metadata=[("api-key", engines.KEY)]).add_done_callback(ended.put)
            refused = [ended.get(timeout=30) for _ in range(many - CALLS)]
            assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert store.open("other").search([Query(vector=matrix(1)[0], limit=3)])[0].hits
            stand_still(other)
            for _ in range(many):
                request = pb.CountPoints(collection_name="other")
                count.future(request, metadata=[("api-key", engines.KEY)]).add_done_callback(ended.put)
            refused = [ended.get(timeout=30) for _ in range(many - (ALL_CALLS - CALLS))]
            assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert store.names() == ["other", "still"]
            assert "Edge" in health(running)
        finally:
            for child in (still, other):
                os.kill(child, signal.SIGCONT)
        assert [ended.get(timeout=30).code() for _ in range(ALL_CALLS)] == [grpc.StatusCode.OK] * ALL_CALLS


def test_the_limit_is_of_one_request_and_not_of_the_shards_life(quick: Shards) -> None:
    before = children(quick._fork_server._process.pid)
    for _ in range(20):
        assert quick.get("a").info().points_count == 10
        time.sleep(0.1)
    assert children(quick._fork_server._process.pid) == before
