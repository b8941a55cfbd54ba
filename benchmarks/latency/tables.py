"""The tables of the report, once, for HTML, Markdown and CSV alike."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.latency.data import FILTERS
from benchmarks.latency.summary import GOALS, Figure, K, Results, best, families, growth, pick
from benchmarks.report import Spread

Row = list[str]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    note: str
    head: Row
    rows: list[Row]
    best: int | None = None  #: the column whose least value stands out


def label(name: str, about: dict[str, object]) -> str:
    """A data set in words."""
    kind = "hash codes of {} bits" if about["kind"] == "codes" else "x {}"
    shape = f"{about['rows']:,} " + kind.format(f"{about['dim']:,}" if about["kind"] != "codes" else about["dim"])
    if name.startswith(("clustered", "codes")):
        return shape
    return f"{name.partition(':')[0]}: {shape}"


def ms(value: Spread | None) -> str:
    """Three significant digits, with the lowest and the highest round."""
    if value is None:
        return "-"
    return f"{_short(value.median)} ({_short(value.low)} to {_short(value.high)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def tables(res: Results) -> Iterator[Table]:
    yield _picks(res)
    for data in res.data:
        yield _exact(res, data)
        if res.data[data]["kind"] == "vectors":
            yield from (_at(res, data, goal) for goal in GOALS)
        else:
            yield _at(res, data, GOALS[0])
        yield _filters(res, data)
        yield _clients(res, data)
        yield _depths(res, data)
        yield _places(res, data)
    yield _growth(res)
    yield _transport(res)
    yield _parity(res)
    yield _data(res)


def _picks(res: Results) -> Table:
    rows = []
    for data, about in res.data.items():
        found = pick(res, data)
        served = [p50 for e in res.engines(data) if e.startswith("similis-") if (p50 := _served(res, data, e))]
        engine, why = (found.engine, found.why) if found else ("-", "nothing qualifies")
        rows.append([label(data, about), engine, why, ms(min(served, key=_median, default=None))])
    note = (
        "Exact search where it answers within 2 ms or within one and a half times the fastest approximate engine at "
        "recall@10 0.99; else the fastest at 0.99 that keeps 0.95 under a filter of 1 %. One question at a time, one "
        "search thread, p50. Last column: the fastest of the platform's own engines at recall 0.95, with its transport."
    )
    return Table("What to pick", note, ["data", "engine", "why", "as Similis serves it, ms"], rows)


def _served(res: Results, data: str, engine: str) -> Spread | None:
    """p50 of the cheapest setting that reaches the first goal, of an engine behind a transport (it tells its own)."""
    found = best(res, data, engine, GOALS[0])
    return found.figure.p50 if found and found.figure.engine_ms else None


def _median(value: Spread) -> float:
    return value.median


def _setting(res: Results, figure: Figure) -> str:
    return figure.effort or ("exact" if figure.engine in res.exact(figure.data) else "-")


def _exact(res: Results, data: str) -> Table:
    limit = next((f for e in res.engines(data) if e.startswith("memory-scan") for f in res.sweep(data, e)), None)
    floor = limit.p50.median if limit and limit.p50 else None
    rows = []
    for engine in res.exact(data):
        for f in res.sweep(data, engine):
            share = f"{floor / f.p50.median:.0%}" if floor and f.p50 else "-"
            rows.append([engine, *_latency(f), ms(f.cpu_ms), share, ms(_batch(res, f))])
    rows.sort(key=lambda row: float(row[1].split(" ")[0].replace(",", "")))
    if limit:
        rows.append(["the memory's limit", *_latency(limit), ms(limit.cpu_ms), "100%", "-"])
    note = (
        "Reading every byte once takes what the last row says; the share is of that. n: questions. Batch: in one call."
    )
    head = ["engine", "p50 ms", "p95", "p99", "n", "CPU ms", "of the limit", "batch, queries/s"]
    return Table(f"Exact: {label(data, res.data[data])}", note, head, rows, 1)


def _latency(figure: Figure) -> Row:
    """Percentiles, and from how many questions."""
    return [ms(figure.p50), ms(figure.p95), ms(figure.p99), f"{figure.n:,}"]


def _batch(res: Results, figure: Figure) -> Spread | None:
    found = res.of(figure.data, engine=figure.engine, what="batch", effort=figure.effort)
    return found[0].per_s if found else None


def _at(res: Results, data: str, goal: float) -> Table:
    rows = []
    for engine in res.engines(data):
        if engine.startswith("memory-scan") or engine in res.exact(data):
            continue
        found = best(res, data, engine, goal)
        if found is None:
            sweep = res.sweep(data, engine)
            most = max((f.recall or 0 for f in sweep), default=0.0)
            rows.append([engine, "-", f"ends at {most:.3f}", *["-"] * 6])
            continue
        f = found.figure
        even = "-" if found.interpolated_ms is None else _short(found.interpolated_ms)
        cells = [*_latency(f), even, ms(_batch(res, f))]
        rows.append([engine, _setting(res, f), _share(f.recall), *cells])
    rows.sort(key=lambda row: float(row[3].split(" ")[0].replace(",", "")) if row[3] != "-" else float("inf"))
    note = (
        f"The cheapest measured setting whose recall@{K} reaches {goal:g}; beside it the latency interpolated to just "
        "that recall, along the engine's own curve."
    )
    head = ["engine", "setting", "recall", "p50 ms", "p95", "p99", "n", f"p50 at {goal:g}", "batch, queries/s"]
    return Table(f"At recall {goal:g}: {label(data, res.data[data])}", note, head, rows, 3)


def _filters(res: Results, data: str) -> Table:
    rows = []
    for engine in res.engines(data):
        found = {f.filter: f for f in res.of(data, engine=engine, what="single", k=K) if f.filter != "all"}
        if not found:
            continue
        any_ = next(iter(found.values()))
        effort = any_.effort
        plain = [f for f in res.sweep(data, engine) if f.effort == effort]
        cells = [f"{_short(plain[0].p50.median)} · {_share(plain[0].recall)}" if plain and plain[0].p50 else "-"]
        for name in FILTERS[1:]:
            f = found.get(name)
            cells.append("-" if f is None or f.p50 is None else f"{_short(f.p50.median)} · {_share(f.recall)}")
        rows.append([engine, _setting(res, any_), *cells])
    note = (
        "p50 ms · recall@10, at the least effort that reaches 0.95 unfiltered. The patient's own images are hidden; "
        "one modality of 20 % that lies in one part of space (or the data's own); 1 % and 0.1 % drawn at random. "
        "Where FAISS filters, its bitmap is made from the columns within the time."
    )
    return Table(
        f"Filters: {label(data, res.data[data])}", note, ["engine", "setting", *FILTERS[:1], *FILTERS[1:]], rows
    )


def _clients(res: Results, data: str) -> Table:
    numbers = sorted({f.clients for f in res.of(data, what="open")})
    rows = []
    for engine in res.engines(data):
        cells = []
        for clients in numbers:
            capacity = next(iter(res.of(data, engine=engine, what="capacity", clients=clients)), None)
            cells.append(ms(capacity.per_s) if capacity else "-")
        for clients in numbers:
            f = next(iter(res.of(data, engine=engine, what="open", clients=clients)), None)
            cells.append(f"{_short(f.p50.median)} / {_short(f.p99.median)}" if f and f.p50 and f.p99 else "-")
        if any(cell != "-" for cell in cells):
            rows.append([engine, *cells])
    head = ["engine", *(f"{n} clients: answers/s" for n in numbers), *(f"{n}: open p50 / p99 ms" for n in numbers)]
    note = (
        "Left: how many answers so many threads get when each asks as soon as it may. Right: questions at fixed "
        "times, at half of what one thread can answer (at most 2,000 a second), timed from when each was due; waking "
        "the thread is about 0.07 ms of it."
    )
    return Table(f"Clients at once: {label(data, res.data[data])}", note, head, rows)


def _depths(res: Results, data: str) -> Table:
    depths = sorted({f.k for f in res.of(data, what="single")})
    rows = []
    for engine in res.engines(data):
        deep = [f for f in res.of(data, engine=engine, what="single", filter="all") if f.k != K]
        if not deep:
            continue
        own = [*deep, *(f for f in res.sweep(data, engine) if f.effort == deep[0].effort)]
        by_k = {f.k: f for f in own}
        cells = [
            f"{_short(f.p50.median)} · {_share(f.recall)}" if (f := by_k.get(k)) and f.p50 else "-" for k in depths
        ]
        rows.append([engine, _setting(res, deep[0]), *cells])
    head = ["engine", "setting", *(f"k = {k}" for k in depths)]
    return Table(
        f"By k: {label(data, res.data[data])}",
        "p50 ms · recall@k, at the effort that suffices for ten: a list of candidates shorter than k loses recall.",
        head,
        rows,
    )


def _places(res: Results, data: str) -> Table:
    names = ("wall_s", "cpu_s", "disk_mib", "peak_mib", "open_ms", "first_ms", "next_ms", "anonymous_mib", "pss_mib")
    rows = []
    for (where, engine), found in sorted(res.places.items()):
        if where == data and not engine.startswith("memory-scan"):
            rows.append([engine, *(ms(found.get(name)) if name in found else "-" for name in names)])
    head = [
        "engine", "build s", "build CPU s", "disk MiB", "peak MiB while built", "open ms, cold", "first query ms",
        "next ten ms", "own memory MiB", "with shared pages MiB",
    ]  # fmt: skip
    note = (
        "Built with all cores in a process of its own (its peak holds the rows, too; CPU of a served engine's own "
        "processes is counted when they end). Opened by a fresh process after the page cache has forgotten the files."
    )
    return Table(f"Build, disk, memory, cold start: {label(data, res.data[data])}", note, head, rows)


def _growth(res: Results) -> Table:
    rows = []
    for family, names in families(res).items():
        goal = 0.95
        engines = sorted({e for name in names for e in res.engines(name)})
        for engine in engines:
            found = [(res.data[n]["rows"], at) for n in names if (at := _at_goal(res, n, engine, goal))]
            points = [(rows_, f.p50.median) for rows_, f in found if f.p50]
            exponent = growth(points)
            if exponent is not None:
                rows.append([family, engine, "; ".join(f"{n:,}: {_short(v)}" for n, v in points), f"{exponent:.2f}"])
    note = "p50 at the cheapest setting of recall 0.95, by rows; e of ms = c·nᵉ, by least squares over the logarithms."
    return Table("Growth", note, ["data", "engine", "p50 ms by rows", "e"], rows)


def _at_goal(res: Results, data: str, engine: str, goal: float) -> Figure | None:
    if engine.startswith("memory-scan"):
        return next(iter(res.sweep(data, engine)), None)
    found = best(res, data, engine, goal)
    return found.figure if found else None


def _transport(res: Results) -> Table:
    rows = []
    for data, about in res.data.items():
        for engine in res.engines(data):
            for f in res.sweep(data, engine)[:1]:
                if f.engine_ms and f.p50:
                    rest = f.p50.median - f.engine_ms.median
                    rows.append(
                        [label(data, about), engine, _setting(res, f), ms(f.p50), ms(f.engine_ms), _short(rest)]
                    )
    note = "What a caller waits, what the engine says it took, and the rest: the adapter, protobuf or JSON, the socket."
    head = ["data", "engine", "setting", "p50 ms", "engine ms", "client and transport ms"]
    return Table("Engine and transport", note, head, rows)


def _parity(res: Results) -> Table:
    rows = [
        [line["data"], line["engine"], str(line["checked"]), str(line["wrong"]), f"{line['worst']:.1e}"]
        for line in res.parity
    ]
    note = (
        "Similarities of the answers under every filter, place by place, against float64; a difference fails the run."
    )
    return Table("Parity of exact engines", note, ["data", "engine", "checked", "wrong", "largest difference"], rows)


def _data(res: Results) -> Table:
    rows = []
    for name, about in res.data.items():
        hard = f"{about['copies']:.0%} copies" if about["kind"] == "codes" else str(about["intrinsic_dimension"] or "-")
        rows.append([name, f"{about['rows']:,}", str(about["dim"]), str(about["queries"]), hard, about["source"]])
    head = ["name", "rows", "dimensions or bits", "queries", "local intrinsic dimension", "source"]
    return Table("Data", "Intrinsic dimension: Levina and Bickel, median over queries, 100 neighbours.", head, rows)
