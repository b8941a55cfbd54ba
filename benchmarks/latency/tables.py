"""The tables of the report, shared by HTML, Markdown and CSV."""

from collections.abc import Iterator

from benchmarks.latency import overall
from benchmarks.latency.cells import ENOUGH, Row, Table, even, label, latency, p99, setting, share, spread
from benchmarks.latency.data import FILTERS
from benchmarks.latency.summary import GOALS, Figure, K, Results, best, short
from benchmarks.report import Spread


def tables(res: Results) -> Iterator[Table]:
    yield overall.picks(res)
    for data in res.data:
        yield _exact(res, data)
        if res.data[data]["kind"] == "vectors":
            yield from (_at(res, data, goal) for goal in GOALS)
        else:
            yield _at(res, data, GOALS[0])
        yield _filters(res, data)
        yield _depths(res, data)
        yield _clients(res, data)
        yield _places(res, data)
    yield overall.growing(res)
    yield overall.transport(res)
    yield overall.parity(res)
    yield overall.settings(res)
    yield overall.described(res)


def _exact(res: Results, data: str) -> Table:
    limit = next((f for e in res.engines(data) if e.startswith("memory-scan") for f in res.sweep(data, e)), None)
    floor = limit.p50.median if limit and limit.p50 else None
    found = sorted(
        (f for engine in res.exact(data) for f in res.sweep(data, engine) if f.p50),
        key=lambda f: f.p50.median if f.p50 else 0.0,
    )
    rows = [
        [f.engine, *latency(f), spread(f.cpu_ms), f"{floor / f.p50.median:.0%}" if floor and f.p50 else "-",
         spread(_batch(res, f))]
        for f in found
    ]  # fmt: skip
    if limit:
        rows.append(["the memory's limit", *latency(limit), spread(limit.cpu_ms), "100%", "-"])
    note = (
        "Reading every byte once takes what the last row says; the share is of that. n: questions of all rounds; p99 "
        f"only from {ENOUGH} in each. Batch: in one call."
    )
    head = ["engine", "p50 ms", "p95", "p99", "n", "CPU ms", "of the limit", "batch, queries/s"]
    return Table(f"Exact: {label(data, res.data[data])}", note, head, rows, 1)


def _batch(res: Results, figure: Figure) -> Spread | None:
    found = res.of(figure.data, engine=figure.engine, what="batch", effort=figure.effort)
    return found[0].per_s if found else None


def _at(res: Results, data: str, goal: float) -> Table:
    rows: list[tuple[float, Row]] = []
    for engine in res.engines(data):
        if engine.startswith("memory-scan") or engine in res.exact(data):
            continue
        found = best(res, data, engine, goal)
        if found is None:
            most = max((f.recall or 0 for f in res.sweep(data, engine)), default=0.0)
            rows.append((float("inf"), [res.named(data, engine), f"ends at {most:.3f}", *["-"] * 7]))
            continue
        f = found.figure
        cells = [setting(res, f), share(f.recall), *latency(f), spread(_batch(res, f))]
        rows.append((found.ms.median, [res.named(data, engine), str(found), *cells]))
    note = (
        f"Compared at recall@{K} {goal:g}: the latency interpolated along the engine's own curve; <= where no quicker "
        "setting lies below that recall. Then the cheapest measured setting that reaches it, as it was measured."
    )
    head = ["engine", f"p50 ms at {goal:g}", "setting", "recall", "p50 ms", "p95", "p99", "n", "batch, queries/s"]
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return Table(f"At recall {goal:g}: {label(data, res.data[data])}", note, head, ordered, 1)


def _filters(res: Results, data: str) -> Table:
    rows = []
    for engine in res.engines(data):
        cells = [even(res, data, engine, K, name) for name in FILTERS]
        if any(cell != "-" for cell in cells[1:]):
            rows.append([res.named(data, engine), *cells])
    note = (
        f"p50 ms at recall@{K} {GOALS[0]:g} under each filter, and the least setting tried that reaches it. The "
        "patient's own images are hidden; one modality of 20 % that lies in one part of space (or the data's own); "
        "1 % and 0.1 % drawn at random. Where FAISS filters, its bitmap is made from the columns within the time."
    )
    return Table(f"Filters: {label(data, res.data[data])}", note, ["engine", *FILTERS], rows)


def _depths(res: Results, data: str) -> Table:
    depths = sorted({f.k for f in res.of(data, what="single")})
    rows = []
    for engine in res.engines(data):
        cells = [even(res, data, engine, k, "all") for k in depths]
        if len(depths) > 1 and any(cell != "-" for cell in cells):
            rows.append([res.named(data, engine), *cells])
    note = (
        f"p50 ms at recall@k {GOALS[0]:g}, and the least setting tried that reaches it: a list of candidates shorter "
        "than k loses recall. k = 1 is asked only at the setting that suffices for ten."
    )
    return Table(f"By k: {label(data, res.data[data])}", note, ["engine", *(f"k = {k}" for k in depths)], rows)


def _clients(res: Results, data: str) -> Table:
    rows = []
    for engine in res.engines(data):
        for capacity in sorted(res.of(data, engine=engine, what="capacity"), key=lambda f: f.clients):
            cells = [res.named(data, engine), str(capacity.clients), spread(capacity.per_s)]
            for rate in ("own", "common"):
                asked = res.of(data, engine=engine, what="open", clients=capacity.clients, rate=rate)
                cells += _open(asked[0]) if asked else ["-"] * 4
            rows.append(cells)
    note = (
        "The clients are threads of the process that holds the engine, or of one client of a served engine: what they "
        "gain is what the engine lets go of Python's lock. Answers/s: each asks as soon as it may. Then questions at "
        "fixed times, timed from when each was due: at half of those answers/s (at most 2,000), which is another load "
        "for each engine, and at one rate for all. Floor: the part of the wait that is the waking of a thread."
    )
    own, common = ([f"{name}: asked/s", "p50 / p99 ms", "floor", "n"] for name in ("own rate", "common rate"))
    head = ["engine", "clients", "answers/s", *own, *common]
    return Table(f"Clients at once: {label(data, res.data[data])}", note, head, rows)


def _open(figure: Figure) -> Row:
    if figure.p50 is None or figure.rate_per_s is None or figure.floor_ms is None:
        return ["-"] * 4
    tail = short(figure.p99.median) if figure.p99 and p99(figure) != "-" else "-"
    rate, floor = short(figure.rate_per_s.median), short(figure.floor_ms.median)
    return [rate, f"{short(figure.p50.median)} / {tail}", floor, f"{figure.n:,}"]


def _places(res: Results, data: str) -> Table:
    names = ("wall_s", "cpu_s", "disk_mib", "peak_mib", "open_ms", "first_ms", "next_ms", "pss_mib", "anonymous_mib",
             "library_mib")  # fmt: skip
    rows = []
    for (where, engine), found in sorted(res.places.items()):
        if where == data and not engine.startswith("memory-scan"):
            cells = (spread(found.get(name)) if name in found else "-" for name in names)
            rows.append([res.named(data, engine), *cells])
    head = [
        "engine", "build s", "build CPU s", "disk MiB", "peak MiB while built", "open ms, cold", "first query ms",
        "next ten ms", "memory MiB", "of it anonymous MiB", "library alone MiB",
    ]  # fmt: skip
    note = (
        "Built with all cores in a process of its own, twice where that takes less than 30 s. Peak: of that process "
        "and of its server, with the rows that it was given. CPU of a served engine's own processes is counted when "
        "they end. Opened by a fresh process after the page cache has forgotten the files. Memory: proportional set "
        "size when the round ends, files that are mapped included, less the library without rows."
    )
    return Table(f"Build, disk, memory, cold start: {label(data, res.data[data])}", note, head, rows)
