"""`similis backfill`: pulls studies from another archive over DICOMweb."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from services.cli.client import Client, connected, given
from services.cli.ingest import absolute, attend
from services.cli.terminal import AsJson
from shared.errors import Invalid


def register(app: typer.Typer) -> None:
    """Add the command `backfill`."""
    app.command()(backfill)


@connected
def backfill(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    dicomweb: Annotated[str, typer.Option(help="The archive's DICOMweb address, or a configured source's name.")],
    query: Annotated[
        list[str] | None, typer.Option(help="Such as StudyDate=20200101-20201231 or ModalitiesInStudy=MG; repeatable.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="At most this many instances per second, such as 5/s.")] = None,
    between: Annotated[str | None, typer.Option(help="Only in these hours of the server, such as 22:00-06:00.")] = None,
    user: Annotated[str, typer.Option(help="User name at the archive; not for a configured source.")] = "",
    password_file: Annotated[Path | None, typer.Option(help="A file on the server with the password.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file on the server with a bearer token.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every image is searchable.")] = True,
    as_json: AsJson = False,
) -> None:
    """Pull the studies of another archive (QIDO-RS, WADO-RS); instances that are here already are not requested.

    The server does the work and continues after restarts: leaving this command does not stop it. The summary counts
    instances that did not come, `similis operations files` names them, and `similis operations retry` requests them
    again.
    """
    asked = given(
        dicomweb=dicomweb,
        query=_filters(query or ()),
        user=user,
        rate=_rate(rate),
        between=between,
        password_file=absolute(password_file),
        token_file=absolute(token_file),
    )
    answer = client.post("/v1/ingest/backfills", json=asked, headers={"Idempotency-Key": str(uuid.uuid4())})
    attend(client, answer, wait=wait, as_json=as_json)


def _filters(query: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in query:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Invalid("a query must look like Attribute=value, such as StudyDate=20200101-20201231")
        if name in found:
            raise Invalid(f"{name} is given twice: separate its values by commas, such as ModalitiesInStudy=MG,DX")
        found[name] = value
    return found


def _rate(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.removesuffix("/s"))
    except ValueError:
        raise Invalid("a rate must be a number of instances per second, such as 5/s") from None
