"""Translates between Qdrant's protobuf and Qdrant Edge; a field that is not implemented is refused by name.

Every request is checked against `ALLOWED`, message by message: a field that is set but not listed (a score threshold,
a shard key, a prefetch) would otherwise be ignored silently, and the reply would be wrong.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
import qdrant_edge as edge
from google.protobuf.message import Message  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from services.vectors import codes
from services.vectors.refused import Refused, wrong
from shared.index.codes import signs
from shared.index.protobuf import pb

#: The implemented fields of each message. Payload values are checked where they are read.
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "CreateCollection": "collection_name vectors_config optimizers_config metadata",
        "VectorsConfig": "params_map",
        "VectorParamsMap": "map",
        "VectorParams": "size distance hnsw_config quantization_config datatype",
        "HnswConfigDiff": "m ef_construct",
        "QuantizationConfig": "scalar binary",
        "BinaryQuantization": "always_ram",
        "ScalarQuantization": "type quantile always_ram",
        "OptimizersConfigDiff": "indexing_threshold",
        "UpdateCollection": "collection_name optimizers_config",
        "GetCollectionInfoRequest": "collection_name",
        "CollectionExistsRequest": "collection_name",
        "ListCollectionsRequest": "",
        "DeleteCollection": "collection_name",
        "HealthCheckRequest": "",
        "CreateFieldIndexCollection": "collection_name wait field_name field_type field_index_params ordering",
        "PayloadIndexParams": "keyword_index_params integer_index_params",
        "KeywordIndexParams": "enable_hnsw",
        "IntegerIndexParams": "lookup range enable_hnsw",
        "WriteOrdering": "type",
        "UpsertPoints": "collection_name wait points ordering update_filter",
        "PointStruct": "id payload vectors",
        "Vectors": "vectors",
        "NamedVectors": "vectors",
        "Vector": "dense",
        "DenseVector": "data",
        "PointId": "uuid",
        "DeletePoints": "collection_name wait points ordering",
        "PointsSelector": "points",
        "PointsIdsList": "ids",
        "GetPoints": "collection_name ids with_payload with_vectors",
        "WithPayloadSelector": "enable include",
        "PayloadIncludeSelector": "fields",
        "WithVectorsSelector": "enable",
        "ScrollPoints": "collection_name filter offset limit with_payload with_vectors",
        "CountPoints": "collection_name filter exact",
        "QueryBatchPoints": "collection_name query_points",
        "QueryPoints": "collection_name query using filter params limit with_payload score_threshold",
        "Query": "nearest",
        "VectorInput": "dense",
        "SearchParams": "hnsw_ef exact quantization indexed_only",
        "QuantizationSearchParams": "ignore rescore oversampling",
        "Filter": "should must must_not",
        "Condition": "field has_id filter",
        "FieldCondition": "key match range",
        "Match": "keyword integer keywords integers",
        "RepeatedStrings": "strings",
        "RepeatedIntegers": "integers",
        "Range": "lt gt gte lte",
        "HasIdCondition": "has_id",
    }.items()
}
DISTANCE: Final = {
    pb.Distance.Cosine: edge.Distance.Cosine,
    pb.Distance.Dot: edge.Distance.Dot,
    pb.Distance.Euclid: edge.Distance.Euclid,
}
#: Size of a graph's vectors: practically unlimited. Edge's own limit grows with the number of processors; on two,
#: 150,000 x 1,024 became two graphs, which found 0.93 to 0.97 of the nearest ten, 180,000 0.88 to 0.90. One graph of
#: 300,000 found 0.98.
GRAPH_KB: Final = 10**9
FULL_SCAN_KB: Final = 10_000  # Qdrant's default: a smaller filtered set is scanned instead of searched by the graph


def check(message: Message) -> None:
    """Raises: `Refused` (UNIMPLEMENTED), naming the first field that is set and not implemented."""
    allowed = ALLOWED.get(message.DESCRIPTOR.name)
    if allowed is None:
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{message.DESCRIPTOR.name} is not implemented")
    for field, value in message.ListFields():
        if field.name not in allowed:
            raise Refused(
                grpc.StatusCode.UNIMPLEMENTED, f"{message.DESCRIPTOR.name}.{field.name} is not implemented here"
            )
        inner = field.message_type
        if inner is None:
            continue
        if inner.GetOptions().map_entry:
            if inner.fields_by_name["value"].message_type.name != "Value":
                for entry in value.values():
                    check(entry)
        elif field.is_repeated:
            for item in value:
                check(item)
        else:
            check(value)


def config_of(request: pb.CreateCollection, segments: int = 1, *, wal: bool | None = None) -> edge.EdgeConfig:
    """Edge's configuration of a shard, with one search thread, as Edge holds the GIL in a search.

    The indexing threshold is 1 kB, so that an optimiser links everything: `services.vectors.optimize` decides when
    one runs. A graph may have any size. `wal` (Edge's log) is fixed when a shard is created; None keeps it.
    """
    layout = layout_of(request)
    vectors = request.vectors_config.params_map.map
    if not layout.sizes:
        raise wrong("a collection needs named vectors, and one besides codes")
    return edge.EdgeConfig(
        vectors={name: _vector_params(vectors[name]) for name in layout.sizes},
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=segments, max_segment_size=GRAPH_KB, indexing_threshold=1
        ),
        max_search_threads=1,
        payload_memory=edge.Memory.Cached,
        wal_enabled=wal,
    )


class Layout(NamedTuple):
    """The named vectors of a collection: sizes of those in Edge, and bits of the codes, which are in our tables."""

    sizes: dict[str, int]
    bits: dict[str, int]

    def to_text(self) -> str:
        return json.dumps(self)

    @classmethod
    def from_text(cls, text: str) -> "Layout":
        return cls(*json.loads(text))


def layout_of(request: pb.CreateCollection) -> Layout:
    vectors = request.vectors_config.params_map.map
    bits = {name: int(params.size) for name, params in vectors.items() if _holds_codes(params)}
    return Layout({name: int(params.size) for name, params in vectors.items() if name not in bits}, bits)


def _holds_codes(params: pb.VectorParams) -> bool:
    """Whether the vector is a code, that is, has binary quantisation.

    Raises: `Refused` for other vectors with binary quantisation, whose scores would silently be those of their signs.
    """
    if not params.quantization_config.HasField("binary"):
        if params.datatype not in {pb.Datatype.Default, pb.Datatype.Float32}:
            raise wrong("the datatype of a vector must be float32")
        return False
    graph = params.hnsw_config
    if params.distance != pb.Distance.Dot or not graph.HasField("m") or graph.m or params.size % 8 or not params.size:
        raise wrong("binary quantisation is for codes only: a multiple of 8 bits with Dot, without a graph")
    return True


def _vector_params(params: pb.VectorParams) -> edge.EdgeVectorParams:
    if params.distance not in DISTANCE or not params.size:
        raise wrong("a vector needs a size and one of the distances Cosine, Dot, Euclid")
    graph = params.hnsw_config
    linked = edge.HnswIndexConfig(
        m=graph.m if graph.HasField("m") else 16,
        ef_construct=graph.ef_construct if graph.HasField("ef_construct") else 100,
        full_scan_threshold=FULL_SCAN_KB,
    )
    quantized = None
    if params.HasField("quantization_config"):
        scalar = params.quantization_config.scalar
        if scalar.type != pb.QuantizationType.Int8:
            raise wrong("scalar quantization must be Int8")
        memory = edge.Memory.Pinned if scalar.always_ram else edge.Memory.Cached
        quantile = scalar.quantile if scalar.HasField("quantile") else None
        quantized = edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, quantile=quantile, memory=memory)
    return edge.EdgeVectorParams(
        size=params.size, distance=DISTANCE[params.distance], hnsw_config=linked, quantization_config=quantized
    )


def field_schema(request: pb.CreateFieldIndexCollection) -> Any:  # noqa: ANN401 - Edge's union has no name
    params = request.field_index_params
    match request.field_type, params.WhichOneof("index_params"):
        case pb.FieldType.FieldTypeKeyword, "keyword_index_params" | None:
            keyword = params.keyword_index_params
            return edge.KeywordIndexParams(enable_hnsw=_optional(keyword, "enable_hnsw"))
        case pb.FieldType.FieldTypeInteger, "integer_index_params" | None:
            integer = params.integer_index_params
            return edge.IntegerIndexParams(
                lookup=_optional(integer, "lookup"),
                range=_optional(integer, "range"),
                enable_hnsw=_optional(integer, "enable_hnsw"),
            )
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "field_type must be keyword or integer, with params of its kind")


def _optional(message: Message, field: str) -> Any:  # noqa: ANN401 - the field's own type
    return getattr(message, field) if message.HasField(field) else None


def filter_of(message: pb.Filter) -> edge.Filter:
    return edge.Filter(
        must=[_condition(item) for item in message.must] or None,
        should=[_condition(item) for item in message.should] or None,
        must_not=[_condition(item) for item in message.must_not] or None,
    )


def _condition(message: pb.Condition) -> Any:  # noqa: ANN401 - Edge's union has no name
    match message.WhichOneof("condition_one_of"):
        case "field":
            return _field_condition(message.field)
        case "has_id":
            return edge.HasIdCondition(set(ids_of(message.has_id.has_id)))
        case "filter":
            return filter_of(message.filter)
    raise wrong("a condition is empty")


def _field_condition(message: pb.FieldCondition) -> edge.FieldCondition:
    if message.HasField("range") == message.HasField("match"):
        raise wrong("a field condition must be a match or a range")
    if message.HasField("range"):
        bounds = {name: _optional(message.range, name) for name in ("lt", "gt", "gte", "lte")}
        return edge.FieldCondition(key=message.key, range=edge.RangeFloat(**bounds))
    value: edge.MatchValue | edge.MatchAny
    match message.match.WhichOneof("match_value"):
        case "keyword" | "integer" as kind:
            value = edge.MatchValue(getattr(message.match, kind))
        case "keywords":
            value = edge.MatchAny(any=list(message.match.keywords.strings))
        case "integers":
            value = edge.MatchAny(any=list(message.match.integers.integers))
        case _:
            raise wrong("a match is empty")
    return edge.FieldCondition(key=message.key, match=value)


def vector_of(message: pb.DenseVector, size: int) -> "memoryview[float]":
    """The vector in the form that Edge reads fastest (a memory view: 18 µs for 1,024 floats, an array 64 to 169).

    Raises: `Refused` for another dimension, and for NaN and infinity, which Edge would accept.
    """
    return memoryview(_floats(message, size))  # type: ignore[arg-type]  # an array is a buffer


def _floats(message: pb.DenseVector, size: int) -> NDArray[np.float32]:
    if len(message.data) != size:
        raise wrong(f"a vector has {len(message.data)} dimensions, the collection {size}")
    # a packed repeated float is the array's own bytes, after one tag and the length
    values = np.frombuffer(message.SerializeToString()[-4 * size :], dtype="<f4")
    if not np.isfinite(values).all():
        raise wrong("a vector holds NaN or infinity")
    return values


def point_of(message: pb.PointStruct, layout: Layout) -> edge.Point:
    vectors: dict[str, Any] = {}  # Edge's stubs say list
    payload = {name: _value(value) for name, value in message.payload.items()}
    if any(codes.hidden(name) for name in payload):
        raise wrong("payload names beginning with `_bits_` are reserved")
    for name, vector in message.vectors.vectors.vectors.items():
        if name in layout.bits:
            payload[codes.key_of(name)] = codes.to_text(_floats(vector.dense, layout.bits[name]))
        elif name in layout.sizes:
            vectors[name] = vector_of(vector.dense, layout.sizes[name])
        else:
            raise wrong("a point has a vector whose name is not in the collection")
    if len(message.vectors.vectors.vectors) != len(layout.sizes) + len(layout.bits):
        raise wrong("a point has no vector")
    return edge.Point(id=id_of(message.id), vector=vectors, payload=payload)


def id_of(message: pb.PointId) -> str:
    """The id as Edge spells it. Raises: `Refused` unless it is a UUID."""
    return str(codes.id_of(message))


def ids_of(messages: Iterable[pb.PointId]) -> list[Any]:
    return [id_of(message) for message in messages]


def _value(message: pb.Value) -> int | str:
    match message.WhichOneof("kind"):
        case "string_value":
            return str(message.string_value)
        case "integer_value":
            return int(message.integer_value)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "a payload value must be a string or a whole number")


def query_of(message: pb.QueryPoints, layout: Layout) -> edge.QueryRequest:
    _check_query(message, layout.sizes)
    if message.HasField("score_threshold"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "QueryPoints.score_threshold is for codes only")
    vector: Any = vector_of(message.query.nearest.dense, layout.sizes[message.using])
    return edge.QueryRequest(
        limit=message.limit,
        query=edge.Query.Nearest(vector, using=message.using),
        filter=_filter(message.filter.SerializeToString()) if message.HasField("filter") else None,
        params=_search_params(message.params.SerializeToString()),
        with_payload=False,  # the reply adds it
        with_vector=False,
    )


def nearest_codes(message: pb.QueryPoints, layout: Layout, table: codes.CodeTable) -> list[codes.Found]:
    """The hits of a query by code; exact, whatever its params say."""
    _check_query(message, layout.bits)
    code = codes.from_text(codes.to_text(_floats(message.query.nearest.dense, table.bits)))
    radius = None
    if message.HasField("score_threshold"):  # strictly above, as on a server
        radius = math.ceil((table.bits - message.score_threshold) / 2) - 1
        if radius < 0:
            return []
    wanted = message.filter if message.HasField("filter") else None
    return table.top(code, message.limit, radius, wanted)


def _check_query(message: pb.QueryPoints, named: Mapping[str, int]) -> None:
    if message.using not in named:
        raise wrong("`using` names no vector of the collection")
    if not message.HasField("query") or not message.query.nearest.HasField("dense"):
        raise wrong("a query needs a nearest dense vector")
    if not message.limit:
        raise wrong("a query needs a limit")
    if payload_of(message.with_payload) is False:
        raise Refused(
            grpc.StatusCode.UNIMPLEMENTED, "QueryPoints.with_payload must select everything, or fields by name"
        )


@lru_cache(maxsize=64)  # the queries of a study have equal filters and params
def _filter(raw: bytes) -> edge.Filter:
    return filter_of(pb.Filter.FromString(raw))


@lru_cache(maxsize=64)
def _search_params(raw: bytes) -> edge.SearchParams:
    message = pb.SearchParams.FromString(raw)
    quantization = None
    if message.HasField("quantization"):
        quantization = edge.QuantizationSearchParams(
            ignore=message.quantization.ignore,
            rescore=_optional(message.quantization, "rescore"),
            oversampling=_optional(message.quantization, "oversampling"),
        )
    return edge.SearchParams(
        hnsw_ef=message.hnsw_ef or None,
        exact=message.exact,
        quantization=quantization,
        indexed_only=message.indexed_only,
    )


def payload_of(message: pb.WithPayloadSelector) -> bool | tuple[str, ...]:
    if message.WhichOneof("selector_options") == "include":
        return tuple(message.include.fields)
    return bool(message.enable)


def fill_payload(target: Any, payload: Mapping[str, int | str] | None) -> None:  # noqa: ANN401 - a protobuf map
    for key, value in (payload or {}).items():
        if codes.hidden(key):
            continue
        if isinstance(value, str):
            target[key].string_value = value
        else:
            target[key].integer_value = value


def stored(record: pb.RetrievedPoint) -> pb.PointStruct:
    """The retrieved point in the form of an upsert."""
    point = pb.PointStruct(id=record.id, payload=record.payload)
    for name, vector in record.vectors.vectors.vectors.items():
        point.vectors.vectors.vectors[name].dense.CopyFrom(vector.dense)
    return point


def retrieved(record: Any, layout: Layout) -> pb.RetrievedPoint:  # noqa: ANN401 - Edge's Record
    row = pb.RetrievedPoint(id=pb.PointId(uuid=str(record.id)))
    fill_payload(row.payload, record.payload)
    for name, vector in (record.vector or {}).items():
        row.vectors.vectors.vectors[name].dense.data.extend(vector)
    if record.vector:
        for name, bits in layout.bits.items():
            code = codes.from_text(record.payload[codes.key_of(name)])
            row.vectors.vectors.vectors[name].dense.data.extend(signs(code, bits).tolist())
    return row
