"""Payload fields of rows in memory, one integer column for each field, so that a filter is a few masks."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.index.base import Payload

MISSING: Final = np.iinfo(np.int64).min  # refused as a payload value (`checks`)
COMPARE: Final = {"gt": np.greater, "gte": np.greater_equal, "lt": np.less, "lte": np.less_equal}

#: The rows that a mask covers: a slice, which does not copy the column, or row numbers.
Chosen = slice | NDArray[np.int64]
Mask = NDArray[np.bool_]


class Columns:
    """A string is stored as a number, by order of first appearance. The owner sets the capacity with `grow`."""

    def __init__(self) -> None:
        self._capacity = 0
        self._columns: dict[str, NDArray[np.int64]] = {}
        self._words: dict[str, int] = {}

    def grow(self, capacity: int) -> None:
        more = np.full(capacity - self._capacity, MISSING)
        self._columns = {field: np.concatenate([column, more]) for field, column in self._columns.items()}
        self._capacity = capacity

    def put(self, row: int, payload: Payload) -> None:
        """Give the row these fields and no others."""
        for field in payload.keys() - self._columns.keys():
            self._columns[field] = np.full(self._capacity, MISSING)
        for field, column in self._columns.items():
            column[row] = self._number(payload[field]) if field in payload else MISSING

    def move(self, row: int, to: int) -> None:
        for column in self._columns.values():
            column[to] = column[row]

    def equals_any(self, field: str, values: Iterable[int | str], rows: Chosen) -> Mask:
        numbers = [self._words.get(value) if isinstance(value, str) else value for value in values]
        known = [number for number in numbers if number is not None]
        return np.isin(self._of(field, rows), np.array(known, np.int64))

    def within(self, field: str, bounds: Mapping[str, float | None], rows: Chosen) -> Mask:
        """Rows within all bounds, which are named as in `COMPARE`; None is no bound. A missing field never matches."""
        column = self._of(field, rows)
        mask: Mask = column != MISSING
        for name, bound in bounds.items():
            if bound is not None:
                mask &= COMPARE[name](column, bound)
        return mask

    def _of(self, field: str, rows: Chosen) -> NDArray[np.int64]:
        column = self._columns.get(field)
        return np.full(self._capacity, MISSING)[rows] if column is None else column[rows]

    def _number(self, value: int | str) -> int:
        return self._words.setdefault(value, len(self._words)) if isinstance(value, str) else value
