"""Input checks for all engines: wrong vectors, fields, limits and names are refused before they reach an engine.

Engines differ in what they accept (Qdrant Edge silently takes NaN and zero vectors and leaves very short ones
unnormalised under cosine), so vectors are also brought to unit length here, in float64.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import Invalid
from shared.index.base import PAYLOAD, Between, CodeQuery, Filter, Match, Metric, Payload, Point, Query, Recall, Spec

NAME = re.compile(r"[a-z0-9-]{1,64}")
MAX_DIM = 65_536
MAX_BITS = 4096
MAX_LIMIT = 20_000  # twice the largest Hamming ball that is returned whole
EXACT_INT = 2**53  # bounds of ranges are sent as doubles: larger integers would be rounded
LARGE = 1e18  # a longer vector overflows float32 scores


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Invalid("a collection name has 1 to 64 characters: a-z, 0-9 and -")


def check_spec(spec: Spec) -> None:
    if not 1 <= spec.dim <= MAX_DIM:
        raise Invalid(f"dim must be 1 to {MAX_DIM}, not {spec.dim}")
    if spec.bits % 8 or not 0 <= spec.bits <= MAX_BITS:
        raise Invalid(f"bits must be a multiple of 8 up to {MAX_BITS}, or 0")
    if not 2 <= spec.m <= 256 or not 4 <= spec.ef_construct <= 10_000:
        raise Invalid("m must be 2 to 256 and ef_construct 4 to 10000")


def prepare(spec: Spec, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Stack vectors into (n, dim) float32, of unit length under cosine.

    Raises: `Invalid` for another shape, a value that is not finite, or zero length under cosine.
    """
    for vector in vectors:
        if vector.shape != (spec.dim,):
            raise Invalid(f"a vector has shape {vector.shape}, the collection holds ({spec.dim},)")
    stacked = np.array(vectors, dtype=np.float32).reshape(-1, spec.dim)
    if not np.isfinite(stacked).all():
        raise Invalid("a vector holds NaN or infinity")
    length = np.sqrt(np.einsum("ij,ij->i", stacked, stacked, dtype=np.float64))
    if spec.metric is Metric.COSINE:
        if not length.all():
            raise Invalid("a zero vector has no direction, so no cosine")
        unit: NDArray[np.float32] = (stacked / length[:, None]).astype(np.float32)
        return unit
    if (length > LARGE).any():
        raise Invalid("a vector is so long that its scores overflow")
    return stacked


def check_codes(spec: Spec, points: Sequence[Point]) -> None:
    """Raises: `Invalid` for a code that is missing, of another length, or there although the spec has no bits."""
    for point in points:
        if (point.code is None) != (spec.bits == 0):
            raise Invalid("every point needs a code if and only if its collection has codes")
        if point.code is not None:
            check_code(spec, point.code)


def check_code(spec: Spec, code: NDArray[np.uint8]) -> None:
    if code.dtype != np.uint8 or code.shape != (spec.bits // 8,):
        raise Invalid(f"a code has {8 * code.size} bits, the collection {spec.bits}")


def check_code_query(spec: Spec, query: CodeQuery) -> None:
    if not spec.bits:
        raise Invalid("this collection has no codes")
    check_code(spec, query.code)
    if (query.k is None) == (query.radius is None):
        raise Invalid("a search by codes needs either k or a radius")
    if query.k is not None and not 1 <= query.k <= query.most:
        raise Invalid(f"k must be 1 to {query.most}")
    if query.radius is not None and not 0 <= query.radius <= spec.bits:
        raise Invalid(f"radius must be 0 to {spec.bits} bits")
    if not 1 <= query.most < MAX_LIMIT:
        raise Invalid(f"most must be 1 to {MAX_LIMIT - 1}")
    for name in query.fields or ():
        _kind(name)
    check_filter(query.filter)


def newest(points: Sequence[Point]) -> list[Point]:
    """Each id once, with its highest revision; of equal revisions the last. Payloads are checked."""
    best: dict[object, Point] = {}
    for point in points:
        check_payload(point.payload)
        held = best.get(point.id)
        if held is None or revision(point) >= revision(held):
            best[point.id] = point
    return list(best.values())


def revision(point: Point) -> int:
    return int(point.payload["revision"])


def check_payload(payload: Payload) -> None:
    if "revision" not in payload:
        raise Invalid("a payload needs a revision")
    for name, value in payload.items():
        check_value(name, value)


def check_value(name: str, value: int | str) -> None:
    """Refuse unknown fields and values of another kind: an engine would store them, and never match them."""
    kind = _kind(name)
    if kind == "code":
        if not isinstance(value, str):
            raise Invalid(f"{name} must be a string")
    elif isinstance(value, bool) or not isinstance(value, int) or not -(2**63) < value < 2**63:
        raise Invalid(f"{name} must be a 64-bit integer")
    elif kind == "number" and abs(value) > EXACT_INT:
        raise Invalid(f"{name} must lie within +-2**53")


def check_query(query: Query) -> None:
    if not 1 <= query.limit <= MAX_LIMIT:
        raise Invalid(f"limit must be 1 to {MAX_LIMIT}")
    if query.group_limit < 1:
        raise Invalid("group_limit must be at least 1")
    for name in (*(query.fields or ()), *(() if query.group_by is None else (query.group_by,))):
        _kind(name)
    if isinstance(query.accuracy, Recall) and not 0 < query.accuracy.target <= 1:
        raise Invalid("a recall must be above 0 and at most 1")
    check_filter(query.filter)


def check_filter(filter_: Filter) -> None:
    for condition in (*filter_.must, *filter_.must_not):
        if isinstance(condition, Match):
            for value in condition.values:
                check_value(condition.field, value)
            _kind(condition.field)
        else:
            _check_between(condition)


def _check_between(condition: Between) -> None:
    if _kind(condition.field) != "number":
        raise Invalid(f"{condition.field} cannot be filtered by range")
    for bound in (condition.low, condition.high):
        if bound is not None:
            check_value(condition.field, bound)


def _kind(name: str) -> str:
    if name not in PAYLOAD:
        raise Invalid(f"unknown payload field {name[:40]!r}")
    return PAYLOAD[name]
