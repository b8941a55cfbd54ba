"""The part of Qdrant's gRPC API that Similis uses, served by Qdrant Edge.

This process manages the collections and forwards requests about points, as bytes, to the process that holds the
shard (`services.vectors.shard_process`). The API and the workers use it like a Qdrant server.
"""

import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message  # type: ignore[import-untyped]  # ships no types

from services.vectors import translate
from services.vectors.optimize import Optimizer
from services.vectors.refused import Refused
from services.vectors.shards import ALL_CALLS, Collection, Shards
from shared import log
from shared.index.protobuf import pb

ANSWERS_WITHIN_S: Final = 4.0
THREADS: Final = ALL_CALLS + 16  # calls to shards may block a thread each; the rest serve calls that need no shard
_log = log.get(__name__)
M = TypeVar("M")


def answers(method: Callable[[Any, Any], M]) -> Callable[[Any, Any, grpc.ServicerContext], M]:
    """Check a message field by field (bytes are forwarded unchecked); turn errors into a status, or INTERNAL."""

    @wraps(method)
    def handle(self: Any, request: Any, context: grpc.ServicerContext) -> M:  # noqa: ANN401 - any message
        try:
            if isinstance(request, Message):
                translate.check(request)
            return method(self, request)
        except Refused as error:
            context.abort(error.code, str(error))
        except Exception as error:
            _log.exception("request_failed", method=method.__name__, exception_type=type(error).__name__)
            context.abort(grpc.StatusCode.INTERNAL, "the engine failed")
        raise AssertionError("abort has raised")

    return handle


class Collections(pb.CollectionsServicer):
    def __init__(self, shards: Shards, optimizer: Optimizer) -> None:
        self._shards = shards
        self._optimizer = optimizer

    @answers
    def Create(self, request: pb.CreateCollection) -> pb.CollectionOperationResponse:  # noqa: N802 - Qdrant's name
        self._shards.create(request)
        return pb.CollectionOperationResponse(result=True)

    @answers
    def Update(self, request: pb.UpdateCollection) -> pb.CollectionOperationResponse:  # noqa: N802
        """Request an optimisation, as on a Qdrant server; settings cannot be changed."""
        with self._shards.called(request.collection_name) as collection:
            if request.optimizers_config != collection.config.optimizers_config:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "UpdateCollection: optimizers_config cannot be changed")
            self._optimizer.request(collection)
        return pb.CollectionOperationResponse(result=True)

    @answers
    def Get(self, request: pb.GetCollectionInfoRequest) -> pb.GetCollectionInfoResponse:  # noqa: N802
        with self._shards.called(request.collection_name) as collection:
            return pb.GetCollectionInfoResponse(result=self._info(collection))

    def _info(self, collection: Collection) -> pb.CollectionInfo:
        busy, failed = self._optimizer.busy(collection), self._optimizer.failed(collection)
        info = collection.info()
        info.status = (
            pb.CollectionStatus.Yellow if busy else pb.CollectionStatus.Red if failed else pb.CollectionStatus.Green
        )
        info.optimizer_status.CopyFrom(pb.OptimizerStatus(ok=not failed, error="optimising failed" if failed else ""))
        info.config.params.vectors_config.CopyFrom(collection.config.vectors_config)
        info.config.optimizer_config.CopyFrom(collection.config.optimizers_config)
        for key, value in collection.config.metadata.items():
            info.config.metadata[key].CopyFrom(value)
        return info

    @answers
    def List(self, request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:  # noqa: ARG002, N802
        named = [pb.CollectionDescription(name=name) for name in self._shards.names()]
        return pb.ListCollectionsResponse(collections=named)

    @answers
    def CollectionExists(self, request: pb.CollectionExistsRequest) -> pb.CollectionExistsResponse:  # noqa: N802
        """Also true for a collection that cannot be loaded, since its name is taken."""
        exists = request.collection_name in self._shards.names()
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    @answers
    def Delete(self, request: pb.DeleteCollection) -> pb.CollectionOperationResponse:  # noqa: N802
        if request.collection_name not in self._shards.names():
            return pb.CollectionOperationResponse(result=False)
        if request.collection_name not in self._shards.broken:
            self._optimizer.forget(self._shards.get(request.collection_name))
        return pb.CollectionOperationResponse(result=self._shards.drop(request.collection_name))


class Points:
    """Forwards serialised requests to the collection's shard, and returns its serialised replies."""

    def __init__(self, shards: Shards, optimizer: Optimizer) -> None:
        self._shards = shards
        self._optimizer = optimizer

    def handlers(self) -> Any:  # noqa: ANN401 - grpc ships no types
        """The gRPC handlers, bytes in and bytes out; other methods of Qdrant are UNIMPLEMENTED."""
        calls = {name: getattr(self, name) for name in ("Upsert", "Delete", "CreateFieldIndex", "QueryGroups")}
        calls |= {name: partial(self.Read, name) for name in ("QueryBatch", "Get", "Scroll", "Count")}
        rpc = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler("qdrant.Points", rpc)

    def Read(self, name: str, raw: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: N802
        return self._read((name, raw), context)

    @answers
    def _read(self, call: tuple[str, bytes]) -> bytes:
        with self._shards.called(collection_of(call[1])) as collection:
            return collection.ask(*call)

    @answers
    def Upsert(self, raw: bytes) -> bytes:  # noqa: N802 - Qdrant's name
        with self._shards.called(collection_of(raw)) as collection:
            request = pb.UpsertPoints.FromString(raw)
            reply = collection.write("Upsert", raw, translate.ids_of(point.id for point in request.points))
            self._optimizer.consider(collection)
        return reply

    @answers
    def Delete(self, raw: bytes) -> bytes:  # noqa: N802
        with self._shards.called(collection_of(raw)) as collection:
            ids = translate.ids_of(pb.DeletePoints.FromString(raw).points.points.ids)
            return collection.write("Delete", raw, ids)

    @answers
    def CreateFieldIndex(self, raw: bytes) -> bytes:  # noqa: N802
        with self._shards.called(collection_of(raw)) as collection:
            return collection.index_field(raw)

    @answers
    def QueryGroups(self, raw: bytes) -> bytes:  # noqa: ARG002, N802
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "QueryGroups is not implemented here")  # Edge has no groups


class Root(pb.QdrantServicer):
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    @answers
    def HealthCheck(self, request: pb.HealthCheckRequest) -> pb.HealthCheckReply:  # noqa: ARG002, N802
        """UNAVAILABLE while a shard hangs; the title names collections that cannot be loaded."""
        if silent := self._shards.silent():
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"no answer from {', '.join(silent)}")
        lost = f"; cannot be loaded: {', '.join(sorted(self._shards.broken))}" if self._shards.broken else ""
        return pb.HealthCheckReply(title=f"similis vectors (Qdrant Edge){lost}", version=version("qdrant-edge-py"))


def collection_of(raw: bytes) -> str:
    """The collection's name, which is field 1 of every request about points."""
    return str(pb.GetCollectionInfoRequest.FromString(raw).collection_name)


class KeyGuard(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Refuses calls without the API key, which is compared in constant time."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

        def refuse(_request: object, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the api-key is missing or wrong")

        self._refuse = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:  # noqa: ANN401 - grpc's
        given = next((value for name, value in details.invocation_metadata if name == "api-key"), "")
        if hmac.compare_digest(given.encode(), self._key):
            return continuation(details)
        return self._refuse


class VectorsServer:
    """The gRPC server. Raises: `Refused` where another process holds the folder, `RuntimeError` for a taken address."""

    def __init__(self, folder: Path, listen: str, key: str) -> None:
        self.shards = Shards(folder)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", 64 * 2**20),
            ("grpc.so_reuseport", 0),
        ]
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(pool, interceptors=[KeyGuard(key)], options=options)
        self.port = self._server.add_insecure_port(listen)
        # after all that may fail: its thread would keep the process alive
        self._optimizer = Optimizer(self.shards.loaded())
        pb.add_CollectionsServicer_to_server(Collections(self.shards, self._optimizer), self._server)  # type: ignore[no-untyped-call]
        self._server.add_generic_rpc_handlers((Points(self.shards, self._optimizer).handlers(),))
        pb.add_QdrantServicer_to_server(Root(self.shards), self._server)  # type: ignore[no-untyped-call]
        self._listen = listen

    def start(self) -> None:
        self._server.start()

    def answers(self) -> bool:
        """Whether the server answers a call; made without the key, so that it does not depend on the shards."""
        with grpc.insecure_channel(self._listen) as channel:
            try:
                pb.QdrantStub(channel).HealthCheck(pb.HealthCheckRequest(), timeout=ANSWERS_WITHIN_S)  # type: ignore[no-untyped-call]
            except grpc.RpcError as error:
                return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
        return True

    def stop(self) -> None:
        """Finish running requests within 2 s, flush everything, and release the folder."""
        self._server.stop(grace=2).wait()
        self._optimizer.stop()
        self.shards.close()
