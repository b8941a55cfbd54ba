"""`similis up`, `status` and `down`, and the single processes of a stack for production."""

import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.config import Settings
from shared.errors import Denied, Invalid

Home = Annotated[Path | None, typer.Option(help="Where everything is kept. [default: ~/.similis]", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands that run or stop processes."""
    app.command()(up)
    app.command()(status)
    app.command()(down)
    app.command()(api)
    app.command()(worker)
    app.command()(beat)
    app.command()(vectors)
    app.command()(migrate)
    app.command()(secrets)


def up(
    home: Home = None,
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
        serve(Options(_home(home), host, port, workers, auth, called, receiving.host), ready=_print)
    except Denied as error:
        raise typer.BadParameter(str(error)) from None


def status(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the processes and whether the API is ready; exit 3 where nothing runs."""
    found = _status(_home(home))
    if as_json:
        _print(json.dumps(found))
    else:
        _print("\n".join(_lines(found)))
    if not found["running"]:
        raise typer.Exit(3)


def down(home: Home = None) -> None:
    """Stop the embedded stack in order, and check that no process is left."""
    from services.embedded.stack import down as stop

    folder = _home(home)
    stopped = folder.is_dir() and stop(_there(folder))
    sys.stderr.write("similis  stopped\n" if stopped else f"similis  was not running on {_named(folder)}\n")


def api() -> None:
    """Serve the HTTP API in this process."""
    from services.embedded import commands

    become(commands.api())


def worker(
    queue: Annotated[str, typer.Option(help="Which work: scan, ingest, index or reindex.")],
    check: Annotated[
        bool, typer.Option("--check", help="Exit 0 if such a process is alive, else 1; start nothing.")
    ] = False,
) -> None:
    """Work on one queue in this process."""
    from services.embedded import commands

    if queue not in commands.WORKER_QUEUES:
        raise typer.BadParameter(f"one of {', '.join(commands.WORKER_QUEUES)}", param_hint="--queue")
    _exit_if(check, queue)
    become(commands.worker(queue, queue))


def beat(
    schedule: Annotated[Path | None, typer.Option(help="beat's schedule file. [default: run/beat of the home]")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 0 if such a process is alive, else 1; start nothing.")
    ] = False,
) -> None:
    """Run the scheduler, which every few seconds sends messages again for work that stands still. Run exactly one."""
    from services.embedded import commands
    from services.embedded.home import private

    _exit_if(check, "beat")
    # the schedule is a pickle: whoever else could write it could run code in this process
    become(commands.beat(schedule or private(Settings().home / "run") / "beat"))


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
    from services.embedded.production import write_secrets

    made = write_secrets(folder, owner)
    sys.stderr.write(f"similis  created in {folder}: {', '.join(made) or 'nothing, all files existed'}\n")


def _home(home: Path | None) -> Path:
    return (home if home is not None else Settings().home).expanduser()


def _named(folder: Path) -> str:
    """The folder as the user typed it, with a note where it does not exist."""
    return str(folder) if folder.is_dir() else f"{folder}: there is no such folder"


def _there(folder: Path) -> Any:  # noqa: ANN401 - the class is imported late, so that `search` starts quickly
    """A `Home` for this folder; creates nothing."""
    from services.embedded.home import Home as Folder

    return Folder(folder.resolve())


def _exit_if(check: bool, name: str) -> None:
    from services.embedded.production import lives

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


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _status(folder: Path) -> dict[str, Any]:
    """The state of this home's processes, and the API's readiness."""
    if not folder.is_dir():
        return {"running": False, "ready": False, "home": str(folder)}
    home = _there(folder)
    state = home.state if home.locked else {}
    found = {"running": bool(state.get("supervisor")), "ready": False, "home": str(home.path)}
    if not found["running"]:
        return found
    processes = {
        name: {"state": entry["state"], "restarts": entry["restarts"], "pid": (entry["identity"] or {}).get("pid")}
        for name, entry in state.get("processes", {}).items()
    }
    code, answer = _readyz(str(state["host"]), int(state["port"]))
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


def _readyz(host: str, port: int) -> tuple[int | None, Any]:
    from services.embedded.stack import reachable_at

    connection = http.client.HTTPConnection(reachable_at(host), port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None, None
    finally:
        connection.close()


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
