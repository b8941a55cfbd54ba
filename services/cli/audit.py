"""`similis audit`: who did what."""

from itertools import islice
from typing import Annotated

import typer

from services.cli.client import Client, connected
from services.cli.terminal import AsJson, say, table, tell_json


def register(app: typer.Typer) -> None:
    """Add the commands about the audit."""
    room = typer.Typer(help="The audit log: who decided on, erased or switched what.", no_args_is_help=True)
    room.command("list")(list_audit)
    app.add_typer(room, name="audit")


@connected
def list_audit(
    client: Client,
    *,
    action: Annotated[str | None, typer.Option(help="Such as release, erase, generation-publish, key-create.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List audited actions, the latest first; needs a key with the scope audit:read."""
    found = list(islice(client.pages("/v1/audit", "entries", action=action, limit=min(limit, 1000)), limit))
    if as_json:
        tell_json({"entries": found})
        return
    table(
        ("at", "by", "action", "item", "details"),
        [(one["at"], one["actor"], one["action"], one["item"], one["details"]) for one in found],
    )
    if len(found) == limit:
        say(f"only the latest {limit} are shown; more with --limit")
