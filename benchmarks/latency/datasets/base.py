"""What a kind of data gives: rows, queries that are not among them, and what it says about itself."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.engines.base import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    rows: Array  #: (n, dim) float32, brought to unit length by who asked; or (n, bits / 8) uint8
    queries: Array  #: (q, dim or bits / 8), none of them a row (a code may be a copy)
    about: dict[str, Any]  #: where it is from, for the report
    #: where they are known: the columns of `engines.base.FIELDS` by row, and the patient of each query
    columns: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    patients: NDArray[np.int64] | None = None


def held_out(rows: Array, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the rows that stay and of those that become queries: at most a fifth, drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(count, len(rows) // 5)
    return np.sort(order[count:]), order[:count]
