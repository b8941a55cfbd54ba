"""`similis backup` and `similis restore` for the home of an installation on this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.client import HomeFolder, folder_of
from services.cli.terminal import AsJson, counted, say, tell, tell_json

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the backup.")]


def register(app: typer.Typer) -> None:
    """Add the commands `backup` and `restore`."""
    app.command()(backup)
    app.command()(restore)


def backup(
    folder: Folder,
    home: HomeFolder = None,
    as_json: AsJson = False,
) -> None:
    """Back up the database, sent files, models, tombstones and the pseudonym key into a new folder.

    Intake may go on meanwhile. Protect the folder like the images: it holds the key and the files that came by
    C-STORE, STOW or backfill. It holds neither vectors nor the files of scanned folders.
    """
    from services.embedded import backup as backups

    manifest = backups.backup(folder_of(home), folder, say)
    if as_json:
        tell_json(manifest)
        return
    counts = manifest["counts"]
    images, studies = counted(counts["image"], "image", "images"), counted(counts["study"], "study", "studies")
    tell(f"kept {images} of {studies} in {folder}: {size_of(manifest) / 1e6:.1f} MB")


def size_of(manifest: Mapping[str, Any]) -> int:
    """Total bytes of the backup, including the sent files."""
    kept: int = sum(one["bytes"] for one in manifest["files"].values()) + manifest["blobs"]["bytes"]
    return kept


def restore(
    folder: Folder,
    home: Annotated[Path, typer.Option(help="The home to create; it must be empty or absent.")],
    tombstones: Annotated[
        Path | None,
        typer.Option(help="The file `tombstones` of the lost home; it lists what was erased after the backup."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Afterwards compare every file and every vector.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a home from a backup and write its vectors again from the encodings. Exit 6 if the checks find a mismatch.

    Images that were erased after the backup are erased again before anything is served.
    """
    from services.cli.doctor import FINDINGS, show
    from services.embedded import backup as backups

    done = backups.restore(folder, home, say, tombstones=tombstones, verify=verify)
    if as_json:
        tell_json(asdict(done))
    else:
        tell(f"restored to {home}: {done.points} points written, {done.erased} images erased again")
        if verify or done.findings:
            show(done.findings)
    if done.findings:
        raise typer.Exit(FINDINGS)
