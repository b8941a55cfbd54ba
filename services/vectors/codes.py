"""Hash codes in memory beside the shard: a scan of packed bits is exact and six times faster than Edge's.

On the wire a code is in a form that Qdrant can hold: a vector of -1 and +1 under Dot, binary quantisation, no graph.
Here its bits are kept in the point's payload, so that they are as durable as the point, and in this table, which is
filled when the shard is loaded and updated by every write. A code of 256 bits with ten payload fields takes 240
bytes: 32 for bits, 80 for fields, the rest for Python's ids and their rows (131,072 rows, `tracemalloc`).
"""

import base64
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.vectors.refused import wrong
from shared.index import codes
from shared.index.columns import Chosen, Columns, Mask
from shared.index.protobuf import pb
from shared.types import Codes


def id_of(message: pb.PointId) -> uuid.UUID:
    """Raises: `Refused` unless the id is a UUID, in any spelling."""
    try:
        return uuid.UUID(message.uuid)
    except ValueError:
        raise wrong("a point id must be a UUID") from None


class Found(NamedTuple):
    id: int  #: the UUID as an integer
    score: float  #: bits - 2 * distance


class CodeTable:
    """The codes of one named vector, with the payload fields for filters; rows are in no order."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._size = 0
        self._codes: Codes = codes.padded(np.empty((0, bits // 8), np.uint8))
        self._ids: list[int] = []
        self._at: dict[int, int] = {}
        self._columns = Columns()
        self._lock = threading.Lock()

    def put(self, id_: int, code: Codes, payload: Mapping[str, int | str]) -> None:
        with self._lock:
            row = self._at.get(id_)
            if row is None:
                row = self._at[id_] = self._size
                self._ids.append(id_)
                self._size += 1
                if self._size > len(self._codes):
                    self._grow(max(1024, 2 * self._size))
            self._codes[row, : len(code)] = code
            self._columns.put(row, payload)

    def drop(self, ids: Iterable[int]) -> None:
        """Remove the points; the last row moves into the place of each removed row."""
        with self._lock:
            for id_ in ids:
                row = self._at.pop(id_, None)
                if row is None:
                    continue
                self._size -= 1
                last = self._ids.pop()
                if row != self._size:
                    self._ids[row], self._at[last] = last, row
                    self._codes[row] = self._codes[self._size]
                    self._columns.move(self._size, row)

    def top(self, code: Codes, limit: int, radius: int | None, wanted: pb.Filter | None) -> list[Found]:
        """The `limit` nearest codes, ties ordered by id; with `radius`, only those within so many bits."""
        query = codes.padded(code[None])[0]
        with self._lock:
            scan = codes.ball(
                self._codes[: self._size],
                query,
                lambda rows: self._mask(wanted, rows),
                k=limit if radius is None else None,
                radius=radius,
            )
            listed, _ = codes.ordered(scan, self._ids.__getitem__, limit)
        return [Found(number, self.bits - 2 * distance) for number, distance, _ in listed]

    def _grow(self, capacity: int) -> None:
        more = capacity - len(self._codes)
        self._codes = np.concatenate([self._codes, np.zeros((more, self._codes.shape[1]), np.uint8)])
        self._columns.grow(capacity)

    def _mask(self, wanted: pb.Filter | None, rows: codes.Rows | None) -> Mask:
        asked = slice(self._size) if rows is None else rows  # a slice gives views instead of copies of the columns
        return self._fulfil(wanted or pb.Filter(), asked)

    def _fulfil(self, wanted: pb.Filter, rows: Chosen) -> Mask:
        mask = np.ones(self._size if isinstance(rows, slice) else len(rows), bool)
        for condition in wanted.must:
            mask &= self._condition(condition, rows)
        for condition in wanted.must_not:
            mask &= ~self._condition(condition, rows)
        if wanted.should:
            mask &= np.logical_or.reduce([self._condition(condition, rows) for condition in wanted.should])
        return mask

    def _condition(self, condition: pb.Condition, rows: Chosen) -> Mask:
        match condition.WhichOneof("condition_one_of"):
            case "field":
                return self._field(condition.field, rows)
            case "has_id":
                chosen = (self._at.get(id_of(id_).int) for id_ in condition.has_id.has_id)
                mask = np.zeros(self._size, bool)
                mask[[row for row in chosen if row is not None]] = True
                return mask[rows]
            case "filter":
                return self._fulfil(condition.filter, rows)
        raise wrong("a condition is empty")

    def _field(self, field: pb.FieldCondition, rows: Chosen) -> Mask:
        if field.HasField("range"):
            bounds = {bound.name: value for bound, value in field.range.ListFields()}
            return self._columns.within(field.key, bounds, rows)
        return self._columns.equals_any(field.key, _values(field.match), rows)


def _values(match: pb.Match) -> Sequence[int | str]:
    match match.WhichOneof("match_value"):
        case "keyword" | "integer" as kind:
            return [getattr(match, kind)]
        case "keywords":
            return list(match.keywords.strings)
        case "integers":
            return list(match.integers.integers)
    raise wrong("a match is empty")


def key_of(name: str) -> str:
    """The payload field that holds this vector's bits; clients may not use such names."""
    return f"_bits_{name}"


def hidden(key: str) -> bool:
    return key.startswith("_bits_")


def to_text(vector: Sequence[float] | NDArray[np.float32]) -> str:
    """The bits of a vector of -1 and +1, in base64. Raises: `Refused` for other values: distances would be wrong."""
    values = np.asarray(vector)
    if not np.isin(values, (-1, 1)).all():
        raise wrong("a code must be a vector of -1 and +1")
    return base64.b64encode(np.packbits(values > 0).tobytes()).decode("ascii")


def from_text(text: str) -> Codes:
    return np.frombuffer(base64.b64decode(text), np.uint8)
