"""What an engine is: it is built into a folder once, opened from it by each process that measures it, and asked."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: Attributes of the rows, one whole number each: patient, modality, hundredth, thousandth.
Columns = Mapping[str, NDArray[np.int64]]
#: What a search is told beside the query: ef, nprobe, oversampling and the like. Empty where there is nothing to turn.
Effort = Mapping[str, float]

FIELDS = ("patient", "modality", "hundredth", "thousandth")


class Clause(NamedTuple):
    """Only rows whose `field` has the value, or (`exclude`) only those where it has not."""

    field: str
    value: int
    exclude: bool = False

    def mask(self, columns: Columns) -> NDArray[np.bool_]:
        found = np.asarray(columns[self.field] == self.value)
        return np.logical_not(found) if self.exclude else found


class Found(NamedTuple):
    ids: NDArray[np.int64]  #: (queries, k) row numbers, nearest first, -1 where there are no more
    engine_ms: float | None = None  #: what the engine says it took itself, of the whole call


class Opened(Protocol):
    """An engine that holds its rows and answers."""

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        """The k nearest of each query.

        Args:
            queries: (q, dim) float32 unit vectors; or (q, bits / 8) uint8 codes, most significant bit first.
            clauses: one for each query, or None.
        """

    def close(self) -> None: ...

    def pids(self) -> list[int]:
        """The processes whose memory it is."""


def never(rows: int, dim: int) -> bool:
    """What an engine that always searches as it is named says of such data."""
    del rows, dim
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an index is built (configured, filled, linked; into a folder) and opened; and what may be asked of it."""

    name: str
    build: Callable[[Path, Array, Columns], None]
    open: Callable[[Path, Columns], Opened]
    kind: Literal["vectors", "codes"] = "vectors"
    exact: bool = False  #: its answers are held against the oracle, and a difference ends the run
    limit: bool = False  #: no engine but the machine's own limit; it finds nothing
    filters: bool = True
    efforts: tuple[Effort, ...] = ({},)  #: by rising effort
    settings: Mapping[str, float | str] = field(default_factory=dict)  #: what it is built with, for the report
    needs: tuple[str, ...] = ()  #: modules
    available: Callable[[], str] = lambda: ""  #: why it cannot run here; empty: it can
    drop: Callable[[Path], None] = lambda _folder: None  #: what stands elsewhere than in the folder is gone
    scans: Callable[[int, int], bool] = never  #: so few rows that it compares them all instead
    #: the memory of its server without rows, (anonymous, PSS) MiB; None: it lives in the process that asks
    bare: Callable[[], tuple[float, float]] | None = None
    aside: bool = False  #: measured only where a pattern says more than `*`
    most: int = 2**62  #: rows: beyond, its build takes longer than any figure is worth

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else self.available()


def efforts(name: str, *values: float, **more: float) -> tuple[Effort, ...]:
    """The same knob at rising values, the others fixed."""
    return tuple({name: value, **more} for value in values)


class InProcess:
    """What lives in the process that asks."""

    def close(self) -> None:
        pass

    def pids(self) -> list[int]:
        return [os.getpid()]
