"""From raw lines to figures: rounds of one measurement become its spread; nothing here measures anything."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.report import Spread

Json = dict[str, Any]
GOALS: Final = (0.95, 0.99)  #: recall@10
K: Final = 10
#: The engines that a hospital could be given; the others are here to compare with.
PRODUCT: Final = ("edge-", "similis-", "faiss-", "server-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement over its rounds: the median, with the lowest and the highest."""

    data: str
    engine: str
    what: str
    effort: str
    k: int
    filter: str
    clients: int
    n: int  #: questions, of all rounds
    rounds: int
    recall: float | None
    p50: Spread | None = None  #: milliseconds
    p95: Spread | None = None
    p99: Spread | None = None
    per_s: Spread | None = None
    cpu_ms: Spread | None = None
    engine_ms: Spread | None = None
    quantiles: tuple[float, ...] = ()  #: 0 to 100 %, the median of the rounds


@dataclass
class Results:
    """Everything that the report shows, by what it was computed from."""

    environments: list[Json]
    data: dict[str, Json]
    figures: list[Figure]
    places: dict[tuple[str, str], dict[str, Spread]]  #: by data and engine: build, memory, disk, cold start
    parity: list[Json]
    skipped: list[Json] = field(default_factory=list)
    failed: list[Json] = field(default_factory=list)
    load: Spread | None = None
    notes: list[str] = field(default_factory=list)  #: what a person has to say of the circumstances

    def wrong(self) -> set[tuple[str, str]]:
        """Exact engines that were not: they have no figures."""
        return {(line["data"], line["engine"]) for line in self.parity if line["wrong"]}

    def of(self, data: str, **wanted: object) -> list[Figure]:
        return [f for f in self.figures if f.data == data and all(getattr(f, n) == v for n, v in wanted.items())]

    def sweep(self, data: str, engine: str) -> list[Figure]:
        """Single questions for ten, unfiltered, by rising latency."""
        found = self.of(data, engine=engine, what="single", k=K, filter="all")
        return sorted((f for f in found if f.p50), key=lambda f: f.p50.median if f.p50 else 0.0)

    def engines(self, data: str) -> list[str]:
        return sorted({f.engine for f in self.figures if f.data == data})

    def exact(self, data: str) -> list[str]:
        """Engines whose answers were held against the oracle, and were right."""
        held = {line["engine"] for line in self.parity if line["data"] == data and not line["wrong"]}
        return sorted(held)


def results(lines: Sequence[Json]) -> Results:
    """The figures of a run. An engine that failed the parity check has none."""
    by_kind: dict[str, list[Json]] = defaultdict(list)
    for line in lines:
        by_kind[line["what"]].append(line)
    wrong = {(line["data"], line["engine"]) for line in by_kind["parity"] if line["wrong"]}
    groups: dict[tuple[Any, ...], list[Json]] = defaultdict(list)
    loads = []
    for kind in ("single", "batch", "capacity", "open"):
        for line in by_kind[kind]:
            loads.append(line["load"])
            if (line["data"], line["engine"]) not in wrong:
                groups[_key(line)].append(line)
    return Results(
        environments=by_kind["environment"],
        data={line["data"]: line for line in by_kind["data"]},
        figures=[_figure(key, group) for key, group in groups.items()],
        places=_places(by_kind["build"] + by_kind["cold"], wrong),
        parity=by_kind["parity"],
        skipped=by_kind["skipped"],
        failed=_still_failed(lines),
        load=Spread.of(loads, 1) if loads else None,
        notes=[line["text"] for line in by_kind["note"]],
    )


def _still_failed(lines: Iterable[Json]) -> list[Json]:
    """Failures that a later attempt has not mended."""
    open_: dict[tuple[Any, ...], Json] = {}
    for line in lines:
        where = line.get("data"), line.get("engine"), line.get("round")
        match line["what"]:
            case "failed":
                open_[*where, line["step"]] = line
            case "build" | "round" as ended:
                open_.pop((*where, "build" if ended == "build" else "measure"), None)
    return list(open_.values())


def _key(line: Json) -> tuple[Any, ...]:
    effort = ", ".join(f"{name} {value:g}" for name, value in line.get("effort", {}).items())
    return (
        line["data"],
        line["engine"],
        line["what"],
        effort,
        line.get("k", K),
        line.get("filter", "all"),
        line.get("clients", 1),
    )


def _figure(key: tuple[Any, ...], group: Sequence[Json]) -> Figure:
    data, engine, what, effort, k, name, clients = key
    shares = [line["recall"] for line in group if "recall" in line]
    more: dict[str, Any] = {}
    timed = [line["ms"] for line in group if "ms" in line]
    if timed:
        more = {f"p{p}": Spread.of((ms[p] for ms in timed), 4) for p in (50, 95, 99)}
        more["quantiles"] = tuple(np.median(np.array(timed), axis=0).tolist())
    for field_name in ("per_s", "cpu_ms", "engine_ms"):
        values = [line[field_name] for line in group if field_name in line]
        if values:
            more[field_name] = Spread.of(values, 4)
    return Figure(
        data=data, engine=engine, what=what, effort=effort, k=k, filter=name, clients=clients, rounds=len(group),
        n=sum(line.get("n", 0) for line in group), recall=float(np.mean(shares)) if shares else None, **more,
    )  # fmt: skip


def _places(lines: Iterable[Json], wrong: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Spread]]:
    held: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = ("wall_s", "cpu_s", "disk_mib", "peak_mib", "open_ms", "first_ms", "next_ms", "anonymous_mib", "pss_mib")
    for line in lines:
        where = line["data"], line["engine"]
        if where not in wrong:
            for name in names:
                if name in line:
                    held[where][name].append(line[name])
    return {where: {name: Spread.of(values) for name, values in found.items()} for where, found in held.items()}


@dataclass(frozen=True, slots=True)
class AtRecall:
    """The cheapest measured setting that reaches a recall, and the latency interpolated to just that recall."""

    figure: Figure
    interpolated_ms: float | None


def at_recall(sweep: Sequence[Figure], goal: float) -> AtRecall | None:
    """None where no setting reaches it. Interpolated: log of latency over recall, between its neighbours."""
    known = [(f.recall, f) for f in sweep if f.recall is not None]
    reached = [f for recall, f in known if recall >= goal]
    if not reached:
        return None
    best = min(reached, key=_ms)
    below = [(recall, f) for recall, f in known if recall < goal and _ms(f) <= _ms(best)]
    if not below or best.recall is None or best.recall == goal:
        return AtRecall(best, _ms(best))
    low, under = max(below, key=lambda pair: pair[0])
    part = (goal - low) / (best.recall - low)
    return AtRecall(best, math.exp((1 - part) * math.log(_ms(under)) + part * math.log(_ms(best))))


def _ms(figure: Figure) -> float:
    if figure.p50 is None:
        raise ValueError(figure.what)
    return figure.p50.median


def best(res: Results, data: str, engine: str, goal: float) -> AtRecall | None:
    """Of an exact engine its one setting, else `at_recall`."""
    return at_recall(res.sweep(data, engine), goal)


def growth(points: Sequence[tuple[int, float]]) -> float | None:
    """The exponent e of ms = c n^e by least squares over the logarithms; None from fewer than two sizes."""
    if len({n for n, _ in points}) < 2:
        return None
    x, y = np.log([n for n, _ in points]), np.log([ms for _, ms in points])
    return float(np.polyfit(x, y, 1)[0])


def families(res: Results) -> dict[str, list[str]]:
    """Data sets that differ in size alone: KIND:DIM without the rows, each with its sets by rising size."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in res.data:
        kind, _, rest = name.partition(":")
        head, _, rows = rest.rpartition(":")
        if kind in {"clustered", "codes"} and rows.isdigit():
            found[f"{kind}:{head}"].append(name)
    return {key: sorted(names, key=lambda n: res.data[n]["rows"]) for key, names in found.items()}


@dataclass(frozen=True, slots=True)
class Pick:
    data: str
    engine: str
    why: str


def pick(res: Results, data: str) -> Pick | None:
    """What to choose for such data, by a rule that anyone can check.

    Exact search where it answers within 2 ms, or costs at most half as much again as the fastest approximate engine
    at recall 0.99: it needs no tuning, and no filter spoils it. Else the fastest at 0.99 that keeps 0.95 under a
    1 % filter. References from outside and engines without filters are not candidates.
    """
    able = [e for e in res.engines(data) if e.startswith(PRODUCT) and _filtered(res, data, e) is not None]
    exact = {e: found for e in able if e in res.exact(data) and (found := best(res, data, e, 0.99))}
    rough = {e: found for e in able if e not in exact and (found := best(res, data, e, GOALS[1]))}
    steady = {e: found for e, found in rough.items() if (_filtered(res, data, e) or 0) >= GOALS[0]}
    first_exact = min(exact, key=lambda e: _ms(exact[e].figure), default=None)
    first = min(steady, key=lambda e: _ms(steady[e].figure), default=None)
    if first_exact is not None:
        took = _ms(exact[first_exact].figure)
        if first is None or took <= 2 or took <= 1.5 * _ms(steady[first].figure):
            rest = "" if first is None else f"; {first} at recall 0.99 takes {_ms(steady[first].figure):.2g} ms"
            why = f"exact in {took:.2g} ms{rest}; nothing to tune, no filter loses a neighbour"
            return Pick(data, first_exact, why)
    if first is None:
        return None
    found = steady[first]
    share = _filtered(res, data, first) or 0.0
    why = f"{_ms(found.figure):.2g} ms at recall {found.figure.recall:.3f} ({found.figure.effort})"
    against = "" if first_exact is None else f", where exact search takes {_ms(exact[first_exact].figure):.3g} ms"
    return Pick(data, first, f"{why}{against}; recall {share:.3f} under a 1 % filter")


def _filtered(res: Results, data: str, engine: str) -> float | None:
    """Recall under the 1 % filter; None where it was not measured."""
    found = [f.recall for f in res.of(data, engine=engine, what="single", filter="1 %") if f.recall is not None]
    return max(found, default=None)
