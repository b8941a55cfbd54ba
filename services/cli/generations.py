"""`similis generations`: builds an index for another model or other parameters beside the published one."""

import uuid
from typing import Annotated, Any

import typer

from services.cli.client import Answer, Client, connected, given
from services.cli.terminal import AsJson, say, table, tell, tell_json
from services.cli.waiting import watch
from shared.errors import NotFound

GenerationId = Annotated[int, typer.Argument(metavar="ID", help="As `similis generations list` shows it.")]
Between = Annotated[str | None, typer.Option(help="Only in these hours of the server, such as 20:00-06:00.")]
Follow = Annotated[bool, typer.Option("--follow", help="Wait until it is built.")]
Accept = Annotated[
    list[str] | None,
    typer.Option(help="An image that may be missing, by its id or SOP Instance UID; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands about generations."""
    room = typer.Typer(help="Generations: builds of the index, one of them published.", no_args_is_help=True)
    for command in (create, show, throttle, pause, resume, cancel, publish, rollback, retire):
        room.command()(command)
    room.command("list")(list_generations)
    app.add_typer(room, name="generations")


@connected
def create(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    model: Annotated[str, typer.Argument(help="A model that the server knows, by name or fingerprint.")],
    *,
    metric: Annotated[str | None, typer.Option(help="cosine, dot or l2. Default: the model's own.")] = None,
    scale: Annotated[str, typer.Option(help="exact, hnsw or hnsw-int8.")] = "hnsw-int8",
    m: Annotated[int, typer.Option(min=2, max=256, help="Links per point in the graph.")] = 16,
    ef_construct: Annotated[int, typer.Option(min=4, help="Candidates considered while building the graph.")] = 100,
    throttle: Annotated[float | None, typer.Option(min=1, help="At most this many images per second.")] = None,
    between: Between = None,
    gate: Annotated[float, typer.Option(min=0, max=1, help="Lowest recall@10 that allows publishing.")] = 0.97,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Start to build a generation beside the published one; searches are not affected."""
    asked = {"model": model, "scale": scale, "m": m, "ef_construct": ef_construct, "gate": gate}
    asked |= given(metric=metric, throttle=throttle, between=between)
    answer = client.post("/v1/generations", json=asked, headers={"Idempotency-Key": str(uuid.uuid4())})
    _tell(client, answer, follow=follow, as_json=as_json)


@connected
def list_generations(client: Client, as_json: AsJson = False) -> None:
    """List generations with their progress."""
    answer = client.get("/v1/generations")
    if as_json:
        tell_json(answer)
        return
    rows = [
        (g["id"], g["model"], g["state"], _role(g), g["progress"], g["coverage"]["applied"], _recall(g), _canary(g))
        for g in answer["generations"]
    ]
    numbers = ("%", "points", "recall@10", "canary")
    table(("id", "model", "state", "role", *numbers), rows, right=("id", *numbers))


@connected
def show(client: Client, generation_id: GenerationId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Show one generation: what it covers, what it lacks and why, and its recall."""
    _tell(client, client.get(f"/v1/generations/{generation_id}"), follow=follow, as_json=as_json)


@connected
def throttle(
    client: Client,
    generation_id: GenerationId,
    rate: Annotated[float | None, typer.Option(min=1, help="At most this many images per second.")] = None,
    limit: Annotated[bool, typer.Option("--limit/--no-limit", help="Remove the limit of --rate.")] = True,
    between: Between = None,
    any_hour: Annotated[bool, typer.Option("--any-hour", help="Remove the limit of --between.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change a build's rate limit or hours while it runs; limits that are not named stay."""
    if (rate is not None and not limit) or (between and any_hour):
        raise typer.BadParameter("a limit cannot be set and removed at once")
    asked: dict[str, Any] = {"per_s": rate} if rate is not None or not limit else {}
    asked |= {"between": between} if between or any_hour else {}
    if not asked:
        raise typer.BadParameter("name --rate or --no-limit, --between or --any-hour")
    _tell(client, client.post(f"/v1/generations/{generation_id}:throttle", json=asked), as_json=as_json)


@connected
def pause(client: Client, generation_id: GenerationId, as_json: AsJson = False) -> None:
    """Pause a build; new images still go to the generation."""
    _tell(client, client.post(f"/v1/generations/{generation_id}:pause"), as_json=as_json)


@connected
def resume(client: Client, generation_id: GenerationId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Resume a build; of a finished one, retry its exceptions and measure its recall again."""
    _tell(client, client.post(f"/v1/generations/{generation_id}:resume"), follow=follow, as_json=as_json)


@connected
def cancel(client: Client, generation_id: GenerationId, as_json: AsJson = False) -> None:
    """Give up a build; its model's encodings stay. Exit 4 once it is built: retire it instead."""
    _tell(client, client.post(f"/v1/generations/{generation_id}:cancel"), as_json=as_json)


@connected
def publish(client: Client, generation_id: GenerationId, accept: Accept = None, as_json: AsJson = False) -> None:
    """Let searches use the generation. Exit 4, with the numbers, unless it is complete and reaches its recall gate."""
    answer = client.post(f"/v1/generations/{generation_id}:publish", json={"accept": accept or []})
    _tell(client, answer, as_json=as_json)


@connected
def rollback(
    client: Client,
    generation_id: Annotated[
        int | None, typer.Argument(metavar="ID", help="The generation to roll back from. Default: the published one.")
    ] = None,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Let searches use the previously published generation again."""
    leaving = _published(client) if generation_id is None else generation_id
    answer = client.post(f"/v1/generations/{leaving}:rollback", json={"accept": accept or []})
    _tell(client, answer, as_json=as_json)


@connected
def retire(
    client: Client,
    generation_id: GenerationId,
    force: Annotated[
        bool, typer.Option("--force", help="Retire also the generation that a rollback would publish.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a generation that is not published, collection and all."""
    _tell(client, client.post(f"/v1/generations/{generation_id}:retire", json={"force": force}), as_json=as_json)


def _published(client: Client) -> int:
    for generation in client.get("/v1/generations")["generations"]:
        if generation["live"]:
            return int(generation["id"])
    raise NotFound("nothing is published yet")


def _tell(client: Client, answer: Answer, *, follow: bool = False, as_json: bool) -> None:
    """Print a generation; with `follow` wait until it is built. Exit 1 if that build failed."""
    if follow and answer["state"] == "building":
        try:
            watch(client, answer["operation"], f"generation {answer['id']}")
        except KeyboardInterrupt:
            say(f"\nthe server goes on; `similis generations show {answer['id']} --follow` follows it")
            raise typer.Exit(130) from None
        answer = client.get(f"/v1/generations/{answer['id']}")
    if as_json:
        tell_json(answer)
    else:
        _summarise(answer)
    if follow and answer["state"] == "failed":
        raise typer.Exit(1)


def _summarise(answer: Answer) -> None:
    images, role = answer["images"], _role(answer)
    tell(f"generation {answer['id']} of {answer['model']}: {answer['state']}{f', {role}' if role else ''}")
    tell(
        f"covers {images['covered']} of {images['total']} images, {images['coming']} on their way, "
        f"{images['exceptions']} missing; recall@10 {_recall(answer) or 'not measured (a build measures it)'}"
    )
    if rate := answer.get("throttle"):
        tell(f"built at {rate:g} images per second at most")
    if hours := answer.get("between"):
        tell(f"built in the hours {hours}")
    if canary := answer.get("canary"):
        tell(f"canary: {canary['recall']:.4f} in {canary['queries']} searches since {canary['since'][:16]}")
    if answer.get("error"):
        tell(f"error: {answer['error']}")
    if answer["exceptions"]:
        rows = [(e["image"], e["sop_instance_uid"], e["reason"], e["explanation"]) for e in answer["exceptions"]]
        table(("image", "SOPInstanceUID", "reason", "meaning"), rows, right=("image",))


def _role(answer: Answer) -> str:
    return "published" if answer["live"] else "rollback target" if answer["rollback_target"] else ""


def _canary(answer: Answer) -> str:
    return f"{answer['canary']['recall']:.4f}" if answer.get("canary") else ""


def _recall(answer: Answer) -> str:
    return f"{answer['recall']['recall']:.4f}" if answer.get("recall") else ""
