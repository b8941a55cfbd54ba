"""`similis evaluate` writes a report on a model's retrieval; `similis encode` writes a model's vectors.

Heavy modules are imported inside the commands.
"""

import csv
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shared.config import Settings
from shared.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:  # numpy, scikit-learn and the encoders come with them
    from shared.encoder.base import Encoder
    from shared.training.evaluate import Report
    from shared.training.protocols import Subjects
    from shared.training.vectors import Vectors

Label = Literal["birads", "density", "pathology"]
ALL = "all"


def evaluate_command(  # noqa: PLR0913 - the options, one by one
    *,
    model: Annotated[str, typer.Option(help="A model's folder, or the name of one in the home.")],
    out: Annotated[Path, typer.Option(help="A new folder for the report.")],
    collection: Annotated[
        str,
        typer.Option(help="A set below --data: radiology_16class, mias ..., or a published one, as cdd-cesm."),
    ] = "",
    folder: Annotated[Path | None, typer.Option(help="Your own images: DICOM, PNG or JPEG.")] = None,
    labels: Annotated[Path | None, typer.Option(help="The table of the folder's images.")] = None,
    label: Annotated[Label, typer.Option(help="The column that decides whether two images match.")] = "birads",
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="patient, lopo, split, paper1-compat, paper2-v1-compat, or all. Append :A:B to ask with images of "
            "kind A and search those of kind B, as in patient:DM_low_energy:CESM_subtracted."
        ),
    ] = None,
    distance: Annotated[
        list[str] | None, typer.Option(help="cosine or l2; codes are always compared by hamming.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of random splits for protocol patient.")] = 5,
    resamples: Annotated[int, typer.Option(min=1000, help="Resamples of the bootstrap over patients.")] = 2000,
    components: Annotated[
        int | None,
        typer.Option(min=1, help="Reduce embeddings to this many principal components, fitted on the training part."),
    ] = None,
    data: Annotated[Path, typer.Option(help="The folder of the sets.")] = Path("../shared/data"),
    home: Annotated[Path | None, typer.Option(help="Where everything is kept. Default: ~/.similis.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the encoder.")] = 1,
    against: Annotated[
        str, typer.Option(help="Another model to compare with: its figures are subtracted, with a paired test.")
    ] = "",
    pictures: Annotated[bool, typer.Option(help="Draw PCA and t-SNE of the embeddings.")] = True,
) -> None:
    """Evaluate a model's retrieval on labelled images and write figures, tables and plots to a new folder."""
    if bool(collection) == (folder is not None) or (folder is not None) != (labels is not None):
        raise typer.BadParameter("name a --collection, or a --folder with its --labels", param_hint="--collection")
    if (out / "report.json").exists():
        raise Conflict("the folder holds a report already")
    out.mkdir(parents=True, exist_ok=True)  # fail before hours of work if the folder cannot be written

    from shared.encoder.cards import read
    from shared.training.evaluate import Plan, evaluate
    from shared.training.report import write

    wanted = _protocols(protocol or ["patient"], given=bool(collection), fitted=components is not None)
    plan = Plan(protocols=wanted, seeds=tuple(range(seeds)), resamples=resamples, components=components)
    distances = _distances(distance)

    def measured(path: Path) -> "tuple[Report, Vectors]":
        encoder = _encoder(path, threads)
        if folder is not None and labels is not None:
            from shared.training.vectors import of_folder

            subjects, vectors = of_folder(encoder, folder, labels, label)
        else:
            subjects, vectors = _of_collection(encoder, collection, data)
        _say(f"measuring {len(subjects)} images under {', '.join(wanted)}")
        return evaluate(subjects, vectors.spaces(distances), plan, _about(encoder)), vectors

    paths = [_model(name, home) for name in (model, against) if name]
    for path in paths:  # what cannot work is told before another model has encoded for hours
        dim = read(path).dim
        if components is not None and components > dim:
            raise Invalid(f"the model's vectors have only {dim} numbers, fewer than the components asked for")
    (report, vectors), *others = map(measured, paths)
    write(report, out, vectors.embeddings if pictures else None, *(other for other, _ in others))
    typer.echo(str(out / "report.md"))


def encode_command(
    model: Annotated[str, typer.Argument(help="A model's folder, or the name of one in the home.")],
    folder: Annotated[Path, typer.Argument(help="Images: DICOM, PNG or JPEG.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npy", help="A new file; OUT.csv lists the image of each row.")],
    *,
    home: Annotated[Path | None, typer.Option(help="Where everything is kept. Default: ~/.similis.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the encoder.")] = 1,
) -> None:
    """Write a model's vectors of all images of a folder: (n, dim) of float32, in the order of their paths."""
    if out.suffix != ".npy":
        raise typer.BadParameter("the file name must end in .npy", param_hint="OUT.npy")
    named = out.with_suffix(".csv")
    if out.exists() or named.exists():
        raise Conflict("OUT.npy or OUT.csv exists already")
    if not out.parent.is_dir():
        raise NotFound("the folder of OUT.npy does not exist")
    import numpy as np

    from shared.training.vectors import of_files

    rows, vectors, left_out = of_files(_encoder(_model(model, home), threads), folder)
    with TemporaryDirectory(dir=out.parent, prefix=".") as beside:
        made = Path(beside) / out.name
        np.save(made, vectors.embeddings)
        names = made.with_suffix(".csv")
        with names.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:  # bytes as on disk
            writer = csv.writer(file)
            writer.writerow(("file", "frame"))
            writer.writerows((path.relative_to(folder), frame) for path, frame in rows)
        names.rename(named)
        made.rename(out)
    _say(f"{len(rows)} images{'; ' * bool(left_out)}{left_out}")
    typer.echo(str(out))


def _encoder(path: Path, threads: int) -> "Encoder":
    from shared.encoder.cards import read
    from shared.encoder.runtime import load

    card = read(path)
    _say(f"encoding with {card.name}, {card.label}")
    return load(path, "torch" if card.graph is None and card.architecture != "null" else "onnx", threads)


def _model(name: str, home: Path | None) -> Path:
    """Return the folder itself, or the home's folder of the model of this name. Raises: `NotFound`."""
    from shared.encoder.cards import CARD

    settings = Settings() if home is None else Settings(home=home)
    for path in (Path(name), settings.models_dir / name):
        if (path / CARD).is_file():
            return path
    raise NotFound("there is no such model: name its folder, or one of `similis models list`")


def _protocols(names: list[str], *, given: bool, fitted: bool = False) -> tuple[str, ...]:
    """Return the requested protocols; `all` includes only those that these images and components allow.

    Args:
        given: the images have a split.
        fitted: components are fitted to the protocol's training part.

    Raises: `NotFound`; `Invalid` for a protocol without the part that it needs, before anything is encoded.
    """
    from shared.training.protocols import FITTED, PROTOCOLS, protocol

    every = [name for name in PROTOCOLS if (given or name != "split") and (not fitted or name in FITTED)]
    asked = [one for name in names for one in (every if name == ALL else [protocol(name).name])]
    for base in (name.partition(":")[0] for name in asked):
        if fitted and base not in FITTED:
            raise Invalid(f"{base} has no training part to fit components to: use patient or split")
    if not given and any(name.partition(":")[0] == "split" for name in asked):
        raise Invalid("a folder has no split, and the column of a table is not used: use patient or lopo")
    return tuple(dict.fromkeys(asked))


def _distances(names: list[str] | None) -> list[str]:
    chosen = names or ["cosine"]
    if not set(chosen) <= {"cosine", "l2"}:
        raise Invalid("a distance must be cosine or l2")
    return chosen


def _of_collection(encoder: "Encoder", name: str, data: Path) -> "tuple[Subjects, Vectors]":
    import numpy as np

    from shared.datasets.development import load
    from shared.training.protocols import Subjects
    from shared.training.vectors import encode

    found = load(name, data, recipe=encoder.card.recipe)
    ordinal = [title.rpartition(" ")[2] for title in found.classes]
    grades = np.array([int(grade) for grade in ordinal]) if all(grade.isdecimal() for grade in ordinal) else None
    return Subjects.of(found, grades), encode(encoder, found.images)


def _about(encoder: "Encoder") -> dict[str, Any]:
    import platform

    card = encoder.card
    return {
        "model": f"{card.name}, {card.label}",
        "fingerprint": card.fingerprint,
        "trained": card.weights.trained,
        "command": shlex.join(["similis", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
