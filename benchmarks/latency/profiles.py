"""How much is measured: on which data, how often, how long."""

from dataclasses import dataclass
from typing import Final

from benchmarks.latency.data import FILTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The measurements of one engine in one round."""

    queries: int  #: at most, of each latency
    seconds: float  #: at most, of each latency, after a least number of questions
    checked: int = 50  #: queries of the parity check, under each filter
    ks: tuple[int, ...] = ()  #: beside ten
    filters: tuple[str, ...] = FILTERS
    clients: tuple[int, ...] = ()
    common_per_s: float = 20.0  #: the rate at which all engines are asked alike: some hundred readers' searches


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A data set, and the engines that are measured on it."""

    data: str
    engines: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    sets: tuple[Set, ...]
    rounds: int
    queries: int  #: that each data set holds
    plan: Plan
    timeout_s: float = 3600.0  #: of one build, or one round of one engine: beyond, that row is given up


EXACT: Final = ("memory-scan", "numpy", "faiss-flat-ip", "faiss-flat-l2", "edge-exact", "similis-exact")
SCANS: Final = (
    "memory-scan-codes",
    "numpy-codes",
    "faiss-binary",
    "faiss-binary-multihash",
    "edge-codes",
    "similis-table",
)
#: usearch takes minutes to link 100,000 rows on two cores
QUICK: Final = (*EXACT, "faiss-*", "edge-*", "similis-*", "hnswlib", "server-*")

PROFILES: Final = {
    "smoke": Profile(
        sets=(
            Set(data="clustered:128:2006", engines=(*EXACT, "faiss-hnsw", "faiss-ivf", "edge-*", "hnswlib")),
            Set(data="codes:64:2006"),
        ),
        rounds=1,
        queries=100,
        plan=Plan(queries=40, seconds=0.1, checked=20, clients=(2,)),
    ),
    "laptop": Profile(
        sets=(
            Set(data="clustered:1024:10000"),
            Set(data="clustered:1024:100000", engines=QUICK),
            Set(data="codes:256:1000000", engines=SCANS),
            Set(data="codes:256:100000"),
            Set(data="codes:256:10000"),
            Set(data="clustered:3072:2006", engines=EXACT),
            Set(data="clustered:3072:10000", engines=EXACT),
            Set(data="clustered:1024:2006", engines=(*EXACT, "*-hnsw", "*-int8")),
            Set(data="codes:64:1000000", engines=SCANS),
        ),
        rounds=3,
        queries=250,
        plan=Plan(queries=250, seconds=0.5, ks=(1, 100), clients=(1, 4)),
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
