"""`similis models`: builds cards, converts weights, and registers models with the server.

Building and converting happen in this process, because weights and cards are files of this machine; registering
and listing go through the server's API.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from services.cli.client import Client, HomeFolder, connected, part
from services.cli.terminal import AsJson, say, table, tell, tell_json
from shared.config import Settings
from shared.disk import regular
from shared.errors import Conflict, Denied, Invalid, NotFound, Throttled
from shared.imaging.recipe import Recipe

Note = Annotated[str, typer.Option(help="Licence and origin of the weights.")]
Tta = Annotated[
    str,
    typer.Option(
        metavar="none|five|five:SEED",
        help="five: average five views of each image, at five times the cost; five:SEED draws them as the paper does.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands about models."""
    room = typer.Typer(help="Models: neural networks with their cards.", no_args_is_help=True)
    room.command()(add)
    room.command("list")(list_models)
    room.command()(show)
    room.command("hash")(hashed)
    room.command()(make)
    room.command()(ensemble)
    room.command()(convert)
    app.add_typer(room, name="models")


@connected
def add(
    client: Client,
    card: Annotated[
        Path,
        typer.Argument(
            help="A card's folder, or the shipped similis-base; it is copied to the models folder if it is elsewhere."
        ),
    ],
    models: Annotated[Path | None, typer.Option(help="The server's models folder. Default: the home's.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name than the card's: names are unique.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model with the server; the first one is also published."""
    models = models or _settings(client.home).models_dir
    there = set(models.glob("*"))
    folder = bring(card, models, name)
    try:
        answer = client.post("/v1/models", json={"card": folder})
    except (Conflict, Denied, Invalid, NotFound, Throttled):  # after other errors it may be registered
        if models / folder not in there:  # frees the name for another attempt
            shutil.rmtree(models / folder)
        raise
    if as_json:
        tell_json(answer)
    else:
        tell(f"{answer['name']}  {answer['fingerprint']}")


@connected
def list_models(client: Client, as_json: AsJson = False) -> None:
    """List the models that the server knows."""
    answer = client.get("/v1/models")
    if as_json:
        tell_json(answer)
        return
    columns = ("name", "label", "dim", "trained", "published", "fingerprint")
    table(columns, [[model.get(column) for column in columns] for model in answer["models"]], right=("dim",))


@connected
def show(
    client: Client,
    model: Annotated[str, typer.Argument(help="Its name, or eight or more characters of its fingerprint.")],
    as_json: AsJson = False,
) -> None:
    """Show one model with its card."""
    answer = client.get(f"/v1/models/{part(model)}")
    if as_json:
        tell_json(answer)
        return
    card = answer.pop("card")
    table(("field", "value"), [*answer.items(), *_fields("card", card)])


def _fields(name: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - what JSON holds
    """Each value of nested objects with the names that lead to it."""
    if not isinstance(value, dict):
        yield name, value
        return
    for inner, part_of_it in value.items():
        yield from _fields(f"{name}.{inner}", part_of_it)


@connected
def hashed(
    client: Client,
    base: Annotated[str, typer.Argument(help="A model without a hash code.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the new model with a hash code.")],
    bits: Annotated[int, typer.Option(min=8, help="Length of the code; a multiple of eight.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Fit a hash code to the archive's embeddings, as a new model; `similis generations create` builds its index."""
    answer = client.post(f"/v1/models/{part(base)}:hash", json={"name": name, "bits": bits})
    if as_json:
        tell_json(answer)
        return
    tell(f"{answer['name']}  {answer['fingerprint']}")
    say(f"build its index beside the published one with `similis generations create {answer['name']} --follow`")


def make(  # noqa: PLR0913 - each argument is an ingredient of the card
    name: Annotated[str, typer.Argument(help="Name of the new model: a-z, 0-9, '.', '_', '-'.")],
    *,
    architecture: Annotated[str, typer.Option(help="densenet121, resnet50, vgg16, efficientnet_b0, acir ...")],
    weights: Annotated[str, typer.Option(help="torchvision:NAME, random:SEED, or a .safetensors file.")],
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side of the square input.")] = 224,
    voi: Annotated[str, typer.Option(help="apply or ignore the file's window.")] = "apply",
    crop: Annotated[str, typer.Option(help="none, or breast: to what is not background.")] = "none",
    mirror: Annotated[str, typer.Option(help="none, or left: the chest wall to the left.")] = "none",
    pad: Annotated[str, typer.Option(help="squash, or square: keep the aspect ratio.")] = "squash",
    mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Subtracted from pixels in [0, 1]. Default: ImageNet's; of acir 0."),
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="The difference is divided by it. Default: ImageNet's; of acir 1."),
    ] = None,
    options: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help='Options of the architecture, such as {"widths": "s", "bits": 64}.'),
    ] = None,
    tta: Tta = "none",
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    about: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Data, recipe, figures, limits, licence, command.")
    ] = None,
    note: Note = "",
    home: HomeFolder = None,
    as_json: AsJson = False,
) -> None:
    """Make a card: weights, preprocessing, and the ONNX graph, checked against the network."""
    recipe = {"size": size, "voi": voi, "crop": crop, "mirror": mirror, "pad": pad}
    _check(recipe)
    made_of, words = _object(options), _object(about)
    from shared.encoder.build import build

    folder = _settings(home).models_dir / name
    say(f"building {architecture} and its ONNX graph ...")
    build(
        folder,
        name,
        architecture,
        weights,
        Recipe.from_json(recipe),
        mean,
        std,
        note=note,
        options=made_of,
        tta=tta,
        half=half,
        about=words,
    )
    _made(folder, as_json)


def ensemble(  # noqa: PLR0913 - as above
    name: Annotated[str, typer.Argument(help="Name of the new model: a-z, 0-9, '.', '_', '-'.")],
    *,
    members: Annotated[list[Path], typer.Option(help="A model, by name or folder; repeat for each member, in order.")],
    join: Annotated[
        Literal["unit", "raw", "mean", "pca"],
        typer.Option(
            help="unit: concatenate unit vectors; raw: concatenate; mean: average; pca: reduce to principal components."
        ),
    ] = "unit",
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of a member in the mean; repeat for each, in order.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="For pca: the unit ensemble's vectors of training images.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Check that the members are those of best_two_advanced, mixed_best ...")
    ] = None,
    tta: Tta = "none",
    note: Note = "",
    home: HomeFolder = None,
    as_json: AsJson = False,
) -> None:
    """Join several models with the same preprocessing into one model, which holds their weights."""
    from shared.encoder.cards import CARD
    from shared.encoder.derive import build_ensemble, read_features

    models = _settings(home).models_dir
    folders = [member if (member / CARD).is_file() else models / member.name for member in members]
    vectors = None if features is None else read_features(features)
    say(f"joining {len(folders)} models and building their ONNX graph ...")
    build_ensemble(
        models / name, name, folders, join, tta=tta, weights=weight or (), features=vectors, preset=preset, note=note
    )
    _made(models / name, as_json)


def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A torch state dict that you trust.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="A new file.")],
) -> None:
    """Convert a pickle of weights to safetensors, the format that everything else reads."""
    from shared.encoder.convert import convert as rewrite

    count = rewrite(source, target)
    tell(str(target))
    say(f"{count} tensors")


def bring(card: Path, models: Path, name: str | None = None) -> str:
    """Copy the card's folder into the models folder, with an ONNX graph; returns the folder's name there.

    The copy's folder has the name of its card, which is `name` if that is given. The bare name of a folder is looked
    for in the models folder and then among the shipped models; with a `name` the shipped models come first, as it is
    they that need another name.

    Raises: `NotFound` without a card, `Conflict` where another model has the name, `Invalid` for a damaged card.
    """
    from services.embedded.default_model import SHIPPED
    from shared.encoder import cards
    from shared.encoder.null import NULL

    given = card.expanduser()
    for known in (models, SHIPPED.parent) if name is None else (SHIPPED.parent, models):
        if not given.is_dir() and (known / card.name / cards.CARD).is_file():
            given = known / card.name
    folder = given.resolve()
    found = cards.read(folder)
    if folder.parent == models.resolve() and name is None:
        return folder.name
    wanted = replace(found, name=name or found.name)
    target = models / wanted.name
    if target.exists():
        there = cards.read(target, verify=False)
        if (there.fingerprint, there.name) != (wanted.fingerprint, wanted.name):
            raise Conflict("another model has this name; choose another with --name")
        return target.name
    if found.graph is None and found.architecture != NULL:
        from shared.encoder.derive import with_graph  # brings torch

        say("building its ONNX graph ...")
        with_graph(target, folder, wanted.name)
        return target.name
    models.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".adding-", dir=models))
    try:
        for part_of_it in (cards.WEIGHTS, cards.GRAPH):
            with suppress(FileNotFoundError):  # the null encoder has no graph
                shutil.copy2(folder / part_of_it, beside / part_of_it)
        cards.write(wanted, beside)
        shutil.copymode(folder / cards.CARD, beside / cards.CARD)
        cards.read(beside)  # the source may have changed since it was checked
        beside.chmod(0o755)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target.name


def _check(recipe: dict[str, Any]) -> None:
    """Raise a usage error for an unknown recipe value, before torch is imported."""
    allowed = {"voi": ("apply", "ignore"), "crop": ("none", "breast"), "mirror": ("none", "left")}
    for option, words in (allowed | {"pad": ("squash", "square")}).items():
        if recipe[option] not in words:
            raise typer.BadParameter(f"one of {', '.join(words)}", param_hint=f"--{option}")


def _made(folder: Path, as_json: bool) -> None:
    from shared.encoder import cards

    card = cards.read(folder, verify=False)
    if as_json:
        facts = {name: getattr(card, name) for name in ("name", "fingerprint", "label", "architecture", "dim", "bits")}
        tell_json({"folder": str(folder), **facts, "trained": card.weights.trained})
        return
    tell(str(folder))
    parts = [card.label, f"{card.dim} dimensions", *([f"{card.bits} bits"] if card.bits else [])]
    say(f"{', '.join(parts)}, fingerprint {card.fingerprint[:12]}; tell the server with `similis models add {folder}`")


def _object(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        found = json.loads(regular(file, str(file)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise typer.BadParameter(f"there is no file {file}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} does not hold a JSON object")
    return found


def _settings(home: Path | None) -> Settings:
    return Settings() if home is None else Settings(home=home.expanduser().resolve())
