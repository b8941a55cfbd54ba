"""`similis rules`: checks a site's admission rules and tries them on files before they are in force."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from services.cli.terminal import AsJson, err, table, tell, tell_json
from shared.errors import Rejected

File = Annotated[Path, typer.Argument(metavar="RULES", help="A TOML file with [[rule]] tables.")]


def register(app: typer.Typer) -> None:
    """Add the commands about admission rules."""
    room = typer.Typer(
        help="Admission rules: which images are accepted, quarantined, discarded or refused.", no_args_is_help=True
    )
    room.command()(check)
    room.command("try")(dry_run)
    app.add_typer(room, name="rules")


def check(rules: File, as_json: AsJson = False) -> None:
    """Read the file and list its rules. Exit 5, naming the rule, if one is wrong."""
    from shared.pipeline import admission

    found = admission.read(rules).rules
    if as_json:
        tell_json({"rules": [{"name": r.name, "when": dict(r.when), "then": r.then} for r in found]})
        return
    rows = [(r.name, r.then, ", ".join(f"{k} = {' | '.join(v)}" for k, v in r.when.items()) or "always") for r in found]
    table(("rule", "then", "when"), rows)


def dry_run(
    rules: File,
    folder: Annotated[Path, typer.Argument(help="A folder with files; nothing is taken in.")],
    *,
    source: Annotated[str, typer.Option(help="As if they came by folder, dicom, stow, backfill or store.")] = "folder",
    sender: Annotated[str, typer.Option(help="As if this AE title, or this key, had sent them.")] = "",
    called: Annotated[str, typer.Option(help="As if they had called this AE title.")] = "",
    each: Annotated[bool, typer.Option("--each", help="Name every file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the rules would do with the files of a folder."""
    from shared.imaging.sandbox import Sandbox
    from shared.pipeline import admission, receive, scan

    if source not in admission.SOURCES:
        raise typer.BadParameter(f"one of {', '.join(admission.SOURCES)}", param_hint="--source")
    found = admission.read(rules)
    told: list[tuple[str, str, str]] = []
    paths = [Path(os.fsdecode(seen.path)) for seen in scan.see(folder)]
    with Sandbox() as sandbox:
        batches = range(0, len(paths), receive.BATCH)
        silent = not err().is_terminal  # else a pipe gets an empty line
        for at in track(batches, "reading headers", console=err(), transient=True, disable=silent):
            some = paths[at : at + receive.BATCH]
            for path, looked in zip(some, sandbox.inspect_many(some), strict=True):
                if isinstance(looked, Rejected):
                    told.append((str(path.relative_to(folder)), "no study object", looked.reason))
                    continue
                action, name = found.decide(looked.header, source=source, sender=sender, called=called)
                told.append((str(path.relative_to(folder)), action, name))
    counts = Counter((action, name) for _, action, name in told)
    if as_json:
        files = [{"file": file, "then": action, "rule": name} for file, action, name in told] if each else []
        tell_json({"counts": [{"then": a, "rule": n, "files": c} for (a, n), c in counts.items()], "files": files})
        return
    if each:
        table(("file", "then", "rule"), told)
    table(("then", "rule", "files"), [(a, n or "none fits", c) for (a, n), c in counts.items()], right=("files",))
    tell(f"{len(told)} files; nothing was taken in")
