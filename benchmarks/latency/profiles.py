"""Profiles of a run: on which data, how often, how long."""

from dataclasses import dataclass
from typing import Final

from benchmarks.latency.data import FILTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The measurements of one engine in one round."""

    queries: int  #: maximum for each latency
    seconds: float  #: maximum for each latency, once `measure.LEAST` questions are asked
    checked: int = 50  #: queries of the parity check, under each filter
    ks: tuple[int, ...] = ()  #: besides ten
    filters: tuple[str, ...] = FILTERS
    clients: tuple[int, ...] = ()
    common_per_s: float = 20.0  #: rate of the open loop common to all engines: searches of some hundred readers


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A data set and the patterns of the engines measured on it."""

    data: str
    engines: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    sets: tuple[Set, ...]
    rounds: int
    queries: int  #: in each data set
    plan: Plan
    timeout_s: float = 3600.0  #: of one build, or one round of one engine; then that row is given up
    again_s: float = 30.0  #: a faster build is done twice, so that its time has a spread


EXACT: Final = ("memory-scan", "numpy", "faiss-flat-ip", "faiss-flat-l2", "edge-exact", "similis-exact")
SCANS: Final = (
    "memory-scan-codes",
    "numpy-codes",
    "faiss-binary",
    "faiss-binary-multihash",
    "edge-codes",
    "similis-table",
)

PROFILES: Final = {
    "smoke": Profile(  # one engine of each module and kind of quantised copy
        sets=(
            Set(
                data="clustered:128:2006",
                engines=(
                    *("memory-scan", "numpy", "faiss-flat-ip", "faiss-hnsw", "faiss-ivf"),
                    *("edge-exact", "edge-int8", "similis-exact", "hnswlib", "usearch"),
                ),
            ),
            Set(data="codes:64:2006", engines=(*SCANS, "similis-codes")),
        ),
        rounds=1,
        queries=100,
        plan=Plan(queries=40, seconds=0.1, checked=20, clients=(2,), common_per_s=200),  # 20 take under 1 s
        again_s=0,
    ),
    "laptop": Profile(
        sets=(
            Set(data="clustered:1024:10000"),
            Set(data="clustered:1024:100000"),
            Set(data="codes:256:1000000", engines=SCANS),
            Set(data="codes:64:1000000", engines=SCANS),
            Set(data="clustered:1024:2006"),
            Set(data="clustered:3072:2006", engines=EXACT),
            Set(data="clustered:3072:10000", engines=EXACT),
            Set(data="codes:256:100000"),
            Set(data="codes:256:10000"),
        ),
        rounds=3,
        queries=350,  # about a thousand per setting over three rounds, if the engine answers them in time
        plan=Plan(queries=350, seconds=0.3, checked=30, ks=(1, 100), clients=(4,)),
        timeout_s=600,
    ),
    "full": Profile(
        sets=(
            *(Set(data=f"clustered:{dim}:{rows}") for dim in (1024, 3072) for rows in (2006, 10_000, 100_000)),
            Set(data="clustered:1024:1000000"),
            *(Set(data=f"codes:{bits}:{rows}") for bits in (64, 256) for rows in (2006, 10_000, 100_000, 1_000_000)),
        ),
        rounds=5,
        queries=1000,
        plan=Plan(queries=1000, seconds=5, checked=200, ks=(1, 50, 100), clients=(1, 2, 4, 8)),
    ),
}
