"""`similis train`, `evaluate` and `encode`: registered by an entry point, so that services import no training.

Torch is imported by the commands when they run, never by the registration.
"""

import json
import sys
from dataclasses import fields, is_dataclass, replace
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from shared.errors import Invalid, NotFound
from shared.training.evaluate_cli import Label, encode_command, evaluate_command

if TYPE_CHECKING:  # torch comes with it
    from shared.training.experiment import Experiment

CONFIGS = Path(__file__).parent / "configs"


def register(app: typer.Typer) -> None:
    """Add the commands that train, evaluate and encode."""
    app.command()(train)
    app.command("evaluate")(evaluate_command)
    app.command("encode")(encode_command)


def train(  # noqa: PLR0913 - the options, one by one
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="NAME or NAME:VARIANT as --list shows it, or your own .py file.")
    ] = "",
    *,
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")] = Path("../shared/data"),
    folder: Annotated[Path | None, typer.Option(help="Your own images instead: DICOM, PNG or JPEG.")] = None,
    labels: Annotated[Path | None, typer.Option(help="The table of the folder's images.")] = None,
    label: Annotated[Label, typer.Option(help="The column that the model learns to predict.")] = "birads",
    out: Annotated[Path | None, typer.Option(help="A new folder. Default: runs/NAME-PRESET-SEED.")] = None,
    preset: Annotated[
        str, typer.Option(help="recommended, or another preset of the configuration, as --list shows it.")
    ] = "recommended",
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the configuration's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the configuration's.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a setting, such as method.weights=net.safetensors; repeatable."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: all cores.")] = None,
    resume: Annotated[bool, typer.Option(help="Resume the same training where it was stopped.")] = True,
    list_: Annotated[bool, typer.Option("--list", help="List the configurations.")] = False,
) -> None:
    """Train a model and write its weights, card and figures to a new folder."""
    if list_:
        for line in listed():
            typer.echo(line)
        return
    if not config:
        raise typer.BadParameter("name a configuration; --list says which there are", param_hint="CONFIG")
    changes = [one.partition("=")[::2] for one in change or []]
    changes += [(name, str(value)) for name, value in (("seed", seed), ("epochs", epochs)) if value is not None]
    if (folder is None) != (labels is None):
        raise typer.BadParameter("give both --folder and --labels, or neither", param_hint="--folder")
    experiment = load(config, preset)
    for name, value in changes:
        experiment = changed(experiment, name, value)
    if folder is not None and labels is not None:
        from shared.training.archive import Archive

        own = Archive(
            folder=str(folder.resolve()),
            labels=str(labels.resolve()),
            label=label,
            side=max(experiment.side, getattr(experiment.data, "side", 0)),
            pad=experiment.recipe.pad,
            limit=getattr(experiment.data, "limit", None),
        )
        experiment = replace(experiment, data=own)
    target = out or Path("runs") / f"{experiment.name}-{preset}-{experiment.seed}"

    from shared.training.train import train as run

    figures = run(experiment, data, target, resume=resume, threads=threads)
    if figures["best_score"] is None:
        said = f"the last epoch is kept: too few patients were held out to measure {figures['selection']}"
    else:
        said = f"best of {len(figures['history'])} epochs: {figures['selection']} {figures['best_score']:.4f}"
    sys.stderr.write(f"{said}\n")
    typer.echo(str(target / "model"))


def listed() -> list[str]:
    """Return one line for each configuration and variant."""
    lines = []
    for path in sorted(CONFIGS.glob("[a-z]*.py")):
        module = _module(path.stem)
        about = (module.__doc__ or "").partition("\n")[0]
        variants = getattr(module, "VARIANTS", ())
        names = [f"{path.stem}:{variant}" for variant in variants] or [path.stem]
        lines += [f"{name:32}{', '.join(module.PRESETS):40}{about}" for name in names]
    return lines


def load(config: str, preset: str) -> "Experiment":
    """Return the experiment of a configuration, given by name or file.

    Raises:
        NotFound: there is no such configuration.
        Invalid: the configuration has no such preset or variant.
    """
    name, _, variant = config.partition(":")
    module = _module(name)
    if not hasattr(module, "PRESETS") or not hasattr(module, "experiment"):
        raise Invalid("the configuration file has no PRESETS, or no experiment(preset, variant)")
    variants: tuple[str, ...] = getattr(module, "VARIANTS", ("",))
    if preset not in module.PRESETS:
        raise Invalid(f"{name} has the presets {', '.join(module.PRESETS)}")
    if variant and variant not in variants:
        raise Invalid(f"{name} has the variants {', '.join(filter(None, variants)) or 'none'}")
    made: Experiment = module.experiment(preset, variant or variants[0])
    return made


def _module(name: str) -> ModuleType:
    if name.endswith(".py") and Path(name).is_file():
        spec = util.spec_from_file_location("similis_experiment", name)
        if spec is None or spec.loader is None:
            raise Invalid("the configuration file cannot be read")
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if not name.isidentifier() or not (CONFIGS / f"{name}.py").is_file():
        raise NotFound("there is no such configuration; `similis train --list` says which there are")
    return import_module(f"shared.training.configs.{name}")


def changed(value: Any, name: str, text: str) -> Any:  # noqa: ANN401 - any part of an experiment
    """Return a copy in which the field `name` (dotted for nested fields) is `text`, read as JSON or else literally.

    Raises: `Invalid` for an unknown field, or a value of another type than the replaced one.
    """
    first, _, rest = name.partition(".")
    if isinstance(value, dict) and first in value:
        return {**value, first: changed(value[first], rest, text) if rest else _read(text, value[first], first)}
    if not is_dataclass(value) or isinstance(value, type) or first not in {field.name for field in fields(value)}:
        raise Invalid(f"the experiment has no field {first} at this place")
    old = getattr(value, first)
    if rest:
        return replace(value, **{first: changed(old, rest, text)})
    return replace(value, **{first: _read(text, old, first, get_type_hints(type(value))[first])})


def _read(text: str, old: object, name: str, kind: object = None) -> object:
    """Parse the text as a value for a field of this kind. Raises: `Invalid`."""
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if get_origin(kind) is Literal and new not in get_args(kind):
        raise Invalid(f"{name} must be one of {', '.join(map(str, get_args(kind)))}")
    if new is None and type(None) in get_args(kind):
        return None
    wanted = type(old)
    if old is None:  # take the type from the field's declaration
        wanted = next((get_origin(one) or one for one in get_args(kind) if one is not type(None)), wanted)
    if wanted is tuple and isinstance(new, list):
        return _row(new, get_args(kind), name)
    if wanted is float and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if type(new) is not wanted:
        raise Invalid(f"{name} must be of type {wanted.__name__}")
    return new


def _row(values: list[object], kinds: tuple[Any, ...], name: str) -> tuple[object, ...]:
    """Return the values as a tuple of these kinds: of their number, or of any length for `X, ...`."""
    wanted = kinds[:1] * len(values) if kinds[-1] is Ellipsis else kinds
    if len(values) != len(wanted):
        raise Invalid(f"{name} must have {len(wanted)} values")
    return tuple(_read(json.dumps(value), kind(), name) for value, kind in zip(values, wanted, strict=True))
