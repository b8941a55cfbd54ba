"""`similis ingest`: registers a folder in place; the server encodes its images and makes them searchable."""

import shlex
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args

import typer

from services.cli.client import Answer, Client, connected, given, part
from services.cli.follow import follow, summarise
from services.cli.terminal import AsJson, say, tell, tell_json
from shared.datasets.names import DatasetName
from shared.errors import SimilisError


def register(app: typer.Typer) -> None:
    """Add the command `ingest`."""
    app.command()(ingest)


@connected
def ingest(
    client: Client,
    path: Annotated[Path, typer.Argument(help="A folder or a file, as the server sees it.", show_default=False)],
    labels: Annotated[
        Path | None, typer.Option(help="A CSV table: study, laterality, view, BI-RADS, density, pathology ...")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help=f"The folder is a download of a published set: {', '.join(get_args(DatasetName))}."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep watching the folder and take in new files.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every image is searchable.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take in a folder of DICOM, PNG or JPEG files, in place; running it twice changes nothing.

    Refused files do not stop it: the summary counts them, and `similis operations files` names them.
    Exit 1 when the operation itself failed.
    """
    answer = begin(client, path, labels, dataset, watch=watch)
    if watch and wait:
        say("watching; Ctrl-C ends only this view, the server goes on")
    attend(client, answer, wait=wait, as_json=as_json, left=0 if watch else 130)


def begin(
    client: Client, path: Path, labels: Path | None = None, dataset: str | None = None, *, watch: bool = False
) -> Answer:
    """Start the scan and return its operation."""
    asked = given(path=absolute(path), labels=absolute(labels), dataset=dataset, watch=watch)
    # the Idempotency-Key lets the client retry after a lost response without starting a second scan
    return client.post("/v1/ingest/scans", json=asked, headers={"Idempotency-Key": str(uuid.uuid4())})


def absolute(path: Path | None) -> str | None:
    """The path as a server on this machine can open it; None for None."""
    return None if path is None else str(path.expanduser().resolve())


def attend(client: Client, answer: Answer, *, wait: bool, as_json: bool, left: int = 130) -> None:
    """Follow the operation to its end and report it, or without `wait` print its id; Ctrl-C exits with `left`."""
    operation_id = str(answer["id"])
    if not wait:
        if as_json:
            tell_json(answer)
        else:
            tell(operation_id)
        say(f"follow it with `similis operations show {operation_id} --follow`")
        return
    try:
        answer = follow(client, operation_id)
    except KeyboardInterrupt:
        say(
            f"\nthe server goes on with operation {operation_id}\n"
            f"  follow it:  similis operations show {operation_id} --follow\n"
            f"  cancel it:  similis operations cancel {operation_id}"
        )
        raise typer.Exit(left) from None
    report(answer, as_json=as_json)
    with suppress(SimilisError):  # a key without the scope `read` gets no advice
        model = str(client.get("/readyz")["model"])
        advise(model, client.get(f"/v1/models/{part(model)}/calibrations")["wanting"])


def report(answer: Answer, *, as_json: bool) -> None:
    """Print the ended operation; exit 1 unless it succeeded."""
    if as_json:
        tell_json(answer)
    else:
        summarise(answer)
    if answer["state"] != "succeeded":
        raise typer.Exit(1)


def advise(model: str, wanting: Mapping[str, int]) -> None:
    """Print, for each modality that lacks thresholds from this archive, the command that calibrates it."""
    for modality, count in sorted(wanting.items()):
        command = f"similis quarantine calibrate --model {shlex.quote(model)} --modality {shlex.quote(modality)}"
        say(
            f"gate 3 has no thresholds from these {count} {modality} images and stops few of them; calibrate: {command}"
        )
