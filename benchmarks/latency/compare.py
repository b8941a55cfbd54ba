"""Comparison of two runs: which latencies changed by more than their spread."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.latency.summary import Figure, Results, read
from benchmarks.report import table

APART = 1.1  #: medians closer than this ratio count as the same, even if the rounds do not overlap
CHANGED = ("slower", "faster")


def compared(before: Path, after: Path) -> Iterator[str]:
    """Lines of Markdown for the single questions that both runs measured on the same vectors, changed ones first.

    A latency has changed if its medians differ by more than a tenth and the ranges of its rounds do not overlap. Of one
    round there is no range, so nothing is said.
    """
    first, second = map(read, (before, after))
    pairs = [(a, b) for key, a in _singles(first).items() if (b := _singles(second).get(key))]
    yield f"{before.name}: {_place(first)}"
    yield f"{after.name}: {_place(second)}"
    rows = sorted((_row(a, b) for a, b in pairs), key=lambda row: (row[0] not in CHANGED, row[1:]))
    yield from table(
        ["", "data", "engine", "setting", "k", "filter", "p50 before", "p50 after", "ratio", "recall"], rows
    )
    moved = sum(row[0] in CHANGED for row in rows)
    yield f"{moved} of {len(rows)} moved by more than their spread."


def _place(res: Results) -> str:
    line = res.environments[-1]
    return f"{line['date']}, commit {line['commit']}, {line['machine']}"


def _singles(res: Results) -> dict[tuple[object, ...], Figure]:
    return {
        (f.data, res.data[f.data].get("content"), f.engine, f.effort, f.k, f.filter): f
        for f in res.figures
        if f.what == "single" and f.p50
    }


def _row(a: Figure, b: Figure) -> list[str]:
    assert a.p50 is not None  # noqa: S101 - `_singles` returns only figures with p50
    assert b.p50 is not None  # noqa: S101
    ratio = b.p50.median / a.p50.median if a.p50.median else float("inf")
    verdict = "same"
    if min(a.rounds, b.rounds) == 1:
        verdict = "one round"
    elif ratio > APART and b.p50.low > a.p50.high:
        verdict = "slower"
    elif ratio < 1 / APART and b.p50.high < a.p50.low:
        verdict = "faster"
    shares = f"{a.recall:.3f} → {b.recall:.3f}" if a.recall is not None and b.recall is not None else "-"
    return [verdict, a.data, a.engine, a.effort, str(a.k), a.filter, str(a.p50), str(b.p50), f"{ratio:.2f}", shares]
