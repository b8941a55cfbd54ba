"""`similis bench run`, `compare`, `report`: loaded as an entry point, so the platform does not import benchmarks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from shared.errors import Invalid

if TYPE_CHECKING:  # these modules import numpy
    from benchmarks.latency.profiles import Profile
    from benchmarks.latency.runner import Say

bench = typer.Typer(
    help="Measure vector engines on this machine: FAISS, Qdrant, and the platform's own.", no_args_is_help=True
)
FINDINGS = 6  #: exit code: an exact engine returned a result that is not exact


def register(app: typer.Typer) -> None:
    """Add the commands that measure engines."""
    app.add_typer(bench, name="bench")


@bench.command()
def run(  # noqa: PLR0913 - one parameter per option
    *,
    profile: Annotated[str, typer.Option(help="smoke (2 minutes), laptop (45 minutes), full (a night).")] = "laptop",
    engines: Annotated[str, typer.Option(help="Names with wildcards, separated by commas.")] = "*",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND:..., as clustered:1024:10000, codes:256:10000, file:PATH, real:FOLDER@MODEL, or "
            "`profile` for the profile's own. Repeatable."
        ),
    ] = None,
    from_similis: Annotated[str, typer.Option(help="Also the published vectors of this home, or database URL.")] = "",
    qdrant_url: Annotated[str, typer.Option(help="Also this Qdrant server: http://host:GRPC-PORT.")] = "",
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("bench-results"),
    scratch: Annotated[Path | None, typer.Option(help="Vectors and indexes, kept. Default: in the results.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: the profile's.")] = None,
    anew: Annotated[bool, typer.Option(help="Forget the results that stand there.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the results that stand there.")] = False,
) -> None:
    """Measure; write raw.jsonl and report.html, .md and .csv to --out. Exit code 6: an exact engine is not exact."""
    from benchmarks.latency import raw, runner

    if qdrant_url:
        from benchmarks.latency.engines.qdrant_server import URL

        os.environ[URL] = qdrant_url  # child processes open its engines
    wanted = chosen(profile, [*(data or ["profile"]), *([f"similis:{from_similis}"] if from_similis else [])])
    wanted = replace(wanted, rounds=rounds or wanted.rounds)
    if anew:
        raw.forget(out)
    patterns = [pattern.strip() for pattern in engines.split(",")]
    with progress() as say:
        outcome = runner.run(wanted, out, patterns, say, scratch=scratch or out / "scratch", resume=resume)
    for what, lines in (("skipped", outcome.skipped), ("failed", outcome.failed), ("NOT EXACT", outcome.different)):
        for line in lines:
            sys.stderr.write(f"{what}: {line}\n")
    report(out)
    if outcome.different:
        raise typer.Exit(FINDINGS)
    if outcome.failed:
        raise typer.Exit(1)


@bench.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where raw.jsonl stands.")]) -> None:
    """Write report.html, report.md and report.csv again, from the raw results alone."""
    from benchmarks.latency.report import write

    for path in write(folder):
        typer.echo(str(path))


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A folder that `bench run` has written.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print what both runs measured: how much slower B is than A, and whether that exceeds the spread of the rounds."""
    from benchmarks.latency.compare import compared

    for line in compared(before, after):
        typer.echo(line)


def chosen(name: str, data: list[str]) -> "Profile":
    """The named profile, with its data sets replaced by `data` if any are given.

    Raises: `Invalid`, also for a URL with a password, because the results name their data.
    """
    from benchmarks.latency.profiles import PROFILES, Set

    if name not in PROFILES:
        raise Invalid(f"there is no profile {name}; there are {', '.join(PROFILES)}")
    profile = PROFILES[name]
    sets: list[Set] = []
    for one in data:
        address = urlsplit(one.partition(":")[2])
        if address.password or "password=" in address.query:
            raise Invalid("leave the password out of the URL: the database's client reads it from PGPASSWORD")
        sets += profile.sets if one == "profile" else [Set(data=one)]
    return replace(profile, sets=tuple(sets))


def _line(text: str, part: float) -> None:
    sys.stderr.write(f"{part:4.0%}  {text}\n")


@contextmanager
def progress() -> "Iterator[Say]":
    """A progress bar on stderr, or one line per step if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, part: bar.update(task, description=text, completed=part)
