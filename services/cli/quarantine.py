"""`similis quarantine`: decides on what the gates stopped, and manages the thresholds of gate 3."""

from typing import Annotated, Any

import typer

from services.cli.client import Answer, Client, connected, given, part
from services.cli.ingest import advise
from services.cli.terminal import AsJson, say, table, tell, tell_json
from services.cli.waiting import watch
from shared.errors import Invalid

Item = Annotated[str, typer.Argument(metavar="ITEM", help="As `similis quarantine list` shows it, such as image-17.")]
Since = Annotated[str | None, typer.Option(help="`since` of the item as you reviewed it; exit 4 if stopped again.")]
Note = Annotated[str, typer.Option(help="Why; kept with the decision, and never logged.")]
ModelName = Annotated[str, typer.Option("--model", help="A model that the server knows, by name or fingerprint.")]
RuleName = Annotated[str | None, typer.Option(help="mean+3sd, quantile (the 0.99 one) or log.")]
Modality = Annotated[str | None, typer.Option(help="Such as MG.")]
GateName = Annotated[str | None, typer.Option(help="limits, decode, metadata, pixels or features.")]
ReasonName = Annotated[str | None, typer.Option(help="Such as out-of-distribution.")]
SHOWN = 20  #: images that a replay names for each direction by default


def register(app: typer.Typer) -> None:
    """Add the commands about the quarantine."""
    room = typer.Typer(help="The quarantine: what was stopped, and by which threshold.", no_args_is_help=True)
    for command in (show, release, reject, retry, calibrate, calibrations, replay):
        room.command()(command)
    room.command("list")(list_items)
    app.add_typer(room, name="quarantine")


@connected
def list_items(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    gate: GateName = None,
    reason: ReasonName = None,
    modality: Modality = None,
    model: Annotated[str | None, typer.Option(help="The model whose threshold stopped the item.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Stopped at this time or later, such as 2026-01-31T08:00:00Z.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="The next page, from an earlier answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the items that wait for a decision, the latest first."""
    asked = {"gate": gate, "reason": reason, "modality": modality, "model": model, "since": since, "cursor": cursor}
    answer = client.get("/v1/quarantine", **asked, limit=limit)
    if as_json:
        tell_json(answer)
        return
    rows = [
        (i["item"], i["gate"], i["reason"], i["score"], i["threshold"], i["distance"], i["distance_threshold"],
         i["modality"], i["sop_instance_uid"], i["since"])
        for i in answer["items"]
    ]  # fmt: skip
    numbers = ("score", "threshold", "distance", "distance threshold")
    table(("item", "gate", "reason", *numbers, "mod", "SOPInstanceUID", "since"), rows, right=numbers)
    if answer.get("next"):
        say(f"next page: repeat with --cursor {answer['next']}")


@connected
def show(client: Client, item: Item, as_json: AsJson = False) -> None:
    """Show the decisions on an image, by whom and why."""
    answer = client.get(f"/v1/quarantine/{part(item)}")
    if as_json:
        tell_json(answer)
        return
    if not answer["reviews"]:
        say(f"nobody has decided on {item}")
        return
    columns = ("at", "decision", "reviewer", "gate", "reason", "score", "distance", "note")
    rows = [tuple(review[name] for name in columns) for review in answer["reviews"]]
    table(columns, rows, right=("score", "distance"))


@connected
def release(client: Client, item: Item, note: Note = "", since: Since = None, as_json: AsJson = False) -> None:
    """Make an image searchable. Exit 4 if it was already decided on, was stopped again, or cannot be read."""
    _decide(client, item, "release", note, since, as_json=as_json)


@connected
def reject(client: Client, item: Item, note: Note = "", since: Since = None, as_json: AsJson = False) -> None:
    """Keep an image out for good. Exit 4 if it was already decided on or was stopped again."""
    _decide(client, item, "reject", note, since, as_json=as_json)


def _decide(client: Client, item: str, verb: str, note: str, since: str | None, *, as_json: bool) -> None:
    answer = client.post(f"/v1/quarantine/{part(item)}:{verb}", json=given(note=note, since=since or None))
    if as_json:
        tell_json(answer)
    else:
        tell(f"{answer['item']}: {answer['decision']} by {answer['reviewer']}")


@connected
def retry(
    client: Client,
    item: Annotated[
        str | None, typer.Argument(metavar="ITEM", help="One item; else give --gate or --reason for all of them.")
    ] = None,
    *,
    gate: GateName = None,
    reason: ReasonName = None,
    modality: Modality = None,
    as_json: AsJson = False,
) -> None:
    """Read and judge an item again, or all of a gate or reason, after a codec, limit or threshold was changed."""
    if (item is None) == (gate is None and reason is None):
        raise typer.BadParameter("name an item, or a --gate or --reason")
    if item is not None:
        answer = client.post(f"/v1/quarantine/{part(item)}:retry")
    else:
        answer = client.post("/v1/quarantine:retry", json=given(gate=gate, reason=reason, modality=modality))
    if as_json:
        tell_json(answer)
    else:
        tell(f"will be judged again: {answer['images']} images, {answer['files']} files")
        if answer["held"]:
            say(f"{answer['held']} images were stopped by an admission rule: release or reject them")


@connected
def calibrate(
    client: Client,
    model: ModelName,
    *,
    modality: Modality = None,
    rule: RuleName = None,
    operation: Annotated[str | None, typer.Option(help="Only images that this operation registered.")] = None,
    folder: Annotated[str | None, typer.Option(help="Only images below this folder on the server.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make thresholds from the stored scores of encoded images; they judge new images from then on."""
    asked = given(modality=modality, rule=rule, operation=operation, folder=folder)
    answer = client.post(f"/v1/models/{part(model)}/calibrations", json=asked)
    if as_json:
        tell_json(answer)
        return
    _table(answer["calibrations"])
    for name, count in answer["skipped"].items():
        say(f"{name or 'no modality'}: {count} encoded images are too few for a threshold")
    for name, count in answer["left_out"].items():
        say(f"{name or 'no modality'}: {count} images that gate 3 had stopped were left out")
    say("stored images are not judged again; `similis quarantine replay` shows what would change")


@connected
def calibrations(client: Client, model: ModelName, modality: Modality = None, as_json: AsJson = False) -> None:
    """List the thresholds of a model, and count the images that passed without one."""
    answer = client.get(f"/v1/models/{part(model)}/calibrations", modality=modality)
    if as_json:
        tell_json(answer)
        return
    _table(answer["calibrations"])
    for name, count in sorted(answer["without"].items()):
        tell(f"{name or 'no modality'}: {count} searchable images passed without a threshold")
    advise(model, answer["wanting"])


def _table(rows: list[Answer]) -> None:
    numbers = ("threshold", "mean", "std", "n", "distance threshold", "n (distances)")
    columns = ("id", "modality", "source", "rule", *numbers, "by", "in force")
    cells = [
        (r["id"], r["modality"], r["source"], r["rule"], r["threshold"], r["mean"], r["std"], r["n"],
         *((d["threshold"], d["n"]) if (d := r["distances"]) else ("none", None)), r["made_by"], r["in_force"])
        for r in rows
    ]  # fmt: skip
    table(columns, cells, right=("id", *numbers))


@connected
def replay(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    model: ModelName,
    modality: Annotated[str, typer.Option(help="Such as MG.")],
    *,
    threshold: Annotated[float | None, typer.Option(help="Scores above it are stopped.")] = None,
    distance: Annotated[float | None, typer.Option(help="Distances above it are stopped.")] = None,
    rule: RuleName = None,
    calibration: Annotated[int | None, typer.Option(min=1, help="Id of an earlier calibration.")] = None,
    shown: Annotated[int, typer.Option(min=0, max=10_000, help="Images listed per direction.")] = SHOWN,
    apply: Annotated[
        bool, typer.Option("--apply", help="Put the thresholds in force and judge stored images.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="With --apply: wait until it is done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which stored images other thresholds would flip; with --apply, flip them. No decision is overturned."""
    choice = given(threshold=threshold, distance_threshold=distance, rule=rule, calibration=calibration)
    if len(choice) > 1 and {"rule", "calibration"} & choice.keys():
        raise Invalid("give only one of: thresholds, --rule, --calibration")
    asked: dict[str, Any] = {"model": model, "modality": modality, "apply": apply, "shown": shown}
    answer = client.post("/v1/quarantine:replay", json=asked | choice)
    if follow and answer["operation"] is not None:
        answer["state"] = watch(client, answer["operation"], "replay")["state"]
    if as_json:
        tell_json(answer)
    else:
        _plan(answer)
    if answer.get("state", "succeeded") != "succeeded":
        raise typer.Exit(1)


def _plan(answer: Answer) -> None:
    counts = answer["counts"]
    tell(
        f"{_thresholds(answer)} ({answer['rule']}): stops {counts.get('stop', 0)} searchable images, "
        f"admits {counts.get('admit', 0)} stopped ones, {counts.get('stay', 0)} stay; "
        f"{counts.get('decided', 0)} were decided on by a person, {counts.get('unmeasured', 0)} have no score"
    )
    if not answer["complete"]:
        tell(f"only the first {sum(counts.values())} images were checked in the time allowed; --apply judges all")
    ways = [("stops", one) for one in answer["stop"]] + [("admits", one) for one in answer["admit"]]
    if ways:
        columns = ("image", "sop_instance_uid", "score", "distance", "reason")
        rows = [(way, *(one[name] for name in columns)) for way, one in ways]
        table(("", "image", "SOPInstanceUID", *columns[2:]), rows, right=("image", "score", "distance"))
    for way, verb in (("stop", "stops"), ("admit", "admits")):
        if (named := len(answer[way])) < counts.get(way, 0):
            say(f"only {named} of {counts[way]} that it {verb} are shown; more with --shown")
    if answer["applied"]:
        tell(f"in force; operation {answer['operation']} {answer.get('state', 'judges stored images')}")
    else:
        say("nothing was changed; add --apply to put the thresholds in force")


def _thresholds(answer: Answer) -> str:
    votes = {"threshold": answer["threshold"], "distance threshold": answer["distance_threshold"]}
    return ", ".join(f"{name} {value:.6g}" for name, value in votes.items() if value is not None)
