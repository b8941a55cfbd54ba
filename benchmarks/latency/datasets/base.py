"""The result of a kind of data: rows, queries that are not among the rows, and a description."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.engines.base import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    rows: Array  #: (n, dim) float32, normalised by the caller; or (n, bits / 8) uint8
    queries: Array  #: (q, dim or bits / 8), none of them a row (but a code may equal one)
    about: dict[str, Any]  #: source of the data, for the report
    #: if known: the columns of `engines.base.FIELDS` by row, and the patient of each query
    columns: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    patients: NDArray[np.int64] | None = None


def held_out(rows: Array, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers kept, and row numbers held out as queries: at most a fifth, drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(count, len(rows) // 5)
    return np.sort(order[count:]), order[:count]
