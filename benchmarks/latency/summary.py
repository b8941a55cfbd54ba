"""Figures from raw lines: the rounds of a measurement become its spread; nothing is measured here."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.latency import raw
from benchmarks.latency.raw import Json
from benchmarks.report import Spread
from shared.errors import Invalid

GOALS: Final = (0.95, 0.99)  #: recall@10
K: Final = 10


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
    n: int  #: questions, over all rounds
    rounds: int
    recall: float | None
    least: int = 0  #: questions in the round with the fewest
    rate: str = ""  #: in an open loop: `own` or `common`
    p50: Spread | None = None  #: in ms, as all latencies
    p50_interval: tuple[float, float] | None = None  #: 95 % interval over rounds and questions
    p95: Spread | None = None
    p99: Spread | None = None
    per_s: Spread | None = None
    cpu_ms: Spread | None = None
    engine_ms: Spread | None = None
    rate_per_s: Spread | None = None
    floor_ms: Spread | None = None  #: latency of the open loop itself
    quantiles: tuple[float, ...] = ()  #: 0 to 100 %, medians over the rounds


@dataclass
class Results:
    """Everything that the report shows."""

    environments: list[Json]
    data: dict[str, Json]
    figures: list[Figure]
    places: dict[tuple[str, str], dict[str, Spread]]  #: by data set and engine: build, memory, disk, cold start
    parity: list[Json]
    skipped: list[Json] = field(default_factory=list)
    failed: list[Json] = field(default_factory=list)
    load: Spread | None = None
    notes: list[str] = field(default_factory=list)  #: notes by a person

    scans: set[tuple[str, str]] = field(default_factory=set)  #: graphs over so few rows that the engine scans instead
    settings: dict[str, Json] = field(default_factory=dict)  #: by engine, its build parameters

    def named(self, data: str, engine: str) -> str:
        """The engine's name, marked if it scans this data set instead of using its graph."""
        return f"{engine} (a scan here)" if (data, engine) in self.scans else engine

    def wrong(self) -> set[tuple[str, str]]:
        """Engines that failed the parity check: they have no figures."""
        return {(line["data"], line["engine"]) for line in self.parity if line["wrong"]}

    def of(self, data: str, **wanted: object) -> list[Figure]:
        return [f for f in self.figures if f.data == data and all(getattr(f, n) == v for n, v in wanted.items())]

    def sweep(self, data: str, engine: str, k: int = K, name: str = "all") -> list[Figure]:
        """Single questions for k under a filter, by rising latency."""
        found = self.of(data, engine=engine, what="single", k=k, filter=name)
        return sorted((f for f in found if f.p50), key=lambda f: f.p50.median if f.p50 else 0.0)

    def engines(self, data: str) -> list[str]:
        return sorted({f.engine for f in self.figures if f.data == data})

    def exact(self, data: str) -> list[str]:
        """Engines that passed the parity check."""
        held = {line["engine"] for line in self.parity if line["data"] == data and not line["wrong"]}
        return sorted(held)


def read(folder: Path) -> Results:
    """The figures of the run in a folder. Raises: `NotFound`, `Invalid`."""
    found = results(raw.read(folder))
    if not found.environments:
        raise Invalid(f"the results in {folder.name} are empty, or were cut in their first line: {raw.FILE}")
    return found


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
        places=_places(by_kind["build"] + by_kind["cold"] + by_kind["memory"], wrong),
        scans={(line["data"], line["engine"]) for line in by_kind["build"] if line.get("scan")},
        settings={line["engine"]: line.get("settings", {}) for line in by_kind["build"]},
        parity=by_kind["parity"],
        skipped=by_kind["skipped"],
        failed=_still_failed(lines),
        load=Spread.of(loads, 1) if loads else None,
        notes=[line["text"] for line in by_kind["note"]],
    )


def _still_failed(lines: Iterable[Json]) -> list[Json]:
    """Failures that no later attempt has repaired."""
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
        line.get("rate", ""),
    )


def _figure(key: tuple[Any, ...], group: Sequence[Json]) -> Figure:
    data, engine, what, effort, k, name, clients, rate = key
    shares = [line["recall"] for line in group if "recall" in line]
    more: dict[str, Any] = {}
    timed = [line["ms"] for line in _timed(group)]
    if timed:
        more = {f"p{p}": Spread.of((ms[p] for ms in timed), 4) for p in (50, 95, 99)}
        more["p50_interval"] = interval([(line["ms"], line["n"]) for line in _timed(group)])
        more["quantiles"] = tuple(np.median(np.array(timed), axis=0).tolist())
    for field_name in ("per_s", "cpu_ms", "engine_ms", "rate_per_s", "floor_ms"):
        values = [line[field_name] for line in group if field_name in line]
        if values:
            more[field_name] = Spread.of(values, 4)
    return Figure(
        data=data, engine=engine, what=what, effort=effort, k=k, filter=name, clients=clients, rounds=len(group),
        n=sum(line.get("n", 0) for line in group), least=min(line.get("n", 0) for line in group), rate=rate,
        recall=float(np.mean(shares)) if shares else None, **more,
    )  # fmt: skip


def _timed(group: Iterable[Json]) -> list[Json]:
    return [line for line in group if "ms" in line]


def interval(rounds: Sequence[tuple[Sequence[float], int]], times: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval, over rounds and questions, of the median of the rounds' median latencies.

    The median of n resampled questions is a quantile whose rank follows the beta distribution with both parameters
    (n + 1) / 2.

    Args:
        rounds: for each its 0th to 100th percentile, and its number of questions.
    """
    rng = np.random.default_rng(0)
    drawn = np.empty((times, len(rounds)))
    for place, (percentiles, n) in enumerate(rounds):
        drawn[:, place] = np.interp(100 * rng.beta((n + 1) / 2, (n + 1) / 2, times), range(101), percentiles)
    again = rng.integers(0, len(rounds), drawn.shape)
    low, high = np.percentile(np.median(np.take_along_axis(drawn, again, axis=1), axis=1), (2.5, 97.5))
    return round(float(low), 4), round(float(high), 4)


def _places(lines: Iterable[Json], wrong: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Spread]]:
    held: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = (
        "wall_s",
        "cpu_s",
        "disk_mib",
        "peak_mib",
        "open_ms",
        "first_ms",
        "next_ms",
        "anonymous_mib",
        "pss_mib",
        "library_mib",
    )
    for line in lines:
        where = line["data"], line["engine"]
        if where not in wrong:
            for name in names:
                if name in line:
                    held[where][name].append(line[name])
    return {where: {name: Spread.of(values) for name, values in found.items()} for where, found in held.items()}


@dataclass(frozen=True, slots=True)
class AtRecall:
    """The cheapest measured setting that reaches a recall, and the latency at just that recall."""

    figure: Figure
    ms: Spread  #: interpolated to the goal; the lowest and highest rounds likewise
    bound: bool  #: no setting lies below the goal, so `ms` is an upper bound

    def __str__(self) -> str:
        return f"{'<= ' if self.bound else ''}{short(self.ms.median)}"


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def at_recall(sweep: Sequence[Figure], goal: float) -> AtRecall | None:
    """The latency at the goal, interpolated as log(ms) linear in recall; None if no setting reaches it."""
    known = [(f.recall, f) for f in sweep if f.recall is not None]
    reached = [f for recall, f in known if recall >= goal]
    if not reached:
        return None
    best = min(reached, key=_ms)
    below = [(recall, f) for recall, f in known if recall < goal and _ms(f) <= _ms(best)]
    if not below or best.recall is None or best.recall == goal:
        return AtRecall(best, _spread(best), best.recall != goal)
    low, under = max(below, key=lambda pair: pair[0])
    part = (goal - low) / (best.recall - low)
    ends = zip(_spread(under).ends(), _spread(best).ends(), strict=True)
    return AtRecall(
        best, Spread.of((math.exp((1 - part) * math.log(x) + part * math.log(y)) for x, y in ends), 4), False
    )


def _ms(figure: Figure) -> float:
    return _spread(figure).median


def _spread(figure: Figure) -> Spread:
    if figure.p50 is None:
        raise ValueError(figure.what)
    return figure.p50


def best(res: Results, data: str, engine: str, goal: float, k: int = K, name: str = "all") -> AtRecall | None:
    """`at_recall` of the figures for k under a filter."""
    return at_recall(res.sweep(data, engine, k, name), goal)


def growth(points: Sequence[tuple[int, float]]) -> float | None:
    """The exponent e of ms = c n^e by least squares over the logarithms; None from fewer than two sizes."""
    if len({n for n, _ in points}) < 2:
        return None
    x, y = np.log([n for n, _ in points]), np.log([ms for _, ms in points])
    return float(np.polyfit(x, y, 1)[0])


def families(res: Results) -> dict[str, list[str]]:
    """Data sets that differ in size only: by KIND:DIM, in ascending order of rows."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in res.data:
        kind, _, rest = name.partition(":")
        head, _, rows = rest.rpartition(":")
        if kind in {"clustered", "codes"} and rows.isdigit():
            found[f"{kind}:{head}"].append(name)
    return {key: sorted(names, key=lambda n: res.data[n]["rows"]) for key, names in found.items()}
