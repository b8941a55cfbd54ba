"""The table type of the report, and the text of its cells."""

from dataclasses import dataclass
from typing import Final

from benchmarks.latency.summary import GOALS, AtRecall, Figure, Results, best, short
from benchmarks.report import Spread

Row = list[str]
ENOUGH: Final = 100  #: questions in every round: with fewer, the 99th percentile is the slowest question


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    note: str
    head: Row
    rows: list[Row]
    best: int | None = None  #: the column whose least value is highlighted


def label(name: str, about: dict[str, object]) -> str:
    """A data set's name in the report."""
    kind = "hash codes of {} bits" if about["kind"] == "codes" else "x {}"
    shape = f"{about['rows']:,} " + kind.format(f"{about['dim']:,}" if about["kind"] != "codes" else about["dim"])
    if name.startswith(("clustered", "codes")):
        return shape
    return f"{name.partition(':')[0]}: {shape}"


def spread(value: Spread | None) -> str:
    """The median, with the lowest and the highest round."""
    if value is None:
        return "-"
    return f"{short(value.median)} ({short(value.low)} to {short(value.high)})"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def p99(figure: Figure) -> str:
    """The 99th percentile, or "-" with fewer than `ENOUGH` questions in a round."""
    return spread(figure.p99) if figure.least >= ENOUGH else "-"


def latency(figure: Figure) -> Row:
    """Percentiles, and the number of questions."""
    return [spread(figure.p50), spread(figure.p95), p99(figure), f"{figure.n:,}"]


def setting(res: Results, figure: Figure) -> str:
    return figure.effort or ("exact" if figure.engine in res.exact(figure.data) else "-")


def even(res: Results, data: str, engine: str, k: int, name: str) -> str:
    """Milliseconds interpolated to the first goal and the setting that reaches it, or the highest recall measured."""
    found: AtRecall | None = best(res, data, engine, GOALS[0], k, name)
    if found is not None:
        if engine in res.exact(data):  # one setting, so nothing to interpolate
            return short(found.ms.median)
        return f"{found} · {found.figure.effort}" if found.figure.effort else f"{found}"
    shares = [f.recall for f in res.sweep(data, engine, k, name) if f.recall is not None]
    return f"ends at {max(shares):.3f}" if shares else "-"
