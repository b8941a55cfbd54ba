"""The `similis` command. Data goes to stdout, messages to stderr.

Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 conflict, 5 invalid input, 6 findings present, 130 interrupted.
"""

import functools
import importlib
import io
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.core import TyperGroup

from shared.config import Settings, complaint
from shared.errors import Conflict, Denied, Invalid, NotFound, SimilisError
from shared.version import software
from shared.wording import must

#: Each module adds its commands by `register(app)`.
ROOMS = (
    "processes",
    "ingest", "backfill", "search", "studies", "operations", "models", "generations", "quarantine", "letters", "rules",
    "erase", "sample", "demo", "keys", "audit", "doctor", "backup",
)  # fmt: skip

EXIT_CODES: dict[type[SimilisError], int] = {NotFound: 3, Conflict: 4, Invalid: 5, Denied: 1, SimilisError: 1}


class Commands(TyperGroup):
    """The commands; a wrong argument of any of them is refused in our own words."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer does not export its own type
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                error.message = must(error.__cause__.errors()[0], {})
            raise


app = typer.Typer(
    name="similis",
    cls=Commands,
    help="Find, in a hospital's own archive, the studies most like this one.",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 conflict, 5 invalid input, 6 findings, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"similis {software()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def exit_code(error: SimilisError) -> int:
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


@functools.cache
def rooms() -> typer.Typer:
    """The app with the commands of `ROOMS` and of other packages (entry points of the group `similis.commands`)."""
    for room in ROOMS:
        importlib.import_module(f"services.cli.{room}").register(app)
    for point in sorted(entry_points(group="similis.commands"), key=lambda point: point.name):
        point.load()(app)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - the caller closed it; open until the exit
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - ditto
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the terminal's encoding cannot show
    try:
        rooms()(args=argv)
    except SimilisError as error:
        sys.stderr.write(f"similis: {error}\n")
        raise SystemExit(exit_code(error)) from None
    except (ValidationError, SettingsError) as error:
        if isinstance(error, ValidationError) and error.title != Settings.__name__:
            raise
        sys.stderr.write(f"similis: the settings are wrong: {complaint(error)}\n")
        raise SystemExit(EXIT_CODES[Invalid]) from None
    except OSError as error:  # of this machine, such as a full disk or a folder without write permission
        sys.stderr.write(f"similis: {told(error)}\n")
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not _of_a_path(error):
            raise
        sys.stderr.write(f"similis: {error}\n")
        raise SystemExit(1) from None


def _of_a_path(error: RuntimeError) -> bool:
    """Whether pathlib raised this: it reports a loop of links and an unknown user's home as `RuntimeError`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pathlib")


def told(error: OSError) -> str:
    """The system's message with its file name; for a tree that could not be copied, the message of the first file."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][2])
    return f"{error.strerror or type(error).__name__}" + (f": {error.filename}" if error.filename else "")


if __name__ == "__main__":
    main()
