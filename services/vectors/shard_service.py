"""Serves one shard's calls, as serialised requests and replies, from Qdrant Edge and the tables of hash codes."""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import qdrant_edge as edge

from services.vectors import translate
from services.vectors.codes import CodeTable, from_text, hidden, key_of
from services.vectors.refused import Refused, wrong
from services.vectors.replies import Fields, Replies, timed
from services.vectors.translate import Layout
from shared import log
from shared.disk import sync
from shared.index.protobuf import pb

STEP: Final = 32  # points of one Edge update, about 5 ms; reads may run between two of them
FLUSH_EVERY: Final = 5000  # points written between flushes; loading a shard with so many in its log takes 0.7 s
PAGE: Final = 4096  # points of one scroll when the tables are filled
WRITTEN: Final = "written"  # a file in the shard's folder: number of points written since its graph was built
_log = log.get(__name__)


class ShardService:
    """Qdrant's Points service for this shard, and the internal calls of its owner (Info, Replay, Flush, Ping)."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._shard = edge.EdgeShard.load(str(path))
        self._shard.flush()  # empties the replayed log, which would grow over many short-lived processes
        self._wal = path / "wal"
        self._unflushed = 0
        self._count = path / WRITTEN
        said = self._count.read_bytes() if self._count.exists() else b""
        self._written = int(said) if said.isdigit() else 0  # a power loss may leave an incomplete file
        self._tables = {name: CodeTable(bits) for name, bits in layout.bits.items()}
        self._fill_tables()
        self._replies = Replies(lambda ids, fields: self._shard.retrieve(ids, self._wanted(fields), False), self._page)
        self._calls: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "QueryBatch": (pb.QueryBatchPoints, self.query_batch),
            "Get": (pb.GetPoints, self.get),
            "Scroll": (pb.ScrollPoints, self.scroll),
            "Count": (pb.CountPoints, self.count),
            "Info": (pb.GetCollectionInfoRequest, self.info),
            "Upsert": (pb.UpsertPoints, self.upsert),
            "Replay": (pb.UpsertPoints, self.replay),
            "Delete": (pb.DeletePoints, self.delete),
            "CreateFieldIndex": (pb.CreateFieldIndexCollection, self.index_field),
            "Flush": (pb.HealthCheckRequest, self.flush),
            "Ping": (pb.HealthCheckRequest, lambda _: done()),
        }

    def answer(self, name: str, raw: bytes) -> bytes:
        """One byte of gRPC status, then the reply or the error message; the request is checked field by field."""
        started = time.perf_counter()
        message, call = self._calls[name]
        try:
            request = message.FromString(raw)
            translate.check(request)
            reply = call(request)
        except Refused as error:
            return bytes([error.code.value[0]]) + str(error).encode()
        except Exception as error:
            _log.exception("request_failed", method=name, exception_type=type(error).__name__)
            return bytes([grpc.StatusCode.INTERNAL.value[0]]) + b"the engine failed"
        if isinstance(reply, bytes):
            return b"\0" + timed(reply, time.perf_counter() - started)
        if hasattr(reply, "time"):
            reply.time = time.perf_counter() - started
        sent: bytes = reply.SerializeToString()
        return b"\0" + sent

    def query_batch(self, request: pb.QueryBatchPoints) -> bytes:
        for query in request.query_points:
            if query.collection_name not in {"", request.collection_name}:
                raise wrong("all searches of a batch must be in the same collection")
        found: list[Sequence[tuple[int, float]]] = [
            translate.nearest_codes(query, self._layout, self._tables[query.using])
            if query.using in self._tables
            else []
            for query in request.query_points
        ]
        dense = [row for row, query in enumerate(request.query_points) if query.using not in self._tables]
        if dense:
            wanted = [translate.query_of(request.query_points[row], self._layout) for row in dense]
            hits: Any = self._shard.query_batch(edge.QueryBatchRequest(queries=wanted))
            for row, points in zip(dense, hits, strict=True):
                # an int hashes in C, a UUID in Python, and each access to `id` makes a new UUID
                found[row] = [(point.id.int, point.score) for point in points]
        return self._replies.batch(found, [translate.payload_of(query.with_payload) for query in request.query_points])

    def get(self, request: pb.GetPoints) -> pb.GetResponse:
        payload = self._wanted(translate.payload_of(request.with_payload), vectors=request.with_vectors.enable)
        ids = translate.ids_of(request.ids)
        records = self._shard.retrieve(ids, payload, request.with_vectors.enable)
        return pb.GetResponse(result=[translate.retrieved(record, self._layout) for record in records])

    def scroll(self, request: pb.ScrollPoints) -> pb.ScrollResponse:
        wanted = edge.ScrollRequest(
            offset=translate.id_of(request.offset) if request.HasField("offset") else None,
            limit=request.limit or 10,
            filter=translate.filter_of(request.filter) if request.HasField("filter") else None,
            with_payload=self._wanted(translate.payload_of(request.with_payload), vectors=request.with_vectors.enable),
            with_vector=request.with_vectors.enable,
        )
        records, following = self._shard.scroll(wanted)
        offset = pb.PointId(uuid=str(following)) if following is not None else None
        return pb.ScrollResponse(
            result=[translate.retrieved(record, self._layout) for record in records], next_page_offset=offset
        )

    def count(self, request: pb.CountPoints) -> pb.CountResponse:
        wanted = edge.CountRequest(
            exact=request.exact or not request.HasField("exact"),
            filter=translate.filter_of(request.filter) if request.HasField("filter") else None,
        )
        return pb.CountResponse(result=pb.CountResult(count=self._shard.count(wanted)))

    def info(self, _request: pb.GetCollectionInfoRequest) -> pb.CollectionInfo:
        """The shard's numbers and payload indexes.

        `indexed_vectors_count` is derived, because Edge's own count includes points that were overwritten or deleted.
        """
        held = self._shard.info()
        unlinked = max(held.points_count - held.indexed_vectors_count, min(self._written, held.points_count))
        info = pb.CollectionInfo(
            segments_count=held.segments_count,
            points_count=held.points_count,
            indexed_vectors_count=held.points_count - unlinked,
        )
        for field, schema in held.payload_schema.items():
            keyword = schema.data_type == edge.PayloadSchemaType.Keyword
            kind = pb.PayloadSchemaType.Keyword if keyword else pb.PayloadSchemaType.Integer
            info.payload_schema[field].CopyFrom(pb.PayloadSchemaInfo(data_type=kind, points=schema.points))
        return info

    def upsert(self, request: pb.UpsertPoints) -> pb.PointsOperationResponse:
        """Apply the points durably, whatever `wait` and `ordering` say.

        Each step of `STEP` points is atomic; a kill in between leaves some points written and none acknowledged.
        """
        reply = self.replay(request)
        self._keep(len(request.points))
        return reply

    def replay(self, request: pb.UpsertPoints) -> pb.PointsOperationResponse:
        """Apply the points without syncing: a new shard that catches up is flushed once at the end."""
        points = [translate.point_of(point, self._layout) for point in request.points]
        ids = translate.ids_of(point.id for point in request.points)
        guard = translate.filter_of(request.update_filter) if request.HasField("update_filter") else None
        for start in range(0, len(points), STEP):
            self._shard.update(edge.UpdateOperation.upsert_points(points[start : start + STEP], condition=guard))
            self._follow(ids[start : start + STEP])
            self._replies.forget(ids[start : start + STEP])
        self._written += len(points)
        self._count.write_text(str(self._written), encoding="ascii")
        return done()

    def delete(self, request: pb.DeletePoints) -> pb.PointsOperationResponse:
        if request.points.WhichOneof("points_selector_one_of") != "points":
            raise wrong("points can be deleted by id only")
        ids = translate.ids_of(request.points.points.ids)
        self._shard.update(edge.UpdateOperation.delete_points(ids))
        for table in self._tables.values():
            table.drop(uuid.UUID(id_).int for id_ in ids)
        self._replies.forget(ids)
        self._keep(len(ids))
        return done()

    def index_field(self, request: pb.CreateFieldIndexCollection) -> pb.PointsOperationResponse:
        """Create the payload index, without syncing: the next write syncs it.

        After a loss, a client that creates the collection again requests missing indexes again.
        """
        schema = translate.field_schema(request)
        self._shard.update(edge.UpdateOperation.create_field_index(request.field_name, schema))
        return done()

    def flush(self, _request: pb.HealthCheckRequest) -> pb.PointsOperationResponse:
        self._shard.flush()
        self._unflushed = 0
        return done()

    def _keep(self, points: int) -> None:
        """Make the latest writes durable: sync Edge's log, or flush the shard once `FLUSH_EVERY` points were written.

        Syncing the log takes 1 to 10 ms, during which reads are answered; a flush takes 80 to 400 ms, holds the GIL,
        and shortens the log, which is replayed when the shard is loaded. A shard of an earlier version has no log.
        """
        self._unflushed += points
        if self._unflushed >= FLUSH_EVERY or not self._wal.is_dir():
            self._shard.flush()
            self._unflushed = 0
        else:
            for path in [*self._wal.iterdir(), self._wal]:
                with suppress(FileNotFoundError):  # Edge is preparing its next log file, which is still empty
                    sync(path)

    def behind(self) -> bool:
        """Whether `catch_up` has work left."""
        return self._replies.behind

    def catch_up(self) -> None:
        """Cache a few more points for later replies."""
        try:
            self._replies.remember_ahead()
        except Exception as error:  # replies are correct without the cache
            _log.exception("not_remembered", exception_type=type(error).__name__)
            self._replies.behind = False

    def _fill_tables(self) -> None:
        offset = None
        while self._tables:
            records, offset = self._page(offset, PAGE, True)
            self._put(records)
            if offset is None:
                return

    def _page(self, offset: Any, limit: int, fields: Fields) -> tuple[Sequence[Any], Any]:  # noqa: ANN401 - Edge's
        wanted = edge.ScrollRequest(offset=offset, limit=limit, with_payload=self._wanted(fields), with_vector=False)
        page: tuple[Sequence[Any], Any] = self._shard.scroll(wanted)
        return page

    def _follow(self, ids: list[Any]) -> None:
        """Copy these points' codes from the shard into the tables; a write that its guard rejected changes nothing."""
        if self._tables:
            self._put(self._shard.retrieve(ids, True, False))

    def _put(self, records: Sequence[Any]) -> None:
        for record in records:
            shown = {key: value for key, value in record.payload.items() if not hidden(key)}
            for name, table in self._tables.items():
                table.put(record.id.int, from_text(record.payload[key_of(name)]), shown)

    def _wanted(self, fields: Fields, *, vectors: bool = False) -> bool | list[str]:
        """The fields in Edge's form; with vectors, including the payload fields that hold the codes."""
        if isinstance(fields, bool):
            return fields or (vectors and bool(self._tables))
        return [*fields, *(key_of(name) for name in self._tables if vectors)]

    def close(self) -> None:
        self._shard.flush()
        self._shard.close()


def done() -> pb.PointsOperationResponse:
    return pb.PointsOperationResponse(result=pb.UpdateResult(status=pb.UpdateStatus.Completed))
