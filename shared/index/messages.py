"""Qdrant's protobuf messages, built and read directly.

A search bypasses the client's pydantic models: a packed `repeated float` is the array's own bytes, so a vector costs a
copy instead of a thousand Python floats, and payloads are decoded when they are read.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import Conflict
from shared.index.base import (
    PAYLOAD,
    Accuracy,
    Between,
    CodeQuery,
    Condition,
    Exact,
    Filter,
    Hit,
    Match,
    Metric,
    Near,
    Payload,
    Point,
    Spec,
)
from shared.index.checks import EXACT_INT, revision
from shared.index.codes import signs
from shared.index.effort import effort
from shared.index.protobuf import pb

VECTOR: Final = "dense"
CODE: Final = "code"
SPEC_KEY: Final = "similis"  # the collection's metadata entry that holds its spec
#: Unindexed points from which on a graph pays off. One search as served, exact and by the int8 graph, takes 1.4 and
#: 1.2 ms in 2,006 x 1,024, 2.7 and 1.3 ms in 10,000 (`benchmarks/results/latency`).
INDEX_FROM: Final = 2000

DISTANCE: Final[Mapping[Metric, Any]] = {
    Metric.COSINE: pb.Distance.Cosine,
    Metric.DOT: pb.Distance.Dot,
    Metric.L2: pb.Distance.Euclid,
}
STRONG: Final = pb.WriteOrdering(type=pb.WriteOrderingType.Strong)
#: int8 selects, float32 ranks. Requested explicitly: without it recall did not exceed 0.977 at any ef.
RESCORE: Final = pb.QuantizationSearchParams(rescore=True, oversampling=1.5)
#: For targets up to 0.9: such a caller asks for many more hits than it needs, so its limit is the oversampling.
RESCORE_ONLY: Final = pb.QuantizationSearchParams(rescore=True, oversampling=1.0)
#: (recall@10 to reach, ef). 100,000 clustered vectors reached 0.980 with 32, 0.999 with 48
#: (`benchmarks/results/latency`); the table has more, because a hospital's own vectors may be harder. The first target
#: is for callers that ask for forty hits to show ten: of those ten, ef 40 found 0.9975, 48 found 0.9996, 56 all.
EF: Final = ((0.9, 48), (0.97, 80), (0.985, 128), (0.995, 256), (1.0, 512))
FILTERED: Final = 4  #: factor on ef where a filter leaves only a part of the points


def create(name: str, spec: Spec) -> pb.CreateCollection:
    params = pb.VectorParams(size=spec.dim, distance=DISTANCE[spec.metric])
    graph = spec.scale != "exact"
    params.hnsw_config.CopyFrom(pb.HnswConfigDiff(m=spec.m if graph else 0, ef_construct=spec.ef_construct))
    if spec.scale == "hnsw-int8":
        scalar = pb.ScalarQuantization(type=pb.QuantizationType.Int8, quantile=0.99, always_ram=True)
        params.quantization_config.CopyFrom(pb.QuantizationConfig(scalar=scalar))
    request = pb.CreateCollection(collection_name=name, optimizers_config=optimizers(spec))
    request.vectors_config.params_map.map[VECTOR].CopyFrom(params)
    if spec.bits:
        request.vectors_config.params_map.map[CODE].CopyFrom(code_params(spec.bits))
    request.metadata[SPEC_KEY].string_value = json.dumps(asdict(spec), sort_keys=True)
    return request


def code_params(bits: int) -> pb.VectorParams:
    """Codes as -1 and +1: under Dot with binary quantisation and no graph a score is exactly bits - 2 * distance.

    Similar layouts fail: uint8 with binary quantisation gives all codes one score, and TurboQuant rotates the vectors.
    """
    params = pb.VectorParams(size=bits, distance=pb.Distance.Dot, datatype=pb.Datatype.Float16)
    params.hnsw_config.CopyFrom(pb.HnswConfigDiff(m=0))
    params.quantization_config.CopyFrom(pb.QuantizationConfig(binary=pb.BinaryQuantization(always_ram=True)))
    return params


def near(name: str, spec: Spec, query: CodeQuery, limit: int, radius: int | None) -> pb.QueryPoints:
    """A query for the `limit` nearest codes, of those within `radius`."""
    message = pb.QueryPoints(
        collection_name=name,
        using=CODE,
        filter=filter_of(query.filter),
        params=pb.SearchParams(quantization=pb.QuantizationSearchParams(rescore=False)),  # scores are exact as they are
        limit=limit,
        with_payload=selector(query.fields, None),
    )
    pack(message.query.nearest.dense, signs(query.code, spec.bits))
    if radius is not None:
        message.score_threshold = spec.bits - 2 * radius - 1  # exclusive: bits - 2r would lose distance r itself
    return message


def optimizers(spec: Spec) -> pb.OptimizersConfigDiff:
    kilobytes = max(1, INDEX_FROM * spec.dim * 4 // 1024)
    return pb.OptimizersConfigDiff(indexing_threshold=kilobytes)


def spec_of(info: pb.CollectionInfo) -> Spec:
    """Raises: `Conflict` when the collection was not made by Similis."""
    text = info.config.metadata[SPEC_KEY].string_value if SPEC_KEY in info.config.metadata else ""
    try:
        fields = json.loads(text)
        return Spec(**{**fields, "metric": Metric(fields["metric"])})
    except (ValueError, TypeError, KeyError) as error:
        raise Conflict("the collection exists, but Similis did not make it") from error


def field_index(name: str, field: str, kind: Literal["id", "code", "number"]) -> pb.CreateFieldIndexCollection:
    """One payload index. Ids, and the revision, get no graph links of their own: no search selects by them alone."""
    linked = kind != "id" and field != "revision"
    params = pb.PayloadIndexParams()
    if kind == "code":
        params.keyword_index_params.CopyFrom(pb.KeywordIndexParams())
        data_type = pb.FieldType.FieldTypeKeyword
    else:
        ranged = kind == "number"
        params.integer_index_params.CopyFrom(pb.IntegerIndexParams(lookup=True, range=ranged, enable_hnsw=linked))
        data_type = pb.FieldType.FieldTypeInteger
    return pb.CreateFieldIndexCollection(
        collection_name=name, wait=True, field_name=field, field_type=data_type, field_index_params=params
    )


def point_id(id_: uuid.UUID) -> pb.PointId:
    return pb.PointId(uuid=str(id_))


@lru_cache(maxsize=200_000)
def parse_id(text: str) -> uuid.UUID:
    """Parse a UUID; cached, because parsing costs more than a look-up."""
    return uuid.UUID(text)


def pack(message: pb.DenseVector, vector: NDArray[np.float32]) -> None:
    """Fill a DenseVector by its own wire format: field 1, packed floats, little endian."""
    data = vector.astype("<f4", copy=False).tobytes()
    message.ParseFromString(b"\x0a" + varint(len(data)) + data)


def unpack(message: pb.VectorOutput) -> NDArray[np.float32]:
    """A stored vector; servers before 1.16 fill the older field."""
    data = message.dense.data if message.HasField("dense") else message.data
    return np.array(data, dtype=np.float32)


def point_of(row: pb.RetrievedPoint) -> Point:
    """A stored point, with its code where it has one."""
    vectors = row.vectors.vectors.vectors
    code = np.packbits(unpack(vectors[CODE]) > 0) if CODE in vectors else None
    return Point(id=parse_id(row.id.uuid), vector=unpack(vectors[VECTOR]), payload=plain(row.payload), code=code)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def upsert(name: str, points: Sequence[Point], vectors: NDArray[np.float32]) -> pb.UpsertPoints:
    """A request to write points and replace stored ones, unless those have a newer revision."""
    request = pb.UpsertPoints(collection_name=name, wait=True, ordering=STRONG, update_filter=not_newer(points))
    for point, vector in zip(points, vectors, strict=True):
        row = request.points.add(id=point_id(point.id))
        pack(row.vectors.vectors.vectors[VECTOR].dense, vector)
        if point.code is not None:
            pack(row.vectors.vectors.vectors[CODE].dense, signs(point.code, 8 * len(point.code)))
        for key, value in point.payload.items():
            if isinstance(value, str):
                row.payload[key].string_value = value
            else:
                row.payload[key].integer_value = value
    return request


def not_newer(points: Sequence[Point]) -> pb.Filter:
    """The condition on which a stored point is replaced: its revision is not above that of the new one."""
    by_revision: dict[int, list[pb.PointId]] = {}
    for point in points:
        by_revision.setdefault(revision(point), []).append(point_id(point.id))
    guards = []
    for number, ids in by_revision.items():
        stale = pb.Condition(field=pb.FieldCondition(key="revision", range=pb.Range(lte=number)))
        if len(by_revision) == 1:
            return pb.Filter(must=[stale])
        named = pb.Condition(has_id=pb.HasIdCondition(has_id=ids))
        guards.append(pb.Condition(filter=pb.Filter(must=[named, stale])))
    return pb.Filter(should=guards)


def filter_of(filter_: Filter) -> pb.Filter | None:
    if not filter_.must and not filter_.must_not:
        return None
    return pb.Filter(
        must=[_condition(condition) for condition in filter_.must],
        must_not=[_condition(condition) for condition in filter_.must_not],
    )


def _condition(condition: Condition) -> pb.Condition:
    if isinstance(condition, Between):
        low = -EXACT_INT if condition.low is None else condition.low
        high = EXACT_INT if condition.high is None else condition.high
        return pb.Condition(field=pb.FieldCondition(key=condition.field, range=pb.Range(gte=low, lte=high)))
    if not condition.values:  # no value can match, so no point does
        return pb.Condition(has_id=pb.HasIdCondition())
    return pb.Condition(field=pb.FieldCondition(key=condition.field, match=_match(condition)))


def _match(condition: Match) -> pb.Match:
    if PAYLOAD[condition.field] == "code":
        return pb.Match(keywords=pb.RepeatedStrings(strings=[str(value) for value in condition.values]))
    return pb.Match(integers=pb.RepeatedIntegers(integers=[int(value) for value in condition.values]))


def params(spec: Spec, accuracy: Accuracy, points: int, *, filtered: bool = False) -> pb.SearchParams:
    """The parameters of a search among this many points. `filtered`: a filter leaves only a part of them.

    That part may lie in one region of the space, as one modality of several does. In a graph of 100,000 an ef of 192
    then found what 32 found without a filter (.97, .98; 64: .93; `benchmarks/results/latency`), so ef is four times as
    large. A small part costs nothing more: the engine scans it.
    """
    if isinstance(accuracy, Exact) or spec.scale == "exact":
        return pb.SearchParams(exact=True)
    wanted = pb.SearchParams(hnsw_ef=effort(EF, accuracy.target, points) * (FILTERED if filtered else 1))
    if spec.scale == "hnsw-int8":
        wanted.quantization.CopyFrom(RESCORE if accuracy.target > EF[0][0] else RESCORE_ONLY)
    return wanted


def selector(fields: tuple[str, ...] | None, group_by: str | None) -> pb.WithPayloadSelector:
    """The payload fields to return: each field costs time on both sides, for dozens of hits."""
    if fields is None:
        return pb.WithPayloadSelector(enable=True)
    wanted = dict.fromkeys(fields if group_by is None else (*fields, group_by))
    return pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=list(wanted)))


class LazyPayload(Mapping[str, int | str]):
    """A received payload, decoded on demand: most hits are looked up by id only."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> int | str:
        if key not in self._values:  # a protobuf map would create the entry
            raise KeyError(key)
        value = self._values[key]
        found: int | str = value.string_value if value.HasField("string_value") else value.integer_value
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


def hits(points: Sequence[pb.ScoredPoint], metric: Metric) -> list[Hit]:
    sign = -1.0 if metric is Metric.L2 else 1.0
    return [Hit(parse_id(point.id.uuid), sign * point.score, LazyPayload(point.payload)) for point in points]


def nears(points: Sequence[pb.ScoredPoint], bits: int) -> list[Near]:
    """The points by distance, then id, however the engine ordered ties."""
    rows = [
        Near(parse_id(point.id.uuid), (bits - round(point.score)) // 2, LazyPayload(point.payload)) for point in points
    ]
    return sorted(rows, key=lambda row: (row.distance, row.id.int))


def plain(payload: Mapping[str, Any]) -> Payload:
    return dict(LazyPayload(payload))
