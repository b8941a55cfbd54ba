"""Qdrant over gRPC: one adapter for a server, a cluster and the embedded `services.vectors`.

It uses the generated stubs of qdrant-client, not its model layer (`shared.index.messages` says why). A peer may lack
two features: grouping, which is emulated after UNIMPLEMENTED, as the answer says, and indexing on request, for which
an update of the optimiser settings makes a server check its segments again.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import grpc

from shared.errors import Conflict, Invalid, NotFound, SimilisError, Unavailable
from shared.index import checks, messages
from shared.index.base import PAYLOAD, Answer, Ball, CodeQuery, Damaged, Filter, Hit, Info, Near, Point, Query, Spec
from shared.index.grouping import cut, emulate, ordered
from shared.index.protobuf import pb
from shared.index.trust import Trust

BATCH: Final = 256  # points per upsert: about 1 MB of 1,024-d vectors
AHEAD: Final = 4  # the first request of a ball asks for this many times k codes
RETRY_FOR_S: Final = 1.0  # a killed engine is back within 0.3 s
SIZED_FOR_S: Final = 60.0  # an archive hardly grows within a minute
LINKED_WITHIN_S: Final = 6 * 3600.0  # at 0.5 ms per point, forty million points
_Code = grpc.StatusCode
ERRORS: Final[dict[Any, type[SimilisError]]] = {
    _Code.NOT_FOUND: NotFound,
    _Code.INVALID_ARGUMENT: Invalid,
    _Code.OUT_OF_RANGE: Invalid,
    _Code.UNIMPLEMENTED: Invalid,
    _Code.ALREADY_EXISTS: Conflict,
    _Code.FAILED_PRECONDITION: Conflict,
}  # anything else (down, slow, busy, disk full, wrong key, internal error): Unavailable
REFUSED: Final = (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED)  # of our key, not the caller's: no 403 for callers


class Wire(NamedTuple):
    """The two stubs of Qdrant's gRPC, or objects with the same methods."""

    points: Any
    collections: Any


class Caller:
    """Calls a stub with key and timeout; retries for `RETRY_FOR_S` while the peer is unavailable.

    Every request of this adapter is idempotent: upserts are guarded by revision, deletes name ids.
    """

    def __init__(self, api_key: str, timeout_s: float) -> None:
        self._metadata = (("api-key", api_key),) if api_key else ()
        self._timeout_s = timeout_s

    def __call__(self, method: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - a message
        until, pause_s = time.monotonic() + RETRY_FOR_S, 0.02
        while True:
            try:
                return method(request, timeout=self._timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                if error.code() is not _Code.UNAVAILABLE or time.monotonic() + pause_s > until:
                    raise translated(error) from error
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.2)


def translated(error: grpc.RpcError) -> SimilisError:
    """Our error for a gRPC status; only errors that the caller can correct quote the engine's message."""
    if error.code() in REFUSED:
        return Unavailable("the vector engine rejected the API key")
    if error.code() is _Code.DATA_LOSS:
        return Damaged("the vector engine cannot load this collection: rebuild it with `similis doctor --repair`")
    if error.code() is _Code.RESOURCE_EXHAUSTED:
        return Unavailable("the vector engine is busy, or its disk is nearly full")
    kind = ERRORS.get(error.code())
    if kind is None:
        return Unavailable(f"the vector engine answered {error.code().name}")
    return kind(f"vector engine: {error.details()}")


def channel(url: str) -> grpc.Channel:
    """A channel to `http://host:grpc-port`, `https://...` (TLS, the system's certificates), or `unix:///path`."""
    parts = urlsplit(url)
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 5000),  # in fact the timeout of a handshake; a refusal fails at once
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.enable_http_proxy", 0),
    ]
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return grpc.insecure_channel(f"unix://{parts.path}", options)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Invalid("the Qdrant URL must have the form http(s)://host:grpc-port or unix:///path")
    target = f"{parts.hostname}:{parts.port or 6334}"
    if parts.scheme == "http":
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)


class QdrantIndex:
    """One collection behind a gRPC peer; safe to share between threads."""

    def __init__(self, wire: Wire, call: Caller, name: str, spec: Spec) -> None:
        self.spec = spec
        self.name = name
        self._wire = wire
        self._call = call
        self._groups = True  # until the peer answers UNIMPLEMENTED
        self._size, self._sized_until = 0, 0.0  # the number of points, and when it is asked for again
        self._trust = Trust()

    def write(self, points: Sequence[Point]) -> None:
        checks.check_codes(self.spec, points)
        fresh = checks.newest(points)
        vectors = checks.prepare(self.spec, [point.vector for point in fresh])
        for start in range(0, len(fresh), BATCH):
            part = slice(start, start + BATCH)
            self._call(self._wire.points.Upsert, messages.upsert(self.name, fresh[part], vectors[part]))

    def delete(self, ids: Sequence[uuid.UUID]) -> None:
        for start in range(0, len(ids), 4 * BATCH):
            listed = pb.PointsIdsList(ids=[messages.point_id(id_) for id_ in ids[start : start + 4 * BATCH]])
            request = pb.DeletePoints(collection_name=self.name, wait=True, ordering=messages.STRONG)
            request.points.points.CopyFrom(listed)
            self._call(self._wire.points.Delete, request)

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        for query in queries:
            checks.check_query(query)
        vectors = checks.prepare(self.spec, [query.vector for query in queries])
        points = 0 if self.spec.scale == "exact" else self._points()
        requests = [self._message(query, vectors[row], points) for row, query in enumerate(queries)]
        flat = [row for row, query in enumerate(queries) if query.group_by is None]
        answers: dict[int, Answer] = {}
        if flat:
            found, engine_ms = self._fetch([requests[row] for row in flat])
            for row, hits in zip(flat, found, strict=True):
                exact = requests[row].params.exact
                answers[row] = Answer(hits=tuple(hits[: queries[row].limit]), exact=exact, engine_ms=engine_ms)
        grouped = [row for row, query in enumerate(queries) if query.group_by is not None]
        if grouped:
            told = self._grouped([queries[row] for row in grouped], [requests[row] for row in grouped])
            answers |= dict(zip(grouped, told, strict=True))
        return [answers[row] for row in range(len(queries))]

    def _points(self) -> int:
        """The number of points at the last look: the effort of a search hardly depends on it."""
        if (now := time.monotonic()) > self._sized_until:
            self._sized_until = now + SIZED_FOR_S
            with suppress(Unavailable):
                self._size = self._info().points_count
        return self._size

    def _message(self, query: Query, vector: Any, points: int) -> pb.QueryPoints:  # noqa: ANN401 - one row of the matrix
        message = pb.QueryPoints(
            collection_name=self.name,
            using=messages.VECTOR,
            filter=messages.filter_of(query.filter),
            params=messages.params(self.spec, query.accuracy, points, filtered=bool(query.filter.must)),
            limit=query.limit,
            with_payload=messages.selector(query.fields, query.group_by),
        )
        messages.pack(message.query.nearest.dense, vector)
        return message

    def _fetch(self, requests: Sequence[pb.QueryPoints]) -> tuple[list[list[Hit]], float]:
        request = pb.QueryBatchPoints(collection_name=self.name, query_points=requests)
        reply = self._call(self._wire.points.QueryBatch, request)
        found = [ordered(messages.hits(result.result, self.spec.metric)) for result in reply.result]
        return found, reply.time * 1000

    def _grouped(self, queries: Sequence[Query], requests: Sequence[pb.QueryPoints]) -> list[Answer]:
        """Answer by native groups where the peer has them; emulate the answers that have too few hits."""
        answers: dict[int, Answer] = {}
        for row, (query, message) in enumerate(zip(queries, requests, strict=True)):
            if self._groups:
                hits, engine_ms = self._native_groups(query, message)
                if len(hits) == query.limit:
                    answers[row] = Answer(hits=tuple(hits), exact=message.params.exact, engine_ms=engine_ms)
        left = [row for row in range(len(queries)) if row not in answers]
        told = emulate(self.search, [queries[row] for row in left])
        answers |= dict(zip(left, told, strict=True))
        return [answers[row] for row in range(len(queries))]

    def _native_groups(self, query: Query, message: pb.QueryPoints) -> tuple[list[Hit], float]:
        """The best `limit` hits; they lie in the best `limit` groups, because groups rank by their best hit."""
        request = pb.QueryPointGroups(
            collection_name=self.name,
            query=message.query,
            using=message.using,
            filter=message.filter if message.HasField("filter") else None,
            params=message.params,
            with_payload=message.with_payload,
            limit=query.limit,
            group_size=query.group_limit,
            group_by=query.group_by or "",
        )
        try:
            reply = self._call(self._wire.points.QueryGroups, request)
        except Invalid as error:
            if getattr(error.__cause__, "code", lambda: None)() is not _Code.UNIMPLEMENTED:
                raise
            self._groups = False
            return [], 0.0
        members = [hit for group in reply.result.groups for hit in group.hits]
        return cut(ordered(messages.hits(members, self.spec.metric)), query), reply.time * 1000

    def near(self, queries: Sequence[CodeQuery]) -> list[Ball]:
        """One ball per query, from top lists, which may cut through ties, and from score thresholds, which do not.

        A list of several times k mostly reaches beyond the k-th distance; then the ball is whole, else it is requested
        by its radius. Of a ball that is larger than `most`, all points up to the distance of the cut are fetched, so
        that always the same part is kept, but none beyond: the radius may include the whole archive.
        """
        for query in queries:
            checks.check_code_query(self.spec, query)
        self._trust.check(self, self._near)
        return self._near(queries)

    def _near(self, queries: Sequence[CodeQuery]) -> list[Ball]:
        if not queries:
            return []
        limits = [min(AHEAD * query.k, query.most) + 1 if query.k else query.most + 1 for query in queries]
        found, engine_ms = self._codes(queries, limits, [query.radius for query in queries])
        radii = [_radius(query, hits) for query, hits in zip(queries, found, strict=True)]
        short = [row for row, hits in enumerate(found) if _short(hits, limits[row], radii[row])]
        if wider := [row for row in short if limits[row] <= queries[row].most]:
            asked = [queries[row] for row in wider]
            reach = [found[row][-1].distance for row in wider]
            more, more_ms = self._codes(asked, [query.most + 1 for query in asked], reach)
            engine_ms += more_ms
            for row, hits in zip(wider, more, strict=True):
                found[row], limits[row] = hits, queries[row].most + 1
        for row in short:  # one by one: each reply may hold the whole archive
            if _short(found[row], limits[row], radii[row]):
                every = self.count(queries[row].filter)
                (hits,), more_ms = self._codes([queries[row]], [every], [found[row][-1].distance])
                engine_ms += more_ms
                found[row] = hits[: queries[row].most + 1]
        return [
            _ball(query, hits, radius, engine_ms) for query, hits, radius in zip(queries, found, radii, strict=True)
        ]

    def _codes(
        self, queries: Sequence[CodeQuery], limits: Sequence[int], radii: Sequence[int | None]
    ) -> tuple[list[list[Near]], float]:
        wanted = [
            messages.near(self.name, self.spec, query, max(limit, 1), radius)
            for query, limit, radius in zip(queries, limits, radii, strict=True)
        ]
        request = pb.QueryBatchPoints(collection_name=self.name, query_points=wanted)
        reply = self._call(self._wire.points.QueryBatch, request)
        return [messages.nears(result.result, self.spec.bits) for result in reply.result], reply.time * 1000

    def get(self, ids: Sequence[uuid.UUID]) -> list[Point]:
        found: dict[uuid.UUID, Point] = {}
        for start in range(0, len(ids), BATCH):
            request = pb.GetPoints(
                collection_name=self.name,
                ids=[messages.point_id(id_) for id_ in ids[start : start + BATCH]],
                with_payload=pb.WithPayloadSelector(enable=True),
                with_vectors=pb.WithVectorsSelector(enable=True),
            )
            for row in self._call(self._wire.points.Get, request).result:
                point = messages.point_of(row)
                found[point.id] = point
        return [found[id_] for id_ in ids if id_ in found]

    def scan(self, batch: int = 1000) -> Iterator[Sequence[tuple[uuid.UUID, int]]]:
        request = pb.ScrollPoints(collection_name=self.name, limit=batch)
        request.with_payload.include.fields.append("revision")
        while True:
            reply = self._call(self._wire.points.Scroll, request)
            if reply.result:
                yield [(messages.parse_id(row.id.uuid), row.payload["revision"].integer_value) for row in reply.result]
            if not reply.HasField("next_page_offset"):
                return
            request.offset.CopyFrom(reply.next_page_offset)

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002 - the seam's word
        if filter is not None:
            checks.check_filter(filter)
        message = None if filter is None else messages.filter_of(filter)
        request = pb.CountPoints(collection_name=self.name, filter=message, exact=True)
        return int(self._call(self._wire.points.Count, request).result.count)

    def info(self) -> Info:
        info = self._info()
        return Info(
            points=info.points_count,
            indexed=min(info.indexed_vectors_count, info.points_count),
            optimizing=info.status == pb.CollectionStatus.Yellow,
        )

    def _info(self) -> pb.CollectionInfo:
        request = pb.GetCollectionInfoRequest(collection_name=self.name)
        reply: pb.GetCollectionInfoResponse = self._call(self._wire.collections.Get, request)
        return reply.result

    def optimize(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Request an optimisation and wait until the engine reports green, or until `goes_on` is false.

        Raises: `Unavailable` if it reports red, or is not green after `LINKED_WITHIN_S`.
        """
        if self.spec.scale == "exact":
            return False
        before, worked = self.info(), False
        request = pb.UpdateCollection(collection_name=self.name, optimizers_config=messages.optimizers(self.spec))
        self._call(self._wire.collections.Update, request)
        until, pause_s = time.monotonic() + LINKED_WITHIN_S, 0.05
        while (info := self._info()).status != pb.CollectionStatus.Green:
            if info.status == pb.CollectionStatus.Red:
                raise Unavailable("the vector engine could not build its index")
            if not goes_on():
                return False
            if time.monotonic() > until:
                raise Unavailable(f"the vector engine has not linked its points within {LINKED_WITHIN_S:.0f} s")
            worked = True
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 1.0)
        return worked or bool(info.indexed_vectors_count > before.indexed)


def _radius(query: CodeQuery, hits: Sequence[Near]) -> int:
    """The radius of the ball: that of the query, or the distance of its k-th hit."""
    if query.radius is not None:
        return query.radius
    return hits[min(query.k or 1, len(hits)) - 1].distance if hits else 0


def _short(hits: Sequence[Near], limit: int, radius: int) -> bool:
    """Whether the list was cut before the ball was complete."""
    return len(hits) >= limit and hits[-1].distance <= radius


def _ball(query: CodeQuery, hits: Sequence[Near], radius: int, engine_ms: float) -> Ball:
    inside = [hit for hit in hits if hit.distance <= radius]
    return Ball(hits=tuple(inside[: query.most]), radius=radius, cut=len(inside) > query.most, engine_ms=engine_ms)


class QdrantStore:
    """The collections of one Qdrant."""

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 10.0, *, wire: Wire | None = None) -> None:
        """`wire` replaces the url: objects with the methods of the stubs, such as those over the local mode."""
        self._channel: grpc.Channel | None = None
        if wire is None:
            self._channel = channel(url)
            points = pb.PointsStub(self._channel)  # type: ignore[no-untyped-call]
            wire = Wire(points, pb.CollectionsStub(self._channel))  # type: ignore[no-untyped-call]
        self._wire = wire
        self._call = Caller(api_key, timeout_s)

    def create(self, name: str, spec: Spec) -> QdrantIndex:
        checks.check_name(name)
        checks.check_spec(spec)
        if not self._exists(name):
            try:
                self._call(self._wire.collections.Create, messages.create(name, spec))
            except (Conflict, Invalid):  # a server reports "already exists" as an invalid argument
                if not self._exists(name):
                    raise
        index, info = self._open(name)
        if index.spec != spec:
            raise Conflict(f"collection {name} exists with another spec")
        for field, kind in PAYLOAD.items():
            if field not in info.payload_schema:  # also after an interrupted creation
                self._call(self._wire.points.CreateFieldIndex, messages.field_index(name, field, kind))
        return index

    def _exists(self, name: str) -> bool:
        request = pb.CollectionExistsRequest(collection_name=name)
        return bool(self._call(self._wire.collections.CollectionExists, request).result.exists)

    def open(self, name: str) -> QdrantIndex:
        checks.check_name(name)
        return self._open(name)[0]

    def _open(self, name: str) -> tuple[QdrantIndex, pb.CollectionInfo]:
        info = self._call(self._wire.collections.Get, pb.GetCollectionInfoRequest(collection_name=name)).result
        return QdrantIndex(self._wire, self._call, name, messages.spec_of(info)), info

    def drop(self, name: str) -> None:
        checks.check_name(name)
        if self._exists(name):
            self._call(self._wire.collections.Delete, pb.DeleteCollection(collection_name=name))

    def names(self) -> list[str]:
        reply = self._call(self._wire.collections.List, pb.ListCollectionsRequest())
        return sorted(collection.name for collection in reply.collections)

    def ping(self) -> None:
        try:
            self._call(self._wire.collections.List, pb.ListCollectionsRequest())
        except SimilisError as error:
            raise Unavailable(str(error)) from error

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
