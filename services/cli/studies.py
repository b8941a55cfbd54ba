"""`similis studies`: lists the archive's studies and shows why an image is not searchable."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from services.cli.client import Answer, Client, connected, part
from services.cli.search import labelled
from services.cli.terminal import AsJson, say, table, tell, tell_json
from shared.errors import NotFound

Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]


def register(app: typer.Typer) -> None:
    """Add the commands about studies."""
    room = typer.Typer(help="The studies of the archive.", no_args_is_help=True)
    room.command("list")(list_studies)
    room.command()(show)
    app.add_typer(room, name="studies")


@connected
def list_studies(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    modality: Annotated[str | None, typer.Option(help="Such as MG,CT.")] = None,
    date: Annotated[str | None, typer.Option(help="StudyDate range, such as 20200101-20211231.")] = None,
    birads: Annotated[str | None, typer.Option(help="Such as 4,5.")] = None,
    density: Annotated[str | None, typer.Option(help="Such as C,D.")] = None,
    status: Annotated[str | None, typer.Option(help="Only studies with an image in this state.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List studies with the number of their images."""
    asked = {"ModalitiesInStudy": modality, "StudyDate": date, "birads": birads, "density": density, "status": status}
    found = list(islice(client.pages("/v1/studies", "studies", limit=min(limit, 100), **asked), limit))
    if as_json:
        tell_json({"studies": found})
        return
    rows = [
        (s["study_instance_uid"], s.get("study_date"), s.get("modalities"), s.get("images"), s.get("searchable"))
        for s in found
    ]
    table(("study", "date", "modalities", "images", "searchable"), rows, right=("images", "searchable"))
    if len(found) == limit:
        say(f"only the first {limit} are shown; more with --limit")


@connected
def show(
    client: Client,
    study: Annotated[str, typer.Argument(metavar="UID", help="StudyInstanceUID.")],
    as_json: AsJson = False,
) -> None:
    """Show one study with its images (state, labels, why one is not searchable) and its journal.

    Of a study whose files were all refused, only the journal is shown.
    """
    try:
        answer = client.get(f"/v1/studies/{part(study)}")
    except NotFound:
        answer = {"study_instance_uid": study, "series": []}
    lines = client.get(f"/v1/studies/{part(study)}/journal", limit=1000)["journal"]  # 404 for an unknown study
    if as_json:
        tell_json(answer | {"journal": lines})
        return
    tell(f"study {answer['study_instance_uid']}  {answer.get('study_date') or 'no date'}")
    images = [image for series in answer["series"] for image in series["images"]]
    rows = [
        (
            image["sop_instance_uid"],
            image.get("laterality"),
            image.get("view"),
            image["status"],
            image.get("gate"),
            image.get("reason"),
            image["searchable"] or image.get("why_not"),
            labelled(image.get("labels") or {}),
        )
        for image in images
    ]
    table(("image", "side", "view", "status", "gate", "reason", "searchable", "labels"), rows)
    table(("at", "event", "outcome", "images", "reason", "of", "sender", "rule"), list(_by_minute(lines)))


def _by_minute(lines: list[Answer]) -> Iterator[tuple[object, ...]]:
    """The journal's lines, with equal events of the same minute counted as one line."""
    told = Counter(
        (one["at"][:16], one["event"], one["outcome"], one["reason"], one["source"], one["sender"], one["rule"])
        for one in lines
    )
    for (at, event, outcome, *more), count in told.items():
        yield at, event, outcome, count, *more
