"""Write a report as CSV, JSON, Markdown and plots."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Conflict
from shared.metrics.bootstrap import Interval
from shared.training import pictures
from shared.training.evaluate import Report, Run
from shared.training.figures import ALL, Difference, Figure, Vote, differences, figures, per_class, votes


def write(report: Report, folder: Path, vectors: NDArray[Any] | None = None, against: Report | None = None) -> None:
    """Write the report to the folder: report.md, report.json, figures.csv, votes.csv, classes.csv, and plots.

    Args:
        vectors: (n, dim) embeddings of the subjects, for the PCA and t-SNE plots.
        against: the report of another model on the same images; adds differences.csv.

    Raises:
        Conflict: there is a report in the folder.
        Invalid: the two reports are not of the same images, or have no distance in common.
    """
    if (folder / "report.json").exists():
        raise Conflict("the folder holds a report already")
    compared = [] if against is None else differences(report, against)
    folder.mkdir(parents=True, exist_ok=True)
    rows, voted, classes = figures(report), votes(report), per_class(report)
    _csv(folder / "figures.csv", [_flat(row) for row in rows])
    _csv(folder / "votes.csv", [_flat(row) for row in voted])
    _csv(folder / "classes.csv", classes)
    if compared:
        _csv(folder / "differences.csv", [_flat(row) for row in compared])
    pictures.curves(rows, report.plan.ks, folder / "precision_at_k.png")
    drawn = {} if vectors is None else pictures.maps(report.subjects, vectors, folder)
    facts = {"about": dict(report.about), "data": _data(report), "pictures": drawn}
    tables = {"figures": [_flat(r) for r in rows], "votes": [_flat(r) for r in voted], "classes": classes}
    if against is not None:
        facts["against"] = dict(against.about)
        tables["differences"] = [_flat(row) for row in compared]
    lines = [*markdown(report, rows, voted, classes, drawn)]
    if against is not None:
        lines += _differences(compared, str(against.about.get("model", "another model")))
    # the command may contain a folder name that is not UTF-8
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    # written last: a folder with report.json holds a complete report
    (folder / "report.json").write_text(json.dumps(_plain(facts | tables), indent=1) + "\n", encoding="utf-8")


def markdown(
    report: Report,
    rows: Sequence[Figure],
    voted: Sequence[Vote],
    classes: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, Any],
) -> Iterator[str]:
    """Yield the report's lines: data, a table for each run and its parts, classes, votes."""
    yield from (f"# Retrieval: {report.subjects.name}", "")
    yield from (f"- {key}: {value}" for key, value in (_data(report) | dict(report.about)).items())
    yield from ("", _HOW, "", "## All protocols", "", *_summary(report, rows), "")
    for run in report.runs:
        yield from _run_table(run, [r for r in rows if (r.protocol, r.space) == (run.protocol, run.space)])
    yield from ("## Classes", "")
    if classes:
        shown = [
            name for name in ("protocol", "space", "class", "queries", "P@10", "nDCG@10", "mAP") if name in classes[0]
        ]
        shown += [f"random {name}" for name in ("P@10", "mAP") if f"random {name}" in classes[0]]
        yield from table(shown, ([_shown(row[name]) for name in shown] for row in classes))
    yield from ("", "## Votes of the nearest", "")
    heads = [f.name for f in fields(Vote)]
    yield from table(heads, ([_shown(getattr(row, name)) for name in heads] for row in voted))
    yield from ("", "## Pictures", "", "![P@k by k](precision_at_k.png)")
    yield from (f"![{name}]({name}.png) {said}" for name, said in drawn.items())
    yield ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


_HOW = (
    "Intervals: 95 %, percentile bootstrap over patients (all queries of a patient together, over all seeds). Random: "
    "the expectation for a random order of each query's own gallery; majority: the gallery's commonest class first. "
    "Lift: figure over random. Figures of tied distances are expectations over all orders of the ties. P@k is always "
    "over k. `nDCG_retrieved_ideal` is the papers' own and not standard. Queries without a relevant item are in no "
    "mean."
)


def _summary(report: Report, rows: Sequence[Figure]) -> Iterator[str]:
    k = 10 if 10 in report.plan.ks else report.plan.ks[0]
    wanted = (f"P@{k}", f"nDCG@{k}", "mAP")
    head = ("protocol", "space", "figure", "micro", "random", "majority", "lift", "macro", "random", "majority", "lift")
    whole = [row for row in rows if row.part == ALL and row.name in wanted]
    yield from table(head, ((_heading(row), row.space, *_line(row)[:9]) for row in whole))


def _heading(row: Figure | Difference) -> str:
    return f"{row.protocol} (LEAKS)" if row.leaks else row.protocol


def _run_table(run: Run, rows: Sequence[Figure]) -> Iterator[str]:
    leak = " (LEAKS by design: a query may meet its own patient)" if run.leaks else ""
    yield from (f"## {run.protocol}, {run.space}{leak}", "")
    low, high = run.gallery
    whole = [row for row in rows if row.part == ALL]
    seeds = whole[0].seeds
    yield (
        f"{whole[0].queries} queries of {whole[0].patients} patients over {seeds} seed{'s' * (seeds > 1)}, "
        f"{whole[0].unanswerable} without a relevant item; gallery {low}{f' to {high}' * (high > low)}"
        + "".join(f"; {name} {count}" for name, count in run.codes.items())
    )
    head = (
        "figure",
        "micro",
        "random",
        "majority",
        "lift",
        "macro",
        "random",
        "majority",
        "lift",
        "sd of seeds",
        "short lists",
    )
    yield from ("", *table(head, (_line(row) for row in whole)), "")
    parts = [row for row in rows if row.part != ALL and row.name in {"P@10", "nDCG@10", "mAP"}]
    if parts:
        columns = ("part", "queries", "patients", "figure", "micro", "random", "majority", "macro", "random")
        cells = (
            (r.part, r.queries, r.patients, r.name, r.micro, _shown(r.random_micro), _shown(r.majority_micro), r.macro,
             _shown(r.random_macro)) for r in parts
        )  # fmt: skip
        yield from (*table(columns, cells), "")


def _line(row: Figure) -> tuple[object, ...]:
    sd = "" if math.isnan(row.sd_micro) else f"{row.sd_micro:.3f} / {row.sd_macro:.3f}"
    return (
        row.name, row.micro, _shown(row.random_micro), _shown(row.majority_micro), _shown(row.lift_micro),
        row.macro, _shown(row.random_macro), _shown(row.majority_macro), _shown(row.lift_macro), sd, row.short or "",
    )  # fmt: skip


def _differences(rows: Sequence[Difference], other: str) -> Iterator[str]:
    yield from (f"## Minus {other}", "")
    yield "On the same queries; 95 % over patients; p: sign flips over patients, by Holm for all rows; effect: d_z."
    head = ("protocol", "space", "figure", "mean", "difference", "p", "effect")
    cells = (
        (_heading(row), row.space, row.name, row.mean, row.difference, f"{row.p:.4f}", f"{row.effect:.2f}")
        for row in rows
    )
    yield from ("", *table(head, cells), "")


def _data(report: Report) -> dict[str, Any]:
    subjects = report.subjects
    counts = np.bincount(subjects.labels, minlength=len(subjects.classes))
    return {
        "images": len(subjects),
        "patients or groups": len(np.unique(subjects.groups)),
        "classes": {title: int(count) for title, count in zip(subjects.classes, counts, strict=True)},
        "note": subjects.note,
        "seeds of the splits": list(report.plan.seeds),
        "bootstrap": f"{report.plan.resamples} resamples, seed 0",
        "principal components": report.plan.components or "none",
    }


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _flat(row: Figure | Vote | Difference) -> dict[str, Any]:
    """Return the row's fields; an interval becomes three fields."""
    flat: dict[str, Any] = {}
    for name, value in ((f.name, getattr(row, f.name)) for f in fields(row)):
        if isinstance(value, Interval):
            flat |= {name if key == "mean" else f"{name}_{key}": number for key, number in asdict(value).items()}
        else:
            flat[name] = value
    return flat


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return the value with null for NaN, which is not valid JSON, and floats rounded to six digits."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
