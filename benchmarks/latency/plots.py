"""The plots of the report, as inline SVG without scripts or links."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from benchmarks.latency.cells import label
from benchmarks.latency.overall import at_goal
from benchmarks.latency.summary import GOALS, Figure, K, Results, best, families

#: One palette per family: the report mainly compares FAISS with Qdrant.
FAMILIES: Final = (
    ("faiss", ("#1b4f8f", "#3f7fc4", "#79aee3", "#0e7c86", "#52b3ad", "#2b2f77")),
    ("edge", ("#b3261e", "#e0602f", "#ec9a3c", "#a0447d", "#d27fae", "#7a1f1f")),
    ("server", ("#7d3fb3", "#a97fd6")),
    ("similis", ("#1c7c3a", "#63b063", "#9acd80")),
    ("memory", ("#000000",)),
)
OTHERS: Final = ("#666666", "#999999", "#444444", "#bbbbbb")
MARKS: Final = "osD^vP"


def colours(engines: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a mark for each engine, the same in every picture."""
    found, used = {}, dict[str, int]()
    for engine in sorted(engines):
        family = engine.partition("-")[0]
        palette = dict(FAMILIES).get(family, OTHERS)
        place = used.setdefault(family if family in dict(FAMILIES) else "", 0)
        used[family if family in dict(FAMILIES) else ""] += 1
        found[engine] = palette[place % len(palette)], MARKS[place % len(MARKS)]
    return found


class Pictures:
    """Draws with matplotlib, which is imported on construction."""

    def __init__(self, res: Results) -> None:
        import matplotlib as mpl

        mpl.use("Agg")
        mpl.rcParams.update(
            {"svg.hashsalt": "similis", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
        )
        mpl.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"})
        self.res = res
        self.style: dict[str, tuple[str, str]] = {}
        for kind in ("vectors", "codes"):  # never in one plot, so they may share colours
            held = {f.engine for f in res.figures if res.data[f.data]["kind"] == kind}
            self.style |= colours(sorted(held))

    def all(self) -> list[tuple[str, str, str]]:
        """(data set's name or empty, caption, SVG) of each plot that is not empty."""
        made = []
        for data, about in self.res.data.items():
            where = label(data, about)
            for caption, draw in (
                ("Recall and latency. Right and down is better; bars: lowest and highest round.", self.pareto),
                (
                    "All latencies at recall 0.95 or better: the share of questions answered within.",
                    self.spread,
                ),
                ("Filters: p50 at recall 0.95; hollow where no setting reaches it.", self.filters),
            ):
                svg = self._svg(partial(draw, data))
                made += [(where, caption, svg)] if svg else []
        for family in families(self.res):
            svg = self._svg(partial(self.growth, family))
            made += [("", f"Growth with the rows, {family}: p50 at recall 0.95 or better.", svg)] if svg else []
        return made

    def _svg(self, draw: Callable[[Any], bool]) -> str:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7.6, 4.3), layout="constrained")
        try:
            if not draw(axes):
                return ""
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
            held = io.StringIO()
            figure.savefig(held, format="svg", metadata={"Date": None})
            return held.getvalue().partition("<svg")[2].join(("<svg", ""))
        finally:
            plt.close(figure)

    def _own(self, engine: str) -> dict[str, Any]:
        colour, mark = self.style[engine]
        return {"color": colour, "marker": mark, "markersize": 4.5, "linewidth": 1.4, "label": engine}

    def pareto(self, data: str, axes: Any) -> bool:  # noqa: ANN401 - matplotlib's
        """Latency over recall, on a scale stretched towards recall 1."""
        drawn = False
        for engine in self.res.engines(data):
            sweep = [(f.recall, f.p50) for f in self.res.sweep(data, engine) if f.recall is not None and f.p50]
            sweep = [(recall, p50) for recall, p50 in sweep if recall >= 0.7]
            if not sweep:
                continue
            x = [_stretched(recall) for recall, _ in sweep]
            y = [p50.median for _, p50 in sweep]
            low = [p50.median - p50.low for _, p50 in sweep]
            high = [p50.high - p50.median for _, p50 in sweep]
            axes.errorbar(x, y, yerr=(low, high), capsize=2, elinewidth=0.8, **self._own(engine))
            drawn = True
        ticks = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
        axes.set_xticks([_stretched(t) for t in ticks], [f"{t:g}" for t in ticks])
        for goal in GOALS:
            axes.axvline(_stretched(goal), color="#888888", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel="recall@10", ylabel="p50, ms")
        return drawn

    def spread(self, data: str, axes: Any) -> bool:  # noqa: ANN401
        drawn = False
        for engine in self.res.engines(data):
            found = best(self.res, data, engine, GOALS[0])
            if found is None or not found.figure.quantiles:
                continue
            own = self._own(engine) | {"marker": ""}
            axes.plot(found.figure.quantiles[:100], range(100), **own)
            drawn = True
        axes.set(xscale="log", xlabel="ms", ylabel="% of questions")
        return drawn

    def filters(self, data: str, axes: Any) -> bool:  # noqa: ANN401
        names = ["patient", "modality", "1 %", "0.1 %"]
        drawn = False
        for engine in self.res.engines(data):
            known = [(place, f) for place, name in enumerate(names) if (f := self._filtered(data, engine, name))]
            if not known:
                continue
            colour, mark = self.style[engine]
            axes.plot([p for p, _ in known], [_p50(f) for _, f in known], color=colour, linewidth=1, label=engine)
            for place, f in known:
                full = (f.recall or 0) >= GOALS[0]
                axes.plot(place, _p50(f), marker=mark, color=colour, markerfacecolor=colour if full else "white")
            drawn = True
        axes.set_xticks(range(len(names)), names)
        axes.set(yscale="log", ylabel="p50, ms")
        return drawn

    def _filtered(self, data: str, engine: str, name: str) -> Figure | None:
        """The cheapest setting that reaches the first goal, or else the one with the highest recall."""
        found = best(self.res, data, engine, GOALS[0], name=name)
        sweep = self.res.sweep(data, engine, K, name)
        return found.figure if found else max(sweep, key=lambda f: f.recall or 0.0, default=None)

    def growth(self, family: str, axes: Any) -> bool:  # noqa: ANN401
        names, drawn = families(self.res)[family], False
        for engine in sorted({e for name in names for e in self.res.engines(name)}):
            found = [(self.res.data[name]["rows"], at_goal(self.res, name, engine)) for name in names]
            points = [(rows, at[0]) for rows, at in found if at]
            if len(points) > 1:
                axes.plot([n for n, _ in points], [v for _, v in points], **self._own(engine))
                drawn = True
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="p50, ms")
        return drawn


def _p50(figure: Figure) -> float:
    return figure.p50.median if figure.p50 else float("nan")


def _stretched(recall: float) -> float:
    """-log10 of the missing recall, plus 0.0005: halving what is missing moves a point by about the same distance."""
    import math

    return -math.log10(1 - recall + 0.0005)
