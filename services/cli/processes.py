"""`similis up`, `status` and `down`, and the single processes of a stack for production."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.client import HomeFolder, folder_of
from services.cli.terminal import AsJson, tell, tell_json
from services.embedded.home import Home, private
from services.embedded.production import lives, write_secrets
from shared.config import Settings
from shared.errors import Denied, Invalid

Check = Annotated[bool, typer.Option("--check", help="Exit 0 if such a process is alive, else 1; start nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands that run or stop processes."""
    app.command()(up)
    app.command()(status)
    app.command()(down)
    app.command()(api)
    app.command()(worker)
    app.command()(beat)
    app.command()(dicom)
    app.command()(vectors)
    app.command()(migrate)
    app.command()(secrets)


def up(
    home: HomeFolder = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=0, help="Ingest workers; 0 means one for each core.")] = 0,
    auth: Annotated[bool, typer.Option("--auth/--no-auth", help="Ask callers for an API key.")] = True,
    dicom: Annotated[bool, typer.Option("--dicom/--no-dicom", help="Also receive over the DICOM network.")] = True,
    dicom_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 picks a free one. [default: 11112]", show_default=False)
    ] = None,
) -> None:
    """Start the embedded stack and keep serving; Ctrl-C stops everything in order."""
    from services.embedded.stack import Options, serve

    receiving = Settings().dicom
    called = (receiving.port if dicom_port is None else dicom_port) if dicom else None
    try:
        serve(Options(folder_of(home), host, port, workers, auth, called, receiving.host), ready=typer.echo)
    except Denied as error:
        raise typer.BadParameter(str(error)) from None


def status(home: HomeFolder = None, as_json: AsJson = False) -> None:
    """Show the processes and whether the API is ready; exit 3 where nothing runs."""
    found = _status(folder_of(home))
    if as_json:
        tell_json(found)
    else:
        tell("\n".join(_lines(found)))
    if not found["running"]:
        raise typer.Exit(3)


def down(home: HomeFolder = None) -> None:
    """Stop the embedded stack in order, and check that no process is left."""
    from services.embedded.stack import down as stop

    folder = folder_of(home)
    stopped = folder.is_dir() and stop(Home(folder.resolve()))
    sys.stderr.write("similis  stopped\n" if stopped else f"similis  was not running on {_named(folder)}\n")


def api() -> None:
    """Serve the HTTP API in this process."""
    from services.embedded import commands

    become(commands.api())


def worker(
    queue: Annotated[str, typer.Option(help="Which work: scan, ingest, index or reindex.")],
    check: Check = False,
) -> None:
    """Work on one queue in this process."""
    from services.embedded import commands

    if queue not in commands.WORKER_QUEUES:
        raise typer.BadParameter(f"one of {', '.join(commands.WORKER_QUEUES)}", param_hint="--queue")
    _exit_if(check, queue)
    become(commands.worker(queue, queue))


def beat(
    schedule: Annotated[Path | None, typer.Option(help="beat's schedule file. [default: run/beat of the home]")] = None,
    check: Check = False,
) -> None:
    """Run the scheduler, which every few seconds sends messages again for work that stands still. Run exactly one."""
    from services.embedded import commands

    _exit_if(check, "beat")
    # the schedule is a pickle: whoever else could write it could run code in this process
    become(commands.beat(schedule or private(Settings().home / "run") / "beat"))


def dicom(
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 0 if the receiver of this home answers a C-ECHO, else 1; start nothing."),
    ] = False,
) -> None:
    """Receive images over the DICOM network in this process and its children."""
    from services.dicom import echo
    from services.embedded import commands

    if check:
        settings = Settings()
        raise typer.Exit(0 if echo.answers(settings.home, settings.dicom.ae_title) else 1)
    become(commands.dicom())


def vectors(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the shards.")],
    listen: Annotated[str, typer.Option(help="unix:///path or 127.0.0.1:port.")],
    api_key_file: Annotated[Path, typer.Option(help="A file with the API key that callers must send.")],
) -> None:
    """Serve vectors from Qdrant Edge in this process, in place of a Qdrant server."""
    from services.embedded import commands

    become(commands.vectors(folder, listen, api_key_file))


def migrate(
    key_file: Annotated[Path | None, typer.Option(help="File with an API key to register.")] = None,
) -> None:
    """Bring the database to the newest schema, then end."""
    from services.embedded import commands

    become(commands.migrate(key_file))


def secrets(
    folder: Annotated[Path, typer.Argument(help="Where docker-compose.yml looks for them.")] = Path("secrets"),
    owner: Annotated[int | None, typer.Option(help="Id of the user who may read them; compose runs as 1000.")] = None,
) -> None:
    """Create the secrets for production, each in a file with mode 0600; existing files stay."""
    made = write_secrets(folder, owner)
    sys.stderr.write(f"similis  created in {folder}: {', '.join(made) or 'nothing, all files existed'}\n")


def _named(folder: Path) -> str:
    """The folder as the user typed it, with a note where it does not exist."""
    return str(folder) if folder.is_dir() else f"{folder}: there is no such folder"


def _exit_if(check: bool, name: str) -> None:
    if check:
        raise typer.Exit(0 if lives(Settings().home, name) else 1)


def become(argv: list[str]) -> None:
    """Replace this process by the program, which then receives its signals and sets its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(argv[0], argv)  # noqa: S606 - a list of our own, no shell
    except OSError as error:
        raise Invalid(f"cannot start {argv[0]}: {error.strerror}") from None


def _status(folder: Path) -> dict[str, Any]:
    """The state of this home's processes, and the API's readiness."""
    from services.embedded.stack import readyz

    if not folder.is_dir():
        return {"running": False, "ready": False, "home": str(folder)}
    home = Home(folder.resolve())
    state = home.state if home.locked else {}
    found = {"running": bool(state.get("supervisor")), "ready": False, "home": str(home.path)}
    if not found["running"]:
        return found
    processes = {
        name: {"state": entry["state"], "restarts": entry["restarts"], "pid": (entry["identity"] or {}).get("pid")}
        for name, entry in state.get("processes", {}).items()
    }
    code, answer = readyz(str(state["host"]), int(state["port"]))
    return found | {
        "ready": code == 200,
        "version": (answer or {}).get("version"),
        "url": state["url"],
        "port": state["port"],
        "dicom": state.get("dicom"),
        "pid": (state.get("supervisor") or {}).get("pid"),
        "up_s": round(time.time() - float(state["started_at"]), 1),
        "readyz": answer,
        "processes": processes,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    if not found["running"]:
        return [f"similis does not run on {_named(Path(found['home']))}"]
    answer = found["readyz"] or {}
    state = answer.get("status", "ready") if found["ready"] else "not ready"
    if away := [name for name, part in answer.get("parts", {}).items() if part != "ready"]:
        state += f": {', '.join(away)} away"
    lines = [f"{found['url']}  {state}  up {found['up_s']} s  {found['home']}"]
    if found["version"] is not None:
        lines[0] += f"  version {found['version']}"
    if found["dicom"] is not None:
        lines.append(f"DICOM: AE {found['dicom']['ae_title']} at {found['dicom']['host']}:{found['dicom']['port']}")
    for name, entry in found["processes"].items():
        lines.append(f"  {name:<16} {entry['state']:<9} pid {entry['pid'] or '-':<8} restarts {entry['restarts']}")
    return lines
