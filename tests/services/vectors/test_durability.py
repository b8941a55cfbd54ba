"""No acknowledged point is lost, whenever the process is killed: during a write, an optimisation, a file's move."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import qdrant_edge as edge
from structlog.testing import capture_logs

from benchmarks.processes import children
from services.vectors import optimize, shard_process, translate
from services.vectors.shard_client import ForkServer, Gone
from services.vectors.shard_service import ShardService
from services.vectors.shards import Collection, Shards
from shared.errors import SimilisError, Unavailable
from shared.index import checks, messages, qdrant
from shared.index.base import PAYLOAD, Exact, Index, Info, Point, Query, Spec
from shared.index.protobuf import pb
from shared.priority import AUTOGROUP
from tests.contracts import engines
from tests.contracts.engines import HANGS_S
from tests.contracts.test_index import gallery, id_of, matrix

DIM = 32
SPEC = Spec(dim=DIM)


def revised(numbers: range, revision: int) -> list[Point]:
    rows = matrix(len(numbers), seed=1_000_000 * revision + numbers.start)
    return [
        Point(id=id_of(number), vector=row, payload={"revision": revision})
        for number, row in zip(numbers, rows, strict=True)
    ]


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS_S
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def unlinked(index: Index) -> int:
    info = index.info()
    return info.points - info.indexed


def assert_holds(index: Index, want: dict[int, int]) -> None:
    """Check that the index holds exactly these points, each at least at this revision and found by its own vector."""
    held = dict(entry for part in index.scan() for entry in part)
    assert held.keys() == {id_of(number) for number in want}
    assert all(held[id_of(number)] >= revision for number, revision in want.items())
    sample = index.get([id_of(number) for number in sorted(want)[:: max(1, len(want) // 40)]])
    answers = index.search([Query(vector=point.vector, limit=1, accuracy=Exact()) for point in sample])
    assert [answer.hits[0].id for answer in answers] == [point.id for point in sample]


def test_a_kill_during_writes_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(5)
    acknowledged: dict[int, int] = {}
    with engines.vectors_process(tmp_path) as running:
        for life in range(5):
            with closing(running.store()) as store:
                index = store.create("a", SPEC)
                killer = threading.Timer(chance.uniform(0.1, 0.5), running.kill)
                killer.start()
                sent: dict[int, int] = {}
                with suppress(SimilisError):
                    for start in range(0, 1_000_000, 50):
                        numbers = range(start % 1000, start % 1000 + 50)
                        sent = dict.fromkeys(numbers, life * 100_000 + start + 1)
                        index.write(revised(numbers, sent[numbers[0]]))
                        acknowledged.update(sent)
                killer.join()
            running.start()
            with closing(running.store()) as store:
                index = store.open("a")
                for number in sent:  # unacknowledged writes may have been applied
                    if number not in acknowledged and index.get([id_of(number)]):
                        acknowledged[number] = 0
                assert_holds(index, acknowledged)


def test_a_kill_while_optimising_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running:
        for wait_s in (0.0, 0.3, 1.0):
            with closing(running.store()) as store:
                index = store.create("a", SPEC)
                index.write(gallery(3000, revision=1 + round(10 * wait_s)))
                until(lambda: len(list(running.data.glob("a/shard.*"))) > 1)
                index.write(revised(range(3000, 3050), 50))
                index.delete([id_of(0)])
                time.sleep(wait_s)
                running.kill()
            running.start()
            assert len(list(running.data.glob("a/shard.*"))) >= 1
            with closing(running.store()) as store:
                index = store.open("a")
                assert_holds(index, {**dict.fromkeys(range(1, 3000), 1), **dict.fromkeys(range(3000, 3050), 50)})
                until(lambda: unlinked(index) <= messages.INDEX_FROM)  # noqa: B023 - without another write
                store.drop("a")


def test_what_is_written_and_deleted_while_optimising_is_in_the_new_shard(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", SPEC)
        index.write(gallery(3000))
        until(lambda: len(list(running.data.glob("a/shard.*"))) > 1)
        first = (running.data / "a" / "current").readlink()
        want = dict.fromkeys(range(3000), 1)
        end = time.monotonic() + HANGS_S
        while (running.data / "a" / "current").readlink() == first:
            assert time.monotonic() < end
            fresh = max(want) + 1
            index.write(revised(range(fresh, fresh + 20), 2))
            index.write(revised(range(fresh - 2500, fresh - 2490), 7))
            index.delete([id_of(fresh - 2900)])
            want.update(
                dict.fromkeys(range(fresh, fresh + 20), 2) | dict.fromkeys(range(fresh - 2500, fresh - 2490), 7)
            )
            want.pop(fresh - 2900, None)
        assert_holds(index, want)
        until(lambda: len(list(running.data.glob("a/shard.*"))) == 1)
        running.kill()
        running.start()
        assert_holds(store.open("a"), want)


def test_a_collection_dropped_while_it_is_optimised_is_gone(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", SPEC)
        index.write(gallery(3000))
        until(lambda: len(list(running.data.glob("a/shard.*"))) > 1)
        store.drop("a")
        assert [path.name for path in running.data.iterdir()] == ["lock"]
        store.create("a", SPEC).write(gallery(10))
        assert store.open("a").count() == 10


def test_a_stop_does_not_wait_for_the_optimiser_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running:
        with closing(running.store()) as store:
            index = store.create("a", SPEC)
            config = running.data / "a" / "collection.json"
            config.unlink()
            os.mkfifo(config)  # which the child reads before it links: it would wait there for ever
            index.write(gallery(3000))
            until(lambda: len(list(running.data.glob("a/shard.*"))) > 1)
        assert running.stop() == 0
        assert len(list(running.data.glob("a/shard.*"))) == 1


def test_whoever_waits_for_a_hung_optimiser_gives_up_and_may_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant, "LINKED_WITHIN_S", 0.5)
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", SPEC)
        config = running.data / "a" / "collection.json"
        kept = config.rename(tmp_path / "kept.json")
        os.mkfifo(config)  # which the child reads before it links: it would wait there for ever
        index.write(gallery(3000))
        killer = threading.Timer(HANGS_S, running.kill)
        killer.start()
        for _ in range(2):
            with pytest.raises(Unavailable, match="has not linked its points"):
                index.optimize()
        killer.cancel()
        with config.open("w", encoding="utf-8") as pipe:
            pipe.write(kept.read_text(encoding="utf-8"))
            kept.rename(config)  # for later children
        until(lambda: index.info().indexed == 3000)


def test_what_a_kill_left_half_made_is_removed_at_the_start(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(10))
    held.close()
    for left in ("a/shard.7/segments", ".new.b/shard.0", ".gone.c/shard.0"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "file").write_bytes(b"half")
    held = Shards(tmp_path)
    assert held.names() == ["a"]
    assert held.get("a").info().points_count == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "lock"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["collection.json", "current", "shard.0"]
    held.close()


def write(held: Shards, points: list[Point]) -> None:
    vectors = checks.prepare(SPEC, [point.vector for point in points])
    request = messages.upsert("a", points, vectors)
    held.get("a").write("Upsert", request.SerializeToString(), [point.id.uuid for point in request.points])


def test_the_child_links_what_is_there_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(300))
    shard = held.get("a").path
    held.close()
    command = [sys.executable, "-m", "services.vectors.optimize", str(shard)]
    parent = str(Path("/proc/self").resolve().name)
    assert subprocess.run([*command, parent, "1"], check=False).returncode == 0
    assert subprocess.run([*command, parent, "3"], check=False).returncode == optimize.NOTHING_TO_DO
    held = Shards(tmp_path)
    assert held.get("a").unindexed() == 0
    held.close()


def test_points_that_are_written_anew_are_linked_anew(tmp_path: Path) -> None:
    """Edge counts points as indexed that its graph has lost; new ones in their place would be scanned for ever."""
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", SPEC)
        index.write(gallery(1900))
        assert index.optimize() is True
        index.delete([id_of(number) for number in range(500)])
        index.write(revised(range(500, 1900), 2))
        assert index.info() == Info(points=1400, indexed=0)
        running.kill()
        running.start()
        assert index.info() == Info(points=1400, indexed=0)
        assert index.optimize() is True
        assert index.info() == Info(points=1400, indexed=1400)
        index.write(revised(range(1900, 3500), 1))
        index.write(revised(range(500, 1900), 3))  # more than may be unlinked, so linking starts by itself
        until(lambda: unlinked(index) <= messages.INDEX_FROM)
        assert_holds(index, dict.fromkeys(range(500, 1900), 3) | dict.fromkeys(range(1900, 3500), 1))


def test_what_came_while_a_graph_was_made_is_not_taken_for_what_it_cannot_hold(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(1900))
    collection = held.get("a")
    with collection.shadow(optimize.copy) as target:
        command = [sys.executable, "-m", "services.vectors.optimize", str(target), str(os.getpid()), "1"]
        assert subprocess.run(command, check=False).returncode == 0
        write(held, revised(range(1800, 2100), 2))
        assert collection.adopt(target) == 0
    assert collection.unindexed() == 300
    held.close()


def test_a_failed_optimisation_is_told_as_one_and_forgotten_after_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, optimizer = Shards(tmp_path), optimize.Optimizer()
    held.create(messages.create("a", SPEC))
    write(held, gallery(300))
    collection = held.get("a")

    def told() -> list[str]:
        with capture_logs() as logs:
            optimizer.request(collection)
            until(lambda: not optimizer.busy(collection))
        return [line["event"] for line in logs]

    try:
        with monkeypatch.context() as patched:
            patched.setattr(optimize, "MIN_FREE_BYTES", 1 << 60)
            assert told() == ["optimising_failed"]
            assert optimizer.failed(collection)
        assert told() == ["optimised"]
        assert not optimizer.failed(collection)
        assert collection.unindexed() == 0
    finally:
        optimizer.stop()
        held.close()


def test_a_child_whose_parent_is_gone_touches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.vectors.optimize", str(tmp_path / "none"), "1", "1"]
    assert subprocess.run(command, check=False).returncode == 1


def test_files_that_edge_replaces_while_the_room_is_measured_are_no_failure(tmp_path: Path) -> None:
    measured = threading.Event()

    def replace() -> None:
        while not measured.is_set():
            for number in range(20):
                (tmp_path / f"{number}").write_bytes(b"")
                (tmp_path / f"{number}").unlink()

    edge_like = threading.Thread(target=replace)
    edge_like.start()
    try:
        for _ in range(30_000):
            optimize.require_room(tmp_path)
    finally:
        measured.set()
        edge_like.join()


def test_the_sparse_copy_is_the_shard(tmp_path: Path) -> None:
    held = Shards(tmp_path / "data")
    held.create(messages.create("a", SPEC))
    write(held, gallery(100))
    source = held.get("a").path
    optimize.copy(source, tmp_path / "copy")
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert (source / path).read_bytes() == (tmp_path / "copy" / path).read_bytes()
    taken = sum(path.stat().st_blocks for path in (tmp_path / "copy").rglob("*")) * 512
    assert taken < 40 * 2**20
    held.close()


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Collection]:
    """A collection of 2,500 linked points and 100 unlinked ones."""
    held, optimizer = Shards(tmp_path / "data"), optimize.Optimizer()
    held.create(messages.create("a", SPEC))
    collection = held.get("a")
    try:
        for field, kind in PAYLOAD.items():
            collection.index_field(messages.field_index("a", field, kind).SerializeToString())
        write(held, gallery(2500))
        optimizer.request(collection)
        until(lambda: not optimizer.busy(collection))
        write(held, revised(range(2500, 2600), 2))
        yield collection
    finally:
        optimizer.stop()
        held.close()


def test_a_copy_shares_with_the_shard_what_edge_only_reads(linked: Collection, tmp_path: Path) -> None:
    optimize.copy(linked.path, tmp_path / "copy")
    files = {path for path in linked.path.rglob("*") if path.is_file()}
    shared = {path for path in files if path.samefile(tmp_path / "copy" / path.relative_to(linked.path))}
    assert {path.name for path in shared} == optimize.FROZEN
    about = Path(f"/proc/self/fdinfo/{linked._shard._pid}").read_text()
    held = Path(f"/proc/{about.split('Pid:')[1].split()[0]}")
    maps = [line.split() for line in (held / "maps").read_text().splitlines()]
    written = {Path(line[5]) for line in maps if len(line) > 5 and "w" in line[1]}
    for handle in (held / "fd").iterdir():
        flags = int((held / "fdinfo" / handle.name).read_text().split("flags:")[1].split()[0], 8)
        if flags & (os.O_WRONLY | os.O_RDWR):
            written.add(handle.readlink())
    assert files & written
    assert not shared & written


def test_what_is_written_and_removed_after_a_copy_is_not_in_it(linked: Collection, tmp_path: Path) -> None:
    optimize.copy(linked.path, tmp_path / "copy")
    before = {path: path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    ids = [messages.point_id(id_of(number)) for number in range(600)]
    rewritten = revised(range(600, 1200), 3)
    vectors = checks.prepare(SPEC, [point.vector for point in rewritten])
    linked.write("Upsert", messages.upsert("a", rewritten, vectors).SerializeToString(), [])
    gone = pb.DeletePoints(points=pb.PointsSelector(points=pb.PointsIdsList(ids=ids)))
    linked.write("Delete", gone.SerializeToString(), [])
    linked.ask("Flush", b"")
    assert before == {path: path.read_bytes() for path in before}
    assert linked.info().points_count == 2000
    held = edge.EdgeShard.load(str(tmp_path / "copy"))
    assert held.info().points_count == 2600
    assert held.count(edge.CountRequest(filter=None, exact=True)) == 2600
    held.close()


@pytest.mark.parametrize("segments", [optimize.MERGED, optimize.BESIDE])
def test_linking_a_copy_leaves_the_shard_as_it_is(linked: Collection, tmp_path: Path, segments: int) -> None:
    optimize.copy(linked.path, tmp_path / "copy")
    shutil.copy(linked.folder / "collection.json", tmp_path)
    before = {path: path.read_bytes() for path in linked.path.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "services.vectors.optimize", str(tmp_path / "copy"), str(os.getpid())]
    assert subprocess.run([*command, str(segments)], check=False).returncode == 0
    assert before == {path: path.read_bytes() for path in before}


def test_where_files_cannot_be_linked_all_is_copied(
    linked: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "cp"
    tool.write_text('#!/bin/sh\ncase " $* " in *" --link "*) exit 1;; esac\nPATH=${PATH#*:} exec cp "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    optimize.copy(linked.path, tmp_path / "copy")
    for path in linked.path.rglob("*"):
        twin = tmp_path / "copy" / path.relative_to(linked.path)
        assert path.is_dir() or (twin.read_bytes() == path.read_bytes() and not twin.samefile(path))


def test_linking_yields_to_whoever_asks(linked: Collection) -> None:
    """Where the kernel groups processes by session (autogroup), the child needs a session of its own."""
    config = linked.folder / "collection.json"
    config.unlink()
    os.mkfifo(config)  # the child waits here, before it links
    optimizer = optimize.Optimizer()
    try:
        optimizer.request(linked)
        until(lambda: optimizer._child is not None)
        assert optimizer._child is not None
        child = optimizer._child.pid
        assert os.getsid(child) == child
        group = Path(f"/proc/{child}/autogroup")
        until(lambda: os.getpriority(os.PRIO_PROCESS, child) == 15)
        until(lambda: not AUTOGROUP.exists() or group.read_text().split()[-1] == "15")
    finally:
        optimizer.stop()


def test_a_write_in_progress_when_the_shadow_catches_up_is_in_the_new_shard(tmp_path: Path) -> None:
    """A writer has announced its points but not yet written them; the shadow must not count them as done."""
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(10))
    collection = held.get("a")
    announced, go_on = threading.Event(), threading.Event()
    forward = collection.ask

    def slow(name: str, raw: bytes) -> bytes:
        if threading.current_thread().name == "late":
            announced.set()
            go_on.wait(HANGS_S)
        return forward(name, raw)

    with collection.shadow(optimize.copy) as target:
        write(held, revised(range(10, 400), 1))  # more than one step of catching up
        collection.ask = slow  # type: ignore[method-assign]
        late = threading.Thread(target=write, args=(held, revised(range(400, 401), 1)), name="late")
        late.start()
        assert announced.wait(HANGS_S)
        adopting = threading.Thread(target=collection.adopt, args=(target,))
        adopting.start()
        adopting.join(1)  # without the writers' lock, it would have lost the late point by now
        go_on.set()
        late.join(HANGS_S)
        adopting.join(HANGS_S)
        collection.ask = forward  # type: ignore[method-assign]
    assert collection.info().points_count == 401
    held.close()


def test_a_point_whose_id_is_written_in_capitals_is_in_the_new_shard(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    collection = held.get("a")
    with collection.shadow(optimize.copy) as target:
        request = messages.upsert("a", gallery(1), matrix(1))
        request.points[0].id.uuid = "ABCDEF00-0000-0000-0000-000000000001"
        ids = translate.ids_of(point.id for point in request.points)
        collection.write("Upsert", request.SerializeToString(), ids)
        collection.adopt(target)
    assert collection.info().points_count == 1
    held.close()


def test_the_shadow_has_what_only_the_log_holds_and_nobody_waits_for_a_flush(tmp_path: Path) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    collection = held.get("a")
    collection.index_field(messages.field_index("a", "study", "id").SerializeToString())
    write(held, gallery(300))
    write(held, revised(range(100), 9))
    gone = pb.DeletePoints(collection_name="a")
    gone.points.points.ids.add(uuid=str(id_of(299)))
    collection.write("Delete", gone.SerializeToString(), [str(id_of(299))])
    forward, asked = collection.ask, []

    def noted(name: str, raw: bytes) -> bytes:
        asked.append(name)
        return forward(name, raw)

    collection.ask = noted  # type: ignore[method-assign]
    with collection.shadow(optimize.copy) as target:
        collection.adopt(target)
    assert "Flush" not in asked
    collection.ask = forward  # type: ignore[method-assign]
    info = collection.info()
    assert (info.points_count, info.payload_schema["study"].data_type) == (299, pb.PayloadSchemaType.Integer)
    scroll = pb.ScrollPoints(collection_name="a", limit=1000, with_payload=pb.WithPayloadSelector(enable=True))
    rows = pb.ScrollResponse.FromString(collection.ask("Scroll", scroll.SerializeToString())).result
    revisions = {row.id.uuid: row.payload["revision"].integer_value for row in rows}
    assert {revisions[str(id_of(number))] for number in range(100)} == {9}
    held.close()


def test_a_shard_whose_process_ends_while_it_is_copied_is_loaded_again_after_that(tmp_path: Path) -> None:
    """Loading moves the log into the segments: the copy would have the old segments and the new, empty log."""
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(300))
    collection = held.get("a")
    asking = threading.Thread(target=collection.info)

    def copy(source: Path, target: Path) -> None:
        shutil.copytree(source / "segments", target / "segments")
        collection._shard._kill()
        asking.start()
        asking.join(2)
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=lambda *_: ["segments"])

    with collection.shadow(copy) as target:
        collection.adopt(target)
    asking.join(HANGS_S)
    assert collection.info().points_count == 300
    held.close()


@pytest.mark.parametrize("ends", [False, True])
def test_a_shard_in_use_outlives_a_disk_that_does_not_confirm_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    held = Shards(tmp_path)
    held.create(messages.create("a", SPEC))
    write(held, gallery(300))
    collection = held.get("a")
    before = collection._shard

    def failing(folder: Path) -> None:
        if ends:  # and another process loads it
            collection._shard._kill()
            collection.ask("Ping", b"")
        raise OSError(errno.EIO, "input/output error", str(folder))

    with monkeypatch.context() as disk:
        disk.setattr("services.vectors.shards.sync", failing)
        with pytest.raises(OSError, match="input/output"), collection.shadow(optimize.copy) as target:
            collection.adopt(target)
    with pytest.raises(Gone):  # no process holds the earlier shard
        before.ask("Ping", b"")
    write(held, revised(range(300), 2))
    assert collection.path == target
    held.close()
    again = Shards(tmp_path)
    assert (again.broken, again.get("a").info().points_count) == ({}, 300)
    again.close()


def shard_pids(running: engines.VectorsProcess) -> list[int]:
    """Process IDs of the fork server's children."""
    assert running.process is not None
    below = children()
    return [pid for fork_server in below.get(running.process.pid, []) for pid in below.get(fork_server, [])]


def test_a_shard_whose_process_dies_is_loaded_again_and_has_lost_nothing(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", SPEC)
        for revision in (1, 2, 3):
            index.write(revised(range(200), revision))
            (pid,) = shard_pids(running)
            os.kill(pid, signal.SIGKILL)
            assert_holds(index, dict.fromkeys(range(200), revision))
            assert shard_pids(running) != [pid]
        os.kill(shard_pids(running)[0], signal.SIGKILL)
        index.write(revised(range(200, 210), 4))  # refused once, then repeated by the client
        assert index.count() == 210


def test_a_fork_server_that_has_just_ended_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = messages.create("a", SPEC)
    shard = Collection.make(tmp_path, request) / "shard.0"
    with closing(ForkServer()) as server:
        ended = server._process
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(ended, "poll", lambda: None)  # what was true just before
        server.load(shard, translate.layout_of(request)).close()
        assert server._process.pid != ended.pid


def test_a_shard_is_held_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_process, "WAIT_S", 0.1)
    with shard_process.held(tmp_path), pytest.raises(BlockingIOError), shard_process.held(tmp_path):
        pass
    with shard_process.held(tmp_path):
        pass


def test_the_processes_of_shards_end_with_the_one_that_owns_them(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        store.create("a", SPEC).write(revised(range(10), 1))
        (pid,) = shard_pids(running)
        running.kill()
        until(lambda: not Path(f"/proc/{pid}/exe").exists())
        running.start()
        assert_holds(store.open("a"), dict.fromkeys(range(10), 1))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ShardService]:
    """A shard of 1,024 dimensions in this process."""
    request = messages.create("a", Spec(dim=1024))
    edge.EdgeShard.create(str(tmp_path), translate.config_of(request, wal=True)).close()
    made = ShardService(tmp_path, translate.layout_of(request))
    yield made
    made.close()


def written(service: ShardService, numbers: range) -> None:
    rows = matrix(len(numbers), dim=1024)
    points = [Point(id=id_of(n), vector=row, payload={"revision": 1}) for n, row in zip(numbers, rows, strict=True)]
    service.upsert(messages.upsert("a", points, rows))


def test_a_write_is_acknowledged_when_the_log_and_its_names_are_on_disk(
    service: ShardService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill would not show it: unsynced data survives a kill, but not a loss of power."""
    synced: set[str] = set()
    sync = os.fsync

    def watched(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    written(service, range(20))
    assert {str(path) for path in tmp_path.glob("wal/open-*")} <= synced
    assert str(tmp_path / "wal") in synced
    synced.clear()
    service.delete(
        pb.DeletePoints(points=pb.PointsSelector(points=pb.PointsIdsList(ids=[messages.point_id(id_of(3))])))
    )
    assert {str(path) for path in tmp_path.glob("wal/open-*")} <= synced


def test_the_log_does_not_grow_for_ever(service: ShardService, tmp_path: Path) -> None:
    for start in range(0, 32_000, 1000):
        written(service, range(start, start + 1000))
    assert len(list(tmp_path.glob("wal/closed-*"))) <= 2  # of 32 MiB each; without a flush there would be four


def test_a_shard_that_has_no_log_is_flushed_at_every_write(tmp_path: Path) -> None:
    """Shards of the first versions have no log."""
    with engines.vectors_process(tmp_path) as running:
        with closing(running.store()) as store:
            store.create("a", SPEC)
        running.stop()
        shard = running.data / "a" / "shard.0"
        shutil.rmtree(shard)
        edge.EdgeShard.create(str(shard), translate.config_of(messages.create("a", SPEC), wal=False)).close()
        running.start()
        with closing(running.store()) as store:
            store.open("a").write(gallery(30))
            running.kill()
            running.start()
            assert_holds(store.open("a"), dict.fromkeys(range(30), 0))


def test_many_short_lives_do_not_make_the_log_long(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running:
        for life in range(2):
            with closing(running.store()) as store:
                index = store.open("a") if life else store.create("a", SPEC)
                index.write(gallery(30, revision=life))
                running.kill()
                running.start()
                assert store.open("a").count() == 30
            (log,) = running.data.glob("a/shard.*/wal/first-index")
            assert json.loads(log.read_text())["ack_index"] >= life + 1
