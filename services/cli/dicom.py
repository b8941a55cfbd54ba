"""`similis dicom`: the receiver of C-STORE, as a process of its own."""

from typing import Annotated

import typer

from services.cli.processes import become
from shared.config import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dicom)


def dicom(
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 0 if the receiver of this home answers a C-ECHO, else 1; start nothing."),
    ] = False,
) -> None:
    """Receive images over the DICOM network in this process and its children."""
    from services.embedded import commands

    if check:
        from services.dicom import echo

        settings = Settings()
        raise typer.Exit(0 if echo.answers(settings.home, settings.dicom.ae_title) else 1)
    become(commands.dicom())
