"""`similis sample`: writes a synthetic archive for trials."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.terminal import AsJson, err, tell, tell_json
from shared.errors import Unavailable

Folder = Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)]
Studies = Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of studies, of four images each.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same archive.")]


class Size(StrEnum):
    SMALL = "small"
    FULL = "full"


def sample(
    folder: Folder,
    studies: Studies = 20,
    seed: Seed = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Explicit VR Little Endian only.")] = False,
    size: Annotated[Size, typer.Option(help="1024 x 800 or 2294 x 1914 pixels.")] = Size.SMALL,
    as_json: AsJson = False,
) -> None:
    """Write synthetic four-view mammography studies with labels, beside real and broken DICOM files."""
    from shared.datasets.archive import LABELS, count_by, write_archive

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=err(), disable=not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("studies", total=studies)
            records = write_archive(
                folder, studies, seed, lambda done, _: bar.update(task, completed=done), size=size.value, plain=plain
            )
    except OSError as error:
        raise Unavailable(f"the archive cannot be written: {error.strerror}") from None
    summary = {
        "folder": str(folder),
        "labels": str(folder / LABELS),
        "studies": studies,
        "patients": len({record.patient for record in records}),
        "images": len(records),
        "other": sum(1 for _ in (folder / "other").iterdir()),
        "broken": sum(1 for _ in (folder / "broken").iterdir()),
        **{name: count_by(records, name) for name in ("birads", "density", "lesion")},
    }
    if as_json:
        tell_json(summary)
        return
    for name, value in summary.items():
        text = "  ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        tell(f"{name:<9}{text}")


def register(app: typer.Typer) -> None:
    app.command("sample")(sample)
