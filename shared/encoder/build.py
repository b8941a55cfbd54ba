"""Build a model once: weights, graph, parity check and card together, never when the platform starts."""

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.disk import sync
from shared.encoder.backbones import parse_seed
from shared.encoder.cards import (
    GRAPH,
    WEIGHTS,
    Card,
    Options,
    check_name,
    write,
)
from shared.encoder.null import DIM, NULL
from shared.encoder.null import save as save_projection
from shared.encoder.ood import Calibration
from shared.errors import Conflict, Invalid
from shared.imaging.recipe import Recipe

_PREFIX = ".building-"
_ABANDONED_S = 3600  #: a build takes seconds; an older folder belongs to a build that was killed


def build(  # noqa: PLR0913 - each argument is an ingredient of the card
    folder: Path,
    name: str,
    architecture: str,
    weights: str,
    recipe: Recipe | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    dim: int | None = None,
    note: str = "",
    options: Options | None = None,
    tta: str = "none",
    about: Mapping[str, Any] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    half: bool = False,
    graph: bool = True,
) -> Card:
    """Write a complete model to `folder`: card, weights, and a graph that agrees with the network.

    A killed build leaves nothing there. DenseNet121 takes 5 s, VGG16 20 s (and 1.1 GB), the null encoder 10 ms.
    The vector length, the code length and the existence of a reconstruction are read from the network's output.

    Args:
        folder: a new folder for this model alone.
        name: the model's name in settings and commands.
        architecture: a name of `BACKBONES`, `acir`, `ensemble`, or `null`.
        weights: `torchvision:NAME`, `random:SEED`, or the path of a .safetensors file, as training writes it.
        recipe, mean, std: the preprocessing that the weights were trained with; by default the architecture's.
        dim: vector length, for the null encoder only.
        note: licence and origin of the weights.
        options: options of the architecture, as JSON; see `shared.encoder.kinds`.
        about: facts for the reader of the card: data, recipe, figures, limits, licence, command.
        calibrations: thresholds by modality.
        half: round the weights to float16 and store them so; the computation stays in float32.
        graph: False writes no graph; `shared.encoder.derive.with_graph` adds one on the machine that uses the model.

    Raises:
        Conflict: the folder is not empty.
        Invalid: weights, options and architecture do not fit, or the graph does not agree with the network.
        NotFound: the weights file does not exist.
        Unavailable: torchvision's weights cannot be downloaded from here.
    """
    check_name(name)
    recipe, options = recipe or Recipe(), as_json(options)
    said: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "options": options,
        "tta": tta,
        "recipe": recipe,
    }
    with beside(folder) as temporary:
        if architecture == NULL:
            if options or mean or std or tta != "none":
                raise Invalid("the null encoder takes neither options, mean, std nor test-time augmentation")
            found = _null(temporary, weights, dim, note)
        elif dim is not None:
            raise Invalid("dim can be chosen for the null encoder only")
        else:
            from shared.encoder.export import measure
            from shared.encoder.kinds import kind
            from shared.encoder.weights import find

            known = kind(architecture)
            mean, std = mean or known.mean, std or known.std
            source = find(architecture, weights, options)
            saved = source.save(temporary / WEIGHTS, note, half=half)
            path = temporary / GRAPH if graph else None
            found = measure(source.body, mean, std, tta, recipe.size, path)
            found |= {"weights": saved, "pooling": known.pooling, "channels": len(mean), "mean": mean, "std": std}
        card = Card(**said, **found, about=as_json(about), calibrations=dict(calibrations or {}))
        write(card, temporary)
    return card


def as_json(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the value after a round trip through JSON, as a card file gives it back.

    Raises: `Invalid` if JSON cannot represent it.
    """
    try:
        return json.loads(json.dumps(dict(value or {}), allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError):
        raise Invalid("a card's options and description must be valid JSON") from None


def _null(folder: Path, weights: str, dim: int | None, note: str) -> dict[str, Any]:
    seed = parse_seed(weights)
    if seed is None:
        raise Invalid("the null encoder's weights must be random:SEED")
    dim = DIM if dim is None else dim
    if not 1 <= dim <= 65_536:
        raise Invalid("the null encoder's dim must be 1 to 65536")
    saved = save_projection(folder / WEIGHTS, dim, seed, note)
    return {"weights": saved, "dim": dim, "pooling": "boxes", "channels": 1, "mean": (0.0,), "std": (1.0,)}


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `folder` if the block succeeds and removed if it raises.

    Raises: `Conflict` if `folder` is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict("the model's folder is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # API and workers may run as other users than the builder
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise Conflict("another build has created this folder meanwhile") from None
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(models: Path) -> None:
    """Remove the folders that killed builds left behind."""
    for path in models.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
