"""report.html, report.md and report.csv from raw lines, each self-contained; nothing is measured."""

import csv
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.latency.cells import Table, label
from benchmarks.latency.plots import Pictures
from benchmarks.latency.summary import Figure, Results, read
from benchmarks.latency.tables import tables

Json = dict[str, Any]
STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c1c1c;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .2rem}p{margin:.3rem 0}
.note{color:#555;font-size:.86rem}
table{border-collapse:collapse;font-size:.84rem;margin:.5rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;border-bottom:1px solid #e4e4e4;vertical-align:top}
th{font-weight:600;color:#444}td{white-space:nowrap}
td:last-child,.pick td:nth-child(3){white-space:normal}.scroll{overflow-x:auto}
tr.best td{font-weight:600;background:#eef6ee}.bad{color:#a11;font-weight:600}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}figcaption{color:#444;font-size:.86rem}
details{margin:1.4rem 0}summary{cursor:pointer;font-weight:600;font-size:1.05rem}.pick td:nth-child(2){font-weight:700}
"""


def write(folder: Path) -> list[Path]:
    """The three files stand beside the raw results. Raises: `NotFound`, `Invalid`."""
    res = read(folder)
    made = {
        "report.html": _html(res),
        "report.md": "\n".join(_markdown(res)) + "\n",
    }
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    with (folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_csv(res))
    return [folder / name for name in (*made, "report.csv")]


def circumstances(res: Results) -> list[str]:
    """Date, machine, versions and notes; once for each part of a resumed run."""
    said = []
    for line in res.environments:
        versions = ", ".join(f"{name} {number}" for name, number in line["versions"].items())
        said += [
            f"{line['date']}, commit {line['commit']}, `{line['command']}`",
            f"{line['machine']}; FAISS: {line['faiss_compiled']}; load average before: {line['load_average_before']}",
            f"{versions}; threads: {line['threads']}; {_blas(line)}",
        ]
    rounds = max((f.rounds for f in res.figures), default=0)
    said.append(f"{rounds} rounds, the engines in another order in each; figures are median (lowest to highest round)")
    if res.load:
        said.append(f"Load average while measuring: {res.load}")
    return [*dict.fromkeys(said), *res.notes, *NOTES]


NOTES: Final = (
    "Each engine and round in a process of its own, one thread to search with; waits are those of a Python caller.",
    "Answers are row numbers; of similis-* also one payload field. CPU ms is the caller's own: similis-* has more.",
    "Rows have unit length. edge-*: one optimised segment, integer payload indexes (patient without links), no WAL.",
    "faiss-ivfpq is re-ranked by float32 rows, edge's copies are re-scored by them; faiss-sq8 is not.",
    "All quantiles are in raw.jsonl; a 95 % interval of each p50 (bootstrap of rounds and questions) in report.csv.",
)


def _blas(line: Json) -> str:
    found = [" ".join(str(value) for value in one.values()) for one in line.get("blas", [])]
    return f"kernels: {', '.join(dict.fromkeys(found))}"


def troubles(res: Results) -> list[str]:
    """What the tables leave out, and why."""
    wrong = [f"{e} on {d} is NOT EXACT: its figures are left out" for d, e in sorted(res.wrong())]
    failed = [f"{line['engine']} on {line['data']} failed ({line['step']}): {line['why']}" for line in res.failed]
    skipped = [f"{line['engine']} on {line['data']} skipped: {line['why']}" for line in res.skipped]
    return list(dict.fromkeys(wrong + failed + skipped))


def _html(res: Results) -> str:
    first, *rest = tables(res)
    by_data: dict[str, list[str]] = {where: [] for where in (*(label(n, a) for n, a in res.data.items()), "")}
    for where, caption, svg in Pictures(res).all():
        by_data[where].append(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")
    for table in rest:
        by_data[table.title.partition(": ")[2]].append(_table(table))
    vectors = [about for about in res.data.values() if about["kind"] == "vectors"]
    shown = {"", label(most["data"], most) if (most := max(vectors, key=_size, default=None)) else ""}
    sections = "".join(
        f"<details{' open' if name in shown else ''}><summary>{html.escape(name or 'All data')}</summary>"
        f"{''.join(held)}</details>"
        for name, held in by_data.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Vector engines, measured</title><style>{STYLE}</style><h1>Vector engines, measured</h1>"
        f'<p class="note">{html.escape(res.environments[-1]["machine"])}</p>'
        f'<div class="pick">{_table(first)}</div>{_wrong(res)}<h2>Data set by data set</h2>{sections}'
        f"<h2>How it was measured</h2>{_list(circumstances(res))}"
        f"<h2>What is left out</h2>{_list(troubles(res))}</html>\n"
    )


def _size(about: Json) -> int:
    return int(about["rows"])


def _wrong(res: Results) -> str:
    wrong = [line for line in troubles(res) if "NOT EXACT" in line]
    return "".join(f'<p class="bad">{html.escape(line)}</p>' for line in wrong)


def _list(lines: list[str]) -> str:
    return "<ul class=note>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    body = ""
    for number, row in enumerate(table.rows):
        kind = ' class="best"' if table.best is not None and number == 0 else ""
        body += f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    if not table.rows:
        return ""
    return (
        f"<h2>{html.escape(table.title)}</h2><p class=note>{html.escape(table.note)}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    )


def _markdown(res: Results) -> Iterator[str]:
    yield "# Vector engines, measured"
    for table in tables(res):
        if table.rows:
            yield from ["", f"## {table.title}", "", table.note, "", *report.table(table.head, table.rows)]
    yield from ["", "## How it was measured", "", *(f"- {line}" for line in circumstances(res))]
    if troubles(res):
        yield from ["", "## What is left out", "", *(f"- {line}" for line in troubles(res))]


_SPREADS: Final = ("p50", "p95", "p99", "per_s", "cpu_ms", "engine_ms", "rate_per_s", "floor_ms")


def _csv(res: Results) -> Iterator[list[object]]:
    names = ("data", "engine", "what", "effort", "k", "filter", "clients", "rate", "rounds", "n", "recall")
    yield [
        "shape",
        *names,
        "p50_from",
        "p50_to",
        *(f"{name}_{part}" for name in _SPREADS for part in ("median", "low", "high")),
    ]
    for figure in res.figures:
        spreads = [_spread(figure, name, part) for name in _SPREADS for part in ("median", "low", "high")]
        own = [getattr(figure, name) for name in names]
        yield [label(figure.data, res.data[figure.data]), *("" if cell is None else cell for cell in own),
               *(figure.p50_interval or ("", "")), *spreads]  # fmt: skip


def _spread(figure: Figure, name: str, part: str) -> object:
    value = getattr(figure, name)
    return "" if value is None else getattr(value, part)
