"""`similis letters`: lists and retries dead letters, work that was given up."""

from typing import Annotated

import typer

from services.cli.client import Client, connected, given, part
from services.cli.terminal import AsJson, say, table, tell, tell_json

Kind = Annotated[str | None, typer.Option(help="image, encoding, point or file.")]
Reason = Annotated[str | None, typer.Option(help="As the list shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands about dead letters."""
    room = typer.Typer(help="Dead letters: work that was given up, and why.", no_args_is_help=True)
    room.command("list")(list_letters)
    room.command()(retry)
    app.add_typer(room, name="letters")


@connected
def list_letters(
    client: Client,
    *,
    kind: Kind = None,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="The next page, from an earlier answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the latest first."""
    answer = client.get("/v1/dead-letters", kind=kind, reason=reason, cursor=cursor, limit=limit)
    if as_json:
        tell_json(answer)
        return
    rows = [
        (one["letter"], one["reason"], one["attempts"], one["since"], one["sop_instance_uid"] or one["operation"])
        for one in answer["letters"]
    ]
    table(("letter", "reason", "attempts", "since", "image or operation"), rows, right=("attempts",))
    if answer.get("next"):
        say(f"next page: repeat with --cursor {answer['next']}")


@connected
def retry(
    client: Client,
    letter: Annotated[
        str | None, typer.Argument(metavar="LETTER", help="One letter; else give --kind or --reason for all of them.")
    ] = None,
    *,
    kind: Kind = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Retry one dead letter, or all of a kind or a reason."""
    if (letter is None) == (kind is None and reason is None):
        raise typer.BadParameter("name a letter, or a --kind or --reason")
    if letter is not None:
        answer = client.post(f"/v1/dead-letters/{part(letter)}:retry")
    else:
        answer = client.post("/v1/dead-letters:retry", json=given(kind=kind, reason=reason))
    if as_json:
        tell_json(answer)
        return
    done = ", ".join(f"{count} {kind}" for kind, count in answer["retried"].items()) or "nothing"
    tell(f"will be tried again: {done}")
