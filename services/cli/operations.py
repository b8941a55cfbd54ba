"""`similis operations`: lists, follows, cancels and retries the server's long work."""

from itertools import islice
from typing import Annotated

import typer

from services.cli.client import Answer, Client, connected, part
from services.cli.follow import Operation, follow, summarise
from services.cli.ingest import report
from services.cli.terminal import AsJson, say, table, tell, tell_json
from services.cli.waiting import watch

OperationId = Annotated[str, typer.Argument(metavar="ID", help="As `similis operations list` shows it.")]
Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]
TAKES_IN = ("scan", "backfill-dicomweb")  #: kinds of operations that take in files


def register(app: typer.Typer) -> None:
    """Add the commands about operations."""
    room = typer.Typer(
        help="Operations, such as scans: show progress and problems, cancel, retry.", no_args_is_help=True
    )
    room.command("list")(list_operations)
    room.command()(show)
    room.command()(files)
    room.command()(cancel)
    room.command()(retry)
    app.add_typer(room, name="operations")


@connected
def list_operations(client: Client, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List operations, the newest first."""
    found = list(islice(client.pages("/v1/operations", "operations", limit=min(limit, 100)), limit))
    if as_json:
        tell_json({"operations": found})
        return
    rows = [(o["id"], o["kind"], o["state"], o["progress"], o["done"], o["total"], o["created_at"]) for o in found]
    table(("id", "kind", "state", "%", "done", "of", "begun"), rows, right=("%", "done", "of"))
    if len(found) == limit:
        say(f"only the latest {limit} are shown; more with --limit")


@connected
def show(
    client: Client,
    operation_id: OperationId,
    follow_it: Annotated[bool, typer.Option("--follow", help="Wait until it has ended or is paused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one operation: its state and what became of its files. Exit 1 with --follow unless it succeeded."""
    answer = client.get(f"/v1/operations/{part(operation_id)}")
    if not follow_it:
        _tell(answer, as_json)
        return
    try:
        if not Operation.of(answer).ended:
            takes_in = answer["kind"] in TAKES_IN
            answer = follow(client, operation_id) if takes_in else watch(client, operation_id, answer["kind"])
    except KeyboardInterrupt:
        say("\nthe server goes on")
        raise typer.Exit(130) from None
    report(answer, as_json=as_json)


@connected
def files(
    client: Client,
    operation_id: OperationId,
    problems: Annotated[bool, typer.Option("--problems/--all", help="Only files that are not searchable.")] = True,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """List an operation's files with outcome, gate and reason."""
    pages = client.pages(f"/v1/operations/{part(operation_id)}/files", "files", problems=problems)
    found = list(islice(pages, limit))
    if as_json:
        tell_json({"files": found})
        return
    table(
        ("outcome", "gate", "reason", "file"),
        [(f["outcome"], f.get("gate"), f.get("reason"), f["path"]) for f in found],
    )
    if len(found) == limit:
        say(f"only the first {limit} are shown; more with --limit")


@connected
def cancel(client: Client, operation_id: OperationId, as_json: AsJson = False) -> None:
    """Cancel an operation; files that are registered already stay."""
    _tell(client.post(f"/v1/operations/{part(operation_id)}:cancel"), as_json)


@connected
def retry(client: Client, operation_id: OperationId, as_json: AsJson = False) -> None:
    """Retry an operation: completed work is skipped, failed work is tried once more."""
    _tell(client.post(f"/v1/operations/{part(operation_id)}:retry"), as_json)


def _tell(answer: Answer, as_json: bool) -> None:
    if as_json:
        tell_json(answer)
    else:
        summarise(answer)
        if not Operation.of(answer).ended:
            so_far = f"{answer['done']} of {answer['total'] or '?'}"
            takes_in = answer["kind"] in TAKES_IN
            tell(f"registered {so_far} files so far" if takes_in else f"{so_far} so far")
