"""The tables over all data sets: what to choose, growth, transport, parity, settings, the data themselves."""

from benchmarks.latency.cells import Table, label, setting, share, spread
from benchmarks.latency.choice import FILTER, QUICK_MS, WORTH, Pick, pick
from benchmarks.latency.summary import GOALS, Figure, K, Results, best, families, growth, short
from benchmarks.report import Spread


def picks(res: Results) -> Table:
    """One row per data set, by ascending size, vectors first."""
    rows = []
    for data, about in sorted(res.data.items(), key=lambda pair: (pair[1]["kind"] == "codes", pair[1]["rows"])):
        found = pick(res, data)
        served = min(
            (p50 for e in res.engines(data) if e.startswith("similis-") and (p50 := _served(res, data, e))),
            key=lambda p50: p50.median,
            default=None,
        )
        cells = _cells(res, found) if found else ["-", "nothing qualifies", "-", "-", "-"]
        rows.append([label(data, about), *cells, spread(served)])
    note = (
        f"Exact search where it answers within {QUICK_MS:g} ms, or within {WORTH:g} times what the fastest other takes "
        f"at recall@{K} 0.99; else the fastest at 0.99 that reaches 0.95 under a filter of 1 %. Engines whose rounds "
        "overlap are level, and of those the one that Similis runs is named. One question at a time, one search "
        f"thread, p50. Last column: the fastest of Similis's own processes at recall {GOALS[0]}, with its transport."
    )
    head = ["data", "choose", "in words", "level with it", "memory MiB", "build s", "as Similis serves it, ms"]
    return Table("What to pick", note, head, rows)


def _cells(res: Results, found: Pick) -> list[str]:
    held = res.places.get((found.data, found.engine), {})
    costs = [short(held[name].median) if name in held else "-" for name in ("pss_mib", "wall_s")]
    words = found.words()
    if not found.exact:
        under = res.of(found.data, engine=found.engine, what="single", filter=FILTER, effort=found.found.figure.effort)
        if under:
            words += f"; recall {share(under[0].recall)} under a {FILTER} filter at that setting"
    return [found.engine, words, ", ".join(found.level) or "-", *costs]


def _served(res: Results, data: str, engine: str) -> Spread | None:
    """p50 of the cheapest setting that reaches the first goal; None for engines that report no time of their own."""
    found = best(res, data, engine, GOALS[0])
    return found.figure.p50 if found and found.figure.engine_ms else None


def growing(res: Results) -> Table:
    rows = []
    for family, names in families(res).items():
        for engine in sorted({e for name in names for e in res.engines(name)}):
            points = [(n, *at) for n in names if (at := at_goal(res, n, engine))]
            exponent = growth([(res.data[n]["rows"], ms) for n, ms, _ in points])
            if exponent is not None:
                text = "; ".join(f"{_size(res, n)}: {'<= ' if bound else ''}{short(ms)}" for n, ms, bound in points)
                rows.append([family, engine, text, f"{exponent:.2f}"])
    note = (
        f"p50 at recall {GOALS[0]:g} by rows (each size with its local intrinsic dimension, or its share of copies: "
        "they are other data, too); e of ms = c·nᵉ, by least squares over the logarithms. Graphs that are not asked "
        "are left out."
    )
    return Table("Growth", note, ["data", "engine", "p50 ms by rows", "e"], rows)


def _size(res: Results, data: str) -> str:
    return f"{res.data[data]['rows']:,} ({_hard(res.data[data])})"


def _hard(about: dict[str, object]) -> str:
    return f"{about['copies']:.0%} copies" if about["kind"] == "codes" else f"LID {about['intrinsic_dimension'] or '-'}"


def at_goal(res: Results, data: str, engine: str) -> tuple[float, bool] | None:
    """(ms at the first goal, whether it is only an upper bound); for the memory scan, its p50."""
    if (data, engine) in res.scans:
        return None
    if engine.startswith("memory-scan"):
        return next(((f.p50.median, False) for f in res.sweep(data, engine) if f.p50), None)
    found = best(res, data, engine, GOALS[0])
    if found is None:
        return None
    return found.ms.median, found.bound and engine not in res.exact(data)


def transport(res: Results) -> Table:
    rows = []
    for data, about in res.data.items():
        for engine in res.engines(data):
            rows += [[label(data, about), engine, *_shares(res, f)] for f in res.sweep(data, engine)[:1] if f.engine_ms]
    note = "What a caller waits, what the engine says it took, and the rest: the adapter, protobuf or JSON, the socket."
    head = ["data", "engine", "setting", "p50 ms", "engine ms", "client and transport ms"]
    return Table("Engine and transport", note, head, rows)


def _shares(res: Results, figure: Figure) -> list[str]:
    rest = figure.p50.median - figure.engine_ms.median if figure.p50 and figure.engine_ms else 0.0
    return [setting(res, figure), spread(figure.p50), spread(figure.engine_ms), short(rest)]


def parity(res: Results) -> Table:
    rows = [
        [line["data"], line["engine"], str(line["checked"]), str(line["wrong"]), f"{line['worst']:.1e}"]
        for line in res.parity
    ]
    note = (
        "Similarities of the answers under every filter, place by place, against float64; a difference fails the run."
    )
    return Table("Parity of exact engines", note, ["data", "engine", "checked", "wrong", "largest difference"], rows)


def settings(res: Results) -> Table:
    rows = [
        [engine, ", ".join(f"{name} {value}" for name, value in found.items()) or "-"]
        for engine, found in sorted(res.settings.items())
        if any(figure.engine == engine for figure in res.figures)
    ]
    return Table(
        "Settings", "What each engine was built with, beside its own defaults.", ["engine", "built with"], rows
    )


def described(res: Results) -> Table:
    rows = [
        [name, f"{about['rows']:,}", str(about["dim"]), str(about["queries"]), _hard(about), about["source"]]
        for name, about in res.data.items()
    ]
    head = ["name", "rows", "dimensions or bits", "queries", "hardness", "source"]
    return Table("Data", "LID: local intrinsic dimension, Levina and Bickel, median over queries, 100 neighbours.",
                 head, rows)  # fmt: skip
