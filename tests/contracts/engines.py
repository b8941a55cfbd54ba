"""The engines of the index contract, among them qdrant-client's local mode behind Qdrant's gRPC interface.

The local mode takes pydantic models; `LocalWire` converts our protobuf with qdrant-client's own functions, so that
code other than ours also reads the requests. Its payload indexes, HNSW and quantisation have no effect (it scans in
this process) and it has no optimiser: `Update` is accepted, and the status is always "green".
"""

# ruff: noqa: N802 - the names are those of Qdrant's services

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from shared.errors import Unavailable
from shared.index.base import IndexStore
from shared.index.protobuf import pb
from shared.index.qdrant import QdrantStore, Wire

KEY = "a-key-of-the-tests-0123456789"
HANGS_S = 120.0  #: what takes longer never ends, however busy the machine


class LocalRefusal(grpc.RpcError):
    """A ValueError of the local mode as the gRPC status that a server would return."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        missing = "not found" in str(error)
        self._code = grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return str(self)


def refusing(method: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def call(self: Any, request: Any, timeout: float, metadata: object) -> Any:
        try:
            return method(self, request)
        except ValueError as error:
            raise LocalRefusal(error) from error

    return call


class LocalCollections:
    def __init__(self, client: QdrantClient, indexes: dict[str, set[str]]) -> None:
        self._client = client
        self._indexes = indexes

    @refusing
    def Create(self, request: Any) -> Any:
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        metadata = GrpcToRest.convert_payload(request.metadata)
        self._client.create_collection(request.collection_name, vectors_config=vectors, metadata=metadata)
        self._indexes[request.collection_name] = set()

    @refusing
    def Update(self, request: Any) -> Any:
        self._client.get_collection(request.collection_name)

    @refusing
    def Get(self, request: Any) -> Any:
        held = self._client.get_collection(request.collection_name)
        points = held.points_count or 0
        info = pb.CollectionInfo(status=pb.CollectionStatus.Green, points_count=points, indexed_vectors_count=0)
        for key, value in (held.config.metadata or {}).items():
            info.config.metadata[key].string_value = value
        for field in self._indexes[request.collection_name]:
            info.payload_schema[field].CopyFrom(pb.PayloadSchemaInfo())
        return pb.GetCollectionInfoResponse(result=info)

    @refusing
    def List(self, request: Any) -> Any:
        held = self._client.get_collections().collections
        return pb.ListCollectionsResponse(collections=[pb.CollectionDescription(name=one.name) for one in held])

    @refusing
    def CollectionExists(self, request: Any) -> Any:
        exists = self._client.collection_exists(request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    @refusing
    def Delete(self, request: Any) -> Any:
        self._client.delete_collection(request.collection_name)


class LocalPoints:
    def __init__(self, client: QdrantClient, indexes: dict[str, set[str]]) -> None:
        self._client = client
        self._indexes = indexes

    @refusing
    def CreateFieldIndex(self, request: Any) -> Any:
        self._indexes[request.collection_name].add(request.field_name)

    @refusing
    def Upsert(self, request: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        guard = GrpcToRest.convert_filter(request.update_filter)
        self._client.upsert(request.collection_name, points, update_filter=guard)

    @refusing
    def Delete(self, request: Any) -> Any:
        ids = [point.uuid for point in request.points.points.ids]
        self._client.delete(request.collection_name, models.PointIdsList(points=ids))

    @refusing
    def Get(self, request: Any) -> Any:
        ids = [point.uuid for point in request.ids]
        held = self._client.retrieve(request.collection_name, ids, with_payload=True, with_vectors=True)
        return pb.GetResponse(result=[self._retrieved(record) for record in held])

    def _retrieved(self, record: Any) -> Any:
        row = pb.RetrievedPoint(id=pb.PointId(uuid=record.id), payload=RestToGrpc.convert_payload(record.payload))
        for name, vector in (record.vector or {}).items():
            row.vectors.vectors.vectors[name].dense.data.extend(vector)
        return row

    @refusing
    def Scroll(self, request: Any) -> Any:
        # the local mode scrolls in the order of writing, a server in the order of ids
        held, _ = self._client.scroll(request.collection_name, limit=1_000_000, with_payload=True)
        start = request.offset.uuid
        held = sorted((record for record in held if str(record.id) >= start), key=lambda record: str(record.id))
        page, rest = held[: request.limit], held[request.limit :]
        offset = pb.PointId(uuid=rest[0].id) if rest else None
        return pb.ScrollResponse(result=[self._retrieved(record) for record in page], next_page_offset=offset)

    @refusing
    def Count(self, request: Any) -> Any:
        wanted = GrpcToRest.convert_filter(request.filter)
        held = self._client.count(request.collection_name, wanted, exact=request.exact)
        return pb.CountResponse(result=pb.CountResult(count=held.count))

    @refusing
    def QueryBatch(self, request: Any) -> Any:
        return pb.QueryBatchResponse(result=[self._batch(query) for query in request.query_points])

    def _batch(self, query: Any) -> Any:
        held = self._client.query_points(
            query.collection_name,
            query=list(query.query.nearest.dense.data),
            using=query.using,
            query_filter=GrpcToRest.convert_filter(query.filter),
            limit=query.limit,
            score_threshold=query.score_threshold if query.HasField("score_threshold") else None,
        )
        # a server's threshold is strict, that of the local mode is not
        kept = [
            one for one in held.points if not query.HasField("score_threshold") or one.score > query.score_threshold
        ]
        held.points = kept
        return pb.BatchResult(result=[self._scored(point) for point in held.points])

    def _scored(self, point: Any) -> Any:
        payload = RestToGrpc.convert_payload(point.payload)
        return pb.ScoredPoint(id=pb.PointId(uuid=point.id), score=point.score, payload=payload)

    @refusing
    def QueryGroups(self, request: Any) -> Any:
        held = self._client.query_points_groups(
            request.collection_name,
            group_by=request.group_by,
            query=list(request.query.nearest.dense.data),
            using=request.using,
            query_filter=GrpcToRest.convert_filter(request.filter),
            limit=request.limit,
            group_size=request.group_size,
        )
        groups = [pb.PointGroup(hits=[self._scored(hit) for hit in group.hits]) for group in held.groups]
        return pb.QueryGroupsResponse(result=pb.GroupsResult(groups=groups))


def local_mode() -> QdrantStore:
    client = QdrantClient(":memory:")
    indexes: dict[str, set[str]] = {}
    return QdrantStore("", wire=Wire(LocalPoints(client, indexes), LocalCollections(client, indexes)))


class VectorsProcess:
    """`python -m services.vectors` on a folder of the test, behind a UNIX socket (so ports cannot collide)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = folder / "key"
        self._key.write_text(KEY, encoding="utf-8")
        # a socket's path is limited to 107 bytes, which the test's own folder may exceed
        self.socket = Path(f"/tmp/similis-{uuid.uuid4().hex[:12]}.sock")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        command = [sys.executable, "-m", "services.vectors", "--dir", str(self.data)]
        command += ["--listen", f"unix:{self.socket}", "--api-key-file", str(self._key)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        with contextlib.closing(self.store()) as store:
            until = time.monotonic() + HANGS_S
            while True:
                try:
                    return store.ping()
                except Unavailable:
                    if time.monotonic() > until or self.process.poll() is not None:
                        raise

    def store(self, key: str = KEY) -> QdrantStore:
        return QdrantStore(f"unix://{self.socket}", key)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            code = self.process.wait(HANGS_S)
        except subprocess.TimeoutExpired:
            self.kill()  # or it would be the failure of other tests, too
            raise
        self.socket.unlink(missing_ok=True)
        return code


@contextlib.contextmanager
def vectors_process(folder: Path) -> Iterator[VectorsProcess]:
    running = VectorsProcess(folder)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def server() -> Iterator[IndexStore]:
    """The server that SIMILIS_QDRANT__URL names (its key in SIMILIS_QDRANT__API_KEY)."""
    store = QdrantStore(os.environ["SIMILIS_QDRANT__URL"], os.environ.get("SIMILIS_QDRANT__API_KEY", ""))
    yield store
    store.close()
