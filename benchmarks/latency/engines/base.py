"""The interface of an engine: built once into a folder, opened from it by each measuring process, and searched."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: Attributes of the rows, each an integer: patient, modality, hundredth, thousandth.
Columns = Mapping[str, NDArray[np.int64]]
#: Search parameters: ef, nprobe, oversampling and so on. Empty if the engine has none.
Effort = Mapping[str, float]

FIELDS = ("patient", "modality", "hundredth", "thousandth")


class Clause(NamedTuple):
    """Keeps rows whose `field` has the value, or, with `exclude`, rows whose field has another value."""

    field: str
    value: int
    exclude: bool = False

    def mask(self, columns: Columns) -> NDArray[np.bool_]:
        found = np.asarray(columns[self.field] == self.value)
        return np.logical_not(found) if self.exclude else found


class Found(NamedTuple):
    ids: NDArray[np.int64]  #: (queries, k) row numbers, nearest first, padded with -1
    engine_ms: float | None = None  #: time of the whole call as reported by the engine


class Opened(Protocol):
    """An opened engine that can be searched."""

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        """The k nearest rows of each query.

        Args:
            queries: (q, dim) float32 unit vectors; or (q, bits / 8) uint8 codes, most significant bit first.
            clauses: one per query, or None.
        """

    def close(self) -> None: ...

    def pids(self) -> list[int]:
        """The processes that hold the engine's memory."""


def never(rows: int, dim: int) -> bool:
    """`Engine.scans` of an engine that never falls back to a scan."""
    del rows, dim
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to build an index in a folder and open it, and how it may be searched."""

    name: str
    build: Callable[[Path, Array, Columns], None]
    open: Callable[[Path, Columns], Opened]
    kind: Literal["vectors", "codes"] = "vectors"
    exact: bool = False  #: its answers are compared with the oracle; a difference excludes its figures from the report
    limit: bool = False  #: measures the machine's own limit and returns no rows
    filters: bool = True
    efforts: tuple[Effort, ...] = ({},)  #: in ascending order
    settings: Mapping[str, float | str] = field(default_factory=dict)  #: build parameters, for the report
    needs: tuple[str, ...] = ()  #: required modules
    available: Callable[[], str] = lambda: ""  #: the reason why it cannot run here, or empty
    drop: Callable[[Path], None] = lambda _folder: None  #: deletes data kept outside the folder
    scans: Callable[[int, int], bool] = never  #: whether it scans instead, given (rows, dimensions)
    #: memory of its server without rows, (anonymous, PSS) MiB; None: it runs in the measuring process
    bare: Callable[[], tuple[float, float]] | None = None
    aside: bool = False  #: skipped by the pattern `*`
    most: int = 2**62  #: maximum of rows: beyond, the build takes too long

    def missing(self) -> str:
        """The reason why it cannot run here; empty if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else self.available()


def efforts(name: str, *values: float, **more: float) -> tuple[Effort, ...]:
    """One parameter at ascending values, the others fixed."""
    return tuple({name: value, **more} for value in values)


class InProcess:
    """Base of engines that run in the measuring process."""

    def close(self) -> None:
        pass

    def pids(self) -> list[int]:
        return [os.getpid()]
