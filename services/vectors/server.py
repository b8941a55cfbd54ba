"""The part of Qdrant's own gRPC that Similis uses, answered by Qdrant Edge.

One process owns the shards: Edge holds the GIL in every call and allows one process per shard. So this one does
nothing else, and the API and the workers talk to it as they would to a server.
"""

import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import qdrant_edge as edge
from qdrant_client import grpc as pb
from qdrant_client.grpc.collections_service_pb2_grpc import (
    CollectionsServicer,
    add_CollectionsServicer_to_server,
)
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from qdrant_client.grpc.qdrant_pb2_grpc import QdrantServicer, add_QdrantServicer_to_server

from services.vectors import translate
from services.vectors.optimize import Optimizer
from services.vectors.replies import Fields, timed
from services.vectors.shards import Collection, Shards
from services.vectors.translate import Refused
from shared import log

THREADS: Final = 8  # the engine is serial; these let requests wait in line instead of being refused
_log = log.get(__name__)
M = TypeVar("M")


def answers(method: Callable[[Any, Any], M]) -> Callable[[Any, Any, grpc.ServicerContext], M]:
    """Check the request field by field; turn `Refused` into its status and a fault into INTERNAL."""

    @wraps(method)
    def handle(self: Any, request: Any, context: grpc.ServicerContext) -> M:  # noqa: ANN401 - any message
        started = time.perf_counter()
        try:
            translate.check(request)
            reply = method(self, request)
        except Refused as error:
            context.abort(error.code, str(error))
        except Exception as error:
            _log.exception("request failed", method=method.__name__, exception_type=type(error).__name__)
            context.abort(grpc.StatusCode.INTERNAL, "the engine failed")
        if isinstance(reply, bytes):
            return timed(reply, time.perf_counter() - started)  # type: ignore[return-value]  # M is bytes
        if hasattr(reply, "time"):
            reply.time = time.perf_counter() - started
        return reply

    return handle


class Collections(CollectionsServicer):
    def __init__(self, shards: Shards, optimizer: Optimizer) -> None:
        self._shards = shards
        self._optimizer = optimizer

    @answers
    def Create(self, request: pb.CreateCollection) -> pb.CollectionOperationResponse:  # noqa: N802 - Qdrant's name
        self._shards.create(request)
        return pb.CollectionOperationResponse(result=True)

    @answers
    def Update(self, request: pb.UpdateCollection) -> pb.CollectionOperationResponse:  # noqa: N802
        """Settings stay as they were made; as on a server, asking again makes the optimiser look again."""
        collection = self._shards.get(request.collection_name)
        if request.optimizers_config != collection.config.optimizers_config:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "UpdateCollection: optimizers_config cannot be changed")
        self._optimizer.request(collection)
        return pb.CollectionOperationResponse(result=True)

    @answers
    def Get(self, request: pb.GetCollectionInfoRequest) -> pb.GetCollectionInfoResponse:  # noqa: N802
        return pb.GetCollectionInfoResponse(result=self._info(self._shards.get(request.collection_name)))

    def _info(self, collection: Collection) -> pb.CollectionInfo:
        busy, failed = self._optimizer.busy(collection), self._optimizer.failed(collection)
        held = collection.read(lambda shard: shard.info())
        status = (
            pb.CollectionStatus.Yellow if busy else pb.CollectionStatus.Red if failed else pb.CollectionStatus.Green
        )
        info = pb.CollectionInfo(
            status=status,
            optimizer_status=pb.OptimizerStatus(ok=not failed, error="optimising failed" if failed else ""),
            segments_count=held.segments_count,
            points_count=held.points_count,
            indexed_vectors_count=held.indexed_vectors_count,
        )
        info.config.params.vectors_config.CopyFrom(collection.config.vectors_config)
        info.config.optimizer_config.CopyFrom(collection.config.optimizers_config)
        for key, value in collection.config.metadata.items():
            info.config.metadata[key].CopyFrom(value)
        for field, schema in held.payload_schema.items():
            keyword = schema.data_type == edge.PayloadSchemaType.Keyword
            kind = pb.PayloadSchemaType.Keyword if keyword else pb.PayloadSchemaType.Integer
            info.payload_schema[field].CopyFrom(pb.PayloadSchemaInfo(data_type=kind, points=schema.points))
        return info

    @answers
    def List(self, request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:  # noqa: ARG002, N802
        named = [pb.CollectionDescription(name=name) for name in self._shards.names()]
        return pb.ListCollectionsResponse(collections=named)

    @answers
    def CollectionExists(self, request: pb.CollectionExistsRequest) -> pb.CollectionExistsResponse:  # noqa: N802
        exists = request.collection_name in self._shards.names()
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    @answers
    def Delete(self, request: pb.DeleteCollection) -> pb.CollectionOperationResponse:  # noqa: N802
        if request.collection_name not in self._shards.names():
            return pb.CollectionOperationResponse(result=False)
        self._optimizer.forget(self._shards.get(request.collection_name))
        return pb.CollectionOperationResponse(result=self._shards.drop(request.collection_name))


class Points(PointsServicer):
    def __init__(self, shards: Shards, optimizer: Optimizer) -> None:
        self._shards = shards
        self._optimizer = optimizer

    @answers
    def CreateFieldIndex(self, request: pb.CreateFieldIndexCollection) -> pb.PointsOperationResponse:  # noqa: N802
        schema = translate.field_schema(request)
        self._shards.get(request.collection_name).index_field(request.field_name, schema)
        return _done()

    @answers
    def Upsert(self, request: pb.UpsertPoints) -> pb.PointsOperationResponse:  # noqa: N802
        """Always waits and flushes, whatever `wait` and `ordering` say: the strongest of each."""
        collection = self._shards.get(request.collection_name)
        points = [translate.point_of(point, collection.sizes) for point in request.points]
        guard = translate.filter_of(request.update_filter) if request.HasField("update_filter") else None
        operation = edge.UpdateOperation.upsert_points(points, condition=guard)
        collection.write(operation, [point.id.uuid for point in request.points])
        self._optimizer.consider(collection)
        return _done()

    @answers
    def Delete(self, request: pb.DeletePoints) -> pb.PointsOperationResponse:  # noqa: N802
        if request.points.WhichOneof("points_selector_one_of") != "points":
            raise translate.wrong("points are deleted by id")
        ids = translate.ids_of(request.points.points.ids)
        self._shards.get(request.collection_name).write(edge.UpdateOperation.delete_points(ids), ids)
        return _done()

    @answers
    def Get(self, request: pb.GetPoints) -> pb.GetResponse:  # noqa: N802
        ids, payload = translate.ids_of(request.ids), _listed(translate.payload_of(request.with_payload))
        collection = self._shards.get(request.collection_name)
        records = collection.read(lambda shard: shard.retrieve(ids, payload, request.with_vectors.enable))
        return pb.GetResponse(result=[translate.retrieved(record) for record in records])

    @answers
    def Scroll(self, request: pb.ScrollPoints) -> pb.ScrollResponse:  # noqa: N802
        wanted = edge.ScrollRequest(
            offset=request.offset.uuid or None,
            limit=request.limit or 10,
            filter=translate.filter_of(request.filter) if request.HasField("filter") else None,
            with_payload=_listed(translate.payload_of(request.with_payload)),
            with_vector=request.with_vectors.enable,
        )
        collection = self._shards.get(request.collection_name)
        records, following = collection.read(lambda shard: shard.scroll(wanted))
        offset = pb.PointId(uuid=str(following)) if following is not None else None
        return pb.ScrollResponse(result=[translate.retrieved(record) for record in records], next_page_offset=offset)

    @answers
    def Count(self, request: pb.CountPoints) -> pb.CountResponse:  # noqa: N802
        wanted = edge.CountRequest(
            exact=request.exact or not request.HasField("exact"),
            filter=translate.filter_of(request.filter) if request.HasField("filter") else None,
        )
        collection = self._shards.get(request.collection_name)
        return pb.CountResponse(result=pb.CountResult(count=collection.read(lambda shard: shard.count(wanted))))

    @answers
    def QueryBatch(self, request: pb.QueryBatchPoints) -> bytes:  # noqa: N802
        """A serialised QueryBatchResponse: see `_bytes_out`."""
        collection = self._shards.get(request.collection_name)
        for query in request.query_points:
            if query.collection_name not in {"", request.collection_name}:
                raise translate.wrong("a batch asks one collection")
        wanted = [translate.query_of(query, collection.sizes) for query in request.query_points]
        found = collection.read(lambda shard: shard.query_batch(edge.QueryBatchRequest(queries=wanted)))
        return collection.replies.batch(found, [translate.payload_of(q.with_payload) for q in request.query_points])

    @answers
    def QueryGroups(self, request: pb.QueryPointGroups) -> pb.QueryGroupsResponse:  # noqa: ARG002, N802
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "QueryGroups is not implemented here")  # Edge has no groups


class Root(QdrantServicer):
    @answers
    def HealthCheck(self, request: pb.HealthCheckRequest) -> pb.HealthCheckReply:  # noqa: ARG002, N802
        return pb.HealthCheckReply(title="similis vectors (Qdrant Edge)", version=version("qdrant-edge-py"))


def _listed(fields: Fields) -> bool | list[str]:
    """As Edge takes them."""
    return fields if isinstance(fields, bool) else list(fields)


def _done() -> pb.PointsOperationResponse:
    return pb.PointsOperationResponse(result=pb.UpdateResult(status=pb.UpdateStatus.Completed))


class KeyGuard(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Every call carries the key; the comparison takes the same time for any other."""

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


def _bytes_out(name: str, method: Callable[..., bytes], request: Any) -> Any:  # noqa: ANN401 - grpc ships no types
    """A method of Points that gives the reply's bytes; registered first, it is the one that is found."""
    handler = grpc.unary_unary_rpc_method_handler(method, request.FromString, bytes)
    return grpc.method_handlers_generic_handler("qdrant.Points", {name: handler})


class VectorsServer:
    """The running service. Raises `Refused` when the folder is held by another process."""

    def __init__(self, folder: Path, listen: str, key: str) -> None:
        self.shards = Shards(folder)
        self._optimizer = Optimizer()
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", 64 * 2**20),
            ("grpc.so_reuseport", 0),
        ]
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(pool, interceptors=[KeyGuard(key)], options=options)
        add_CollectionsServicer_to_server(Collections(self.shards, self._optimizer), self._server)  # type: ignore[no-untyped-call]
        points = Points(self.shards, self._optimizer)
        self._server.add_generic_rpc_handlers((_bytes_out("QueryBatch", points.QueryBatch, pb.QueryBatchPoints),))
        add_PointsServicer_to_server(points, self._server)  # type: ignore[no-untyped-call]
        add_QdrantServicer_to_server(Root(), self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(listen)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Requests in hand are finished, everything is flushed, the folder is free."""
        self._server.stop(grace=2).wait()
        self._optimizer.stop()
        self.shards.close()
