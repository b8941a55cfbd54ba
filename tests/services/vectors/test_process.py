"""The vectors process as seen by its supervisor, and by an attacker on the same machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.vectors import shards
from shared.errors import Invalid, Unavailable
from shared.index import messages
from shared.index.base import Damaged, Point, Query, Spec
from shared.index.protobuf import pb
from shared.index.qdrant import QdrantStore, translated
from tests.contracts import engines
from tests.contracts.test_index import gallery, id_of, matrix

DIM = 32


@pytest.fixture(scope="module")
def running(quick_folder: Path) -> Iterator[engines.VectorsProcess]:
    with engines.vectors_process(quick_folder) as process:
        yield process


@pytest.mark.parametrize("key", ["", "another-key-of-some-length", engines.KEY + "x", engines.KEY[:-1]])
def test_a_call_without_the_key_is_refused(running: engines.VectorsProcess, key: str) -> None:
    with closing(running.store(key)) as store:
        for call in (store.names, store.ping):
            with pytest.raises(Unavailable, match="rejected the API key"):
                call()


def test_the_health_check_answers_whoever_has_the_key(running: engines.VectorsProcess) -> None:
    with grpc.insecure_channel(f"unix://{running.socket}") as channel:
        stub = pb.QdrantStub(channel)
        assert "Edge" in stub.HealthCheck(pb.HealthCheckRequest(), metadata=[("api-key", engines.KEY)]).title
        with pytest.raises(grpc.RpcError) as caught:
            stub.HealthCheck(pb.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@contextmanager
def _late(socket_path: Path, target: Path, seconds: float) -> Iterator[None]:
    """A proxy to the target that delays the first bytes of each connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path))
        listening.listen()

        def pass_on(one: socket.socket, other: socket.socket) -> None:
            with suppress(OSError):
                while data := one.recv(65536):
                    other.sendall(data)
            with suppress(OSError):
                other.shutdown(socket.SHUT_RDWR)

        def relay(near: socket.socket) -> None:
            with near, socket.socket(socket.AF_UNIX) as far, suppress(OSError):
                time.sleep(seconds)
                far.connect(str(target))
                back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
                back.start()
                pass_on(near, far)
                back.join()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=relay, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield


def test_a_peer_that_shakes_hands_slowly_is_waited_for(running: engines.VectorsProcess, tmp_path: Path) -> None:
    """As over TLS from far away, or from a process that waits for a crowded processor."""
    path = tmp_path / "late.sock"
    with _late(path, running.socket, 0.8), closing(QdrantStore(f"unix://{path}", api_key=engines.KEY)) as store:
        store.ping()


def test_an_unimplemented_field_or_call_is_refused_over_the_wire(running: engines.VectorsProcess) -> None:
    metadata = [("api-key", engines.KEY)]
    with closing(running.store()) as store, grpc.insecure_channel(f"unix://{running.socket}") as channel:
        store.create("loud", Spec(dim=DIM))
        stub = pb.PointsStub(channel)
        request = pb.QueryBatchPoints(collection_name="loud")
        request.query_points.add(offset=1)
        with pytest.raises(grpc.RpcError) as field:
            stub.QueryBatch(request, metadata=metadata)
        with pytest.raises(grpc.RpcError) as call:
            stub.Facet(pb.FacetCounts(collection_name="loud"), metadata=metadata)
        store.drop("loud")
    assert field.value.code() is call.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "QueryPoints.offset" in field.value.details()
    assert isinstance(translated(field.value), Invalid)


@pytest.mark.parametrize("written", ["x", "", "abcdef00-0000-0000-0000-00000000000"])
def test_an_id_that_is_no_uuid_is_refused_and_one_in_any_spelling_is_found(
    running: engines.VectorsProcess, written: str
) -> None:
    def calls(name: str) -> Iterator[tuple[str, Any]]:
        id_ = pb.PointId(uuid=name)
        some = {"collection_name": "spelt"}
        points = messages.upsert("spelt", gallery(1), matrix(1))
        points.points[0].id.CopyFrom(id_)
        not_it = pb.Filter(must_not=[pb.Condition(has_id=pb.HasIdCondition(has_id=[id_]))])
        yield "Upsert", points
        yield "Get", pb.GetPoints(ids=[id_], **some)
        yield "Count", pb.CountPoints(filter=not_it, **some)
        yield "Scroll", pb.ScrollPoints(offset=id_, **some)
        yield "Delete", pb.DeletePoints(points=pb.PointsSelector(points=pb.PointsIdsList(ids=[id_])), **some)

    with closing(running.store()) as store, grpc.insecure_channel(f"unix://{running.socket}") as channel:
        store.create("spelt", Spec(dim=DIM))
        stub = pb.PointsStub(channel)
        for call, request in calls(written):
            with pytest.raises(grpc.RpcError, match="a point id must be a UUID") as caught:
                getattr(stub, call)(request, metadata=[("api-key", engines.KEY)])
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        replies = {
            call: getattr(stub, call)(request, metadata=[("api-key", engines.KEY)])
            for call, request in calls("ABCDEF00-00000000-0000-000000000001")  # Edge itself reads no such spelling
        }
        store.drop("spelt")
    assert [point.id.uuid for point in replies["Get"].result] == ["abcdef00-0000-0000-0000-000000000001"]
    assert (replies["Count"].result.count, len(replies["Scroll"].result)) == (0, 1)


def test_only_the_payload_fields_that_were_named_travel(running: engines.VectorsProcess) -> None:
    with closing(running.store()) as store:
        index = store.create("named", Spec(dim=DIM))
        index.write(gallery(20))
        query = Query(vector=matrix(1)[0], limit=9, fields=("study", "birads"))
        (answer,) = index.search([query])
    assert all(set(hit.payload) <= {"study", "birads"} and "study" in hit.payload for hit in answer.hits)
    assert answer.engine_ms is not None
    assert 0 < answer.engine_ms < 10_000


def test_other_optimiser_settings_than_those_it_was_made_with_are_refused(running: engines.VectorsProcess) -> None:
    with closing(running.store()) as store, grpc.insecure_channel(f"unix://{running.socket}") as channel:
        store.create("fixed", Spec(dim=DIM))
        changed = pb.OptimizersConfigDiff(indexing_threshold=1)
        request = pb.UpdateCollection(collection_name="fixed", optimizers_config=changed)
        with pytest.raises(grpc.RpcError, match="cannot be changed"):
            pb.CollectionsStub(channel).Update(request, metadata=[("api-key", engines.KEY)])
        store.drop("fixed")


def test_the_socket_and_the_folder_are_their_owners_alone(running: engines.VectorsProcess) -> None:
    assert running.socket.stat().st_mode & 0o077 == 0
    assert running.data.stat().st_mode & 0o077 == 0


def test_a_second_process_on_the_folder_is_refused_with_a_sentence(running: engines.VectorsProcess) -> None:
    command = [sys.executable, "-m", "services.vectors", "--dir", str(running.data)]
    command += ["--listen", "127.0.0.1:0", "--api-key-file", str(running.folder / "key")]
    second = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert second.returncode == 4
    assert b"another process holds this folder" in second.stderr


def test_a_process_whose_address_is_taken_ends_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(engines.KEY)
    with socket.create_server(("127.0.0.1", 0)) as other:
        command = [sys.executable, "-m", "services.vectors", "--dir", str(tmp_path / "data")]
        command += ["--listen", f"127.0.0.1:{other.getsockname()[1]}", "--api-key-file", str(tmp_path / "key")]
        ended = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert ended.returncode == 4
    assert b"address" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("listen", "key", "reason"),
    [("0.0.0.0:6334", engines.KEY, b"loopback"), ("127.0.0.1:0", "short", b"16 characters")],
)
def test_an_open_door_is_refused(tmp_path: Path, listen: str, key: str, reason: bytes) -> None:
    (tmp_path / "key").write_text(key)
    command = [sys.executable, "-m", "services.vectors", "--dir", str(tmp_path / "data")]
    command += ["--listen", listen, "--api-key-file", str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_zero_when_asked(tmp_path: Path, number: int) -> None:
    with engines.vectors_process(tmp_path) as running:
        with closing(running.store()) as store:
            store.create("a", Spec(dim=DIM)).write(gallery(50))
        os.kill(running.process.pid, number)
        assert running.process.wait(timeout=10) == 0


def test_a_nearly_full_disk_is_refused_before_edge_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = shards.Shards(tmp_path / "data")
    held.create(messages.create("a", Spec(dim=DIM)))
    monkeypatch.setattr(shards, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(shards.Refused) as caught:
        held.get("a").write("Upsert", b"", [])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    held.close()


class Status(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "what the engine says"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_an_error_and_only_the_callers_own_quote_the_engine(code: grpc.StatusCode) -> None:
    error = translated(Status(code))
    assert isinstance(error, Damaged) == (code is grpc.StatusCode.DATA_LOSS)
    assert ("what the engine says" in str(error)) == (not isinstance(error, Unavailable))


def test_whoever_reads_that_the_index_waits_is_told_to_look_at_the_disk() -> None:
    error = translated(Status(grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert (type(error), "its disk is nearly full" in str(error)) == (Unavailable, True)


def test_an_engine_that_is_not_there_is_unavailable_within_two_seconds(tmp_path: Path) -> None:
    with closing(QdrantStore(f"unix://{tmp_path}/nobody", "k")) as store:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            store.ping()
        assert time.monotonic() - started < 2


def test_a_call_waits_for_an_engine_that_is_back_soon(tmp_path: Path) -> None:
    with engines.vectors_process(tmp_path) as running, closing(running.store()) as store:
        index = store.create("a", Spec(dim=DIM))
        index.write(gallery(20))
        running.kill()
        running.start()
        assert index.search([Query(vector=matrix(1)[0], limit=3)])[0].hits


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("localhost:6334", "ftp://host", "unix:relative", ""):
        with pytest.raises(Invalid):
            QdrantStore(url)


def test_a_collection_of_somebody_else_is_not_taken_for_ours(running: engines.VectorsProcess) -> None:
    request = messages.create("foreign", Spec(dim=DIM))
    request.ClearField("metadata")
    with grpc.insecure_channel(f"unix://{running.socket}") as channel, closing(running.store()) as store:
        pb.CollectionsStub(channel).Create(request, metadata=[("api-key", engines.KEY)])
        with pytest.raises(Exception, match="Similis did not make it"):
            store.open("foreign")
        store.drop("foreign")


def test_a_zero_vector_never_reaches_edge_unseen(running: engines.VectorsProcess) -> None:
    with closing(running.store()) as store:
        index = store.create("zero", Spec(dim=DIM))
        with pytest.raises(Invalid):
            index.write([Point(id=id_of(1), vector=np.zeros(DIM, np.float32), payload={"revision": 1})])
        store.drop("zero")


def test_it_ends_also_when_it_is_told_so_while_it_is_being_told(tmp_path: Path) -> None:
    running = engines.VectorsProcess(tmp_path)
    running.start()
    assert running.process is not None
    for number in [signal.SIGTERM, signal.SIGINT] * 5000:  # some arrive while another one is handled
        running.process.send_signal(number)
    assert running.stop() == 0
