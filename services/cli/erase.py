"""`similis erase` for a study or a patient, and `similis tombstones replay` for a restored database."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from services.cli.client import Answer, Client, HomeFolder, connected, folder_of, part
from services.cli.terminal import AsJson, counted, say, tell, tell_json
from services.cli.waiting import watch
from shared.errors import NotFound


def register(app: typer.Typer) -> None:
    """Add the commands that erase."""
    app.command()(erase)
    room = typer.Typer(help="Tombstones: what was erased and must not come back.", no_args_is_help=True)
    room.callback()(lambda: None)  # else typer turns a group of one command into that command
    room.command()(replay)
    app.add_typer(room, name="tombstones")


@connected
def erase(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    study: Annotated[str | None, typer.Option(help="A StudyInstanceUID.")] = None,
    patient: Annotated[
        str | None, typer.Option(help="A PatientID, as in the DICOM headers; - reads it from stdin.")
    ] = None,
    issuer: Annotated[str, typer.Option(help="The patient's IssuerOfPatientID, if the headers have one.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Undo: allow the erased files to be taken in again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no index holds any of its data.")] = True,
    as_json: AsJson = False,
) -> None:
    """Erase a study or a patient: rows, vectors in every generation, pictures.

    Sent files are deleted, too; files of a scanned folder are not touched.

    Later scans refuse the erased files, until --lift allows them again.
    """
    if (study is None) == (patient is None):
        raise typer.BadParameter("name either a study or a patient", param_hint="--study, --patient")
    if patient == "-" and not (yes or lift or sys.stdin.isatty()):
        raise typer.BadParameter("no confirmation is possible when stdin is a pipe: add --yes", param_hint="--patient")
    where = "/v1/patients" if study is None else f"/v1/studies/{part(study)}"
    named = sys.stdin.readline().strip() if patient == "-" else patient
    who = {"patient_id": named, "issuer": issuer} if study is None else None
    if lift:
        answer = client.post(f"{where}:lift", json=who)
        _told(answer, f"{answer['tombstones']} tombstones are lifted; the next scan takes in the files again", as_json)
        return
    if not yes:
        typer.confirm(f"Erase this {'patient' if study is None else 'study'} for good?", abort=True, err=True)
    answer = client.post(f"{where}:erase", json=who) if study is None else client.delete(where)
    if wait:
        answer = _certified(client, answer)
    counts = answer["counts"]
    proof = (
        "no index holds any of its data"
        if answer["state"] == "succeeded"
        else f"removal from the indexes: {answer['state']}"
    )
    images, studies = counted(counts["images"], "image", "images"), counted(counts["studies"], "study", "studies")
    _told(answer, f"erased {images} of {studies}; {proof}", as_json)
    if wait and answer["state"] != "succeeded":
        raise typer.Exit(1)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file `tombstones` of a home or a backup.")],
    home: HomeFolder = None,
    as_json: AsJson = False,
) -> None:
    """Erase again, in a restored database, what the file names; run it before anything is served.

    It needs only the database, at the newest schema. The workers delete vectors and files once they run.
    """
    from services.embedded.attach import settings_of_running
    from shared.pipeline import tombstone_file
    from shared.runtime import Runtime

    if not file.is_file():
        raise NotFound("there is no such tombstone file")
    folder = folder_of(home)
    with closing(Runtime(settings_of_running(folder))) as runtime, runtime.transaction() as db:
        erased = tombstone_file.replay(db, file, runtime.rules.secret)
    _told({"images": erased}, f"{erased} images are erased again", as_json)


def _certified(client: Client, answer: Answer) -> Answer:
    try:
        return watch(client, str(answer["id"]), "points deleted")
    except KeyboardInterrupt:
        say(f"\nit is erased; `similis operations show {answer['id']}` shows when no index holds any of its data")
        raise typer.Exit(130) from None


def _told(answer: Answer, line: str, as_json: bool) -> None:
    if as_json:
        tell_json(answer)
    else:
        tell(line)
