"""`similis keys`: creates, lists and revokes API keys."""

from typing import Annotated

import typer

from services.cli.client import Client, connected, given
from services.cli.terminal import AsJson, say, table, tell, tell_json


def register(app: typer.Typer) -> None:
    """Add the commands about API keys."""
    room = typer.Typer(help="API keys and their scopes.", no_args_is_help=True)
    room.command()(create)
    room.command("list")(list_keys)
    room.command()(revoke)
    app.add_typer(room, name="keys")


@connected
def create(
    client: Client,
    name: Annotated[str, typer.Argument(help="Who or what will use it.")],
    scope: Annotated[list[str], typer.Option(help="Such as search, read, ingest, admin; may be repeated.")],
    days: Annotated[int | None, typer.Option(min=1, help="The key expires after this many days.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; its secret is shown now and never again."""
    answer = client.post("/v1/keys", json=given(name=name, scopes=scope, days=days))
    if as_json:
        tell_json(answer)
        return
    say(f"key {answer['id']} for {answer['name']}; the secret is shown this once:")
    tell(str(answer["secret"]))


@connected
def list_keys(client: Client, as_json: AsJson = False) -> None:
    """List keys without their secrets."""
    answer = client.get("/v1/keys")
    if as_json:
        tell_json(answer)
        return
    columns = ("id", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    table(columns, [[key.get(column) for column in columns] for key in answer["keys"]], right=("id",))


@connected
def revoke(
    client: Client,
    key_id: Annotated[int, typer.Argument(metavar="ID", help="As `list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """End a key; it is refused within a second."""
    client.delete(f"/v1/keys/{key_id}")
    say(f"key {key_id} is revoked")
    if as_json:
        tell_json({"id": key_id})
