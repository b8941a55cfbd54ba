"""The choice of an engine for a data set, by a fixed rule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.latency.summary import GOALS, AtRecall, Results, best, short

#: Engines that a hospital could be given; the others serve for comparison only.
PRODUCT: Final = ("edge-", "similis-", "faiss-", "server-")
#: Engines that the platform runs; preferred in a tie.
RUN: Final = ("edge-exact", "edge-hnsw", "edge-int8", "similis-")
QUICK_MS: Final = 2.0
FILTER: Final = "1 %"
WORTH: Final = 1.5  #: an exact search may take this many times as long as the fastest approximate one


@dataclass(frozen=True, slots=True)
class Pick:
    data: str
    engine: str
    level: tuple[str, ...]  #: engines of the same kind whose rounds overlap those of `engine`
    exact: bool
    found: AtRecall
    rival: AtRecall | None  #: the best engine of the other kind

    def words(self) -> str:
        """The choice as one sentence."""
        took, figure = short(self.found.ms.median), self.found.figure
        if self.exact:
            text = f"Search exactly: every neighbour is found, in {took} ms; nothing to tune"
            if self.rival:
                text += f". An approximate search ({self.rival.figure.engine}, recall 0.99) takes {self.rival} ms"
        else:
            text = f"Search approximately: 99 of 100 neighbours are found, in {took} ms ({figure.effort})"
            if self.rival:
                text += f"; exact search takes {short(self.rival.ms.median)} ms"
        return text


def pick(res: Results, data: str) -> Pick | None:
    """The engine to choose for the data set; None if none qualifies.

    Exact search if it answers within `QUICK_MS`, or costs at most `WORTH` times the fastest approximate engine at
    recall 0.99: it needs no tuning, and filters cost it no recall. Otherwise the fastest engine at 0.99 that reaches
    0.95 under a 1 % filter. Overlapping spreads are a tie, in which the platform's own engine is preferred. Reference
    engines, engines without filters, and graphs that the engine replaces by a scan are not candidates.
    """
    able = [e for e in res.engines(data) if e.startswith(PRODUCT) and best(res, data, e, GOALS[0], name=FILTER)]
    exact = {e: at for e in able if e in res.exact(data) and (at := best(res, data, e, GOALS[1]))}
    rough = {
        e: at for e in able if e not in exact and (data, e) not in res.scans and (at := best(res, data, e, GOALS[1]))
    }
    first, other = _first(exact), _first(rough)
    if first is not None and (other is None or exact[first].ms.median <= max(QUICK_MS, WORTH * rough[other].ms.median)):
        return Pick(data, first, _level(exact, first), True, exact[first], rough[other] if other else None)
    if other is None:
        return None
    return Pick(data, other, _level(rough, other), False, rough[other], exact[first] if first else None)


def _first(found: Mapping[str, AtRecall]) -> str | None:
    """The fastest, or the platform's own engine if level with it."""
    if not found:
        return None
    fastest = min(found, key=lambda e: found[e].ms.median)
    own = [e for e in (fastest, *_level(found, fastest)) if e.startswith(RUN)]
    return min(own, key=lambda e: found[e].ms.median, default=fastest)


def _level(found: Mapping[str, AtRecall], engine: str) -> tuple[str, ...]:
    return tuple(e for e in found if e != engine and found[e].ms.overlaps(found[engine].ms))
