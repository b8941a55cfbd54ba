"""Names in the scratch folder contain a digest of the inputs, so different inputs never share a file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.datasets.collection import Collection
from shared.encoder.build import build
from shared.encoder.cards import sha256_of
from shared.encoder.convert import convert
from shared.imaging.recipe import Recipe
from shared.training.checkpoint import replacing

HALF = (0.5, 0.5, 0.5)  #: mean and deviation that the MobileNetV2 of the development data expects


def digest(*made_of: object) -> str:
    """12 hexadecimal digits; they differ for other values, or a collection of other images, labels, groups or split."""
    told = [one.digest if isinstance(one, Collection) else repr(one) for one in made_of]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def converted(weights: str, folder: Path, scratch: Path) -> str:
    """Weights for `shared.encoder.weights.find`: a pickle in the folder converted to safetensors, others unchanged.

    The file's name contains a hash of its content, so a digest of the name is a digest of the weights.
    """
    if not weights.endswith(".pth"):
        return weights
    pickle = folder / weights
    out = scratch / "weights" / f"{pickle.stem}-{sha256_of(pickle)[:12]}.safetensors"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(pickle, out)
    return str(out)


def network(
    name: str,
    architecture: str,
    weights: str,
    recipe: Recipe,
    scratch: Path,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Path:
    """The folder of a model as the platform loads it, with `converted` weights; built unless it is there."""
    folder = scratch / "models" / f"{name}-{digest(architecture, weights, recipe, mean, std)}"
    if not folder.exists():
        build(folder, name, architecture, weights, recipe, mean, std)
    return folder


def keep(path: Path, **arrays: NDArray[Any]) -> None:
    """Write the arrays to the npz file `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # array names are keywords


def keep_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write each line as JSON to `path` atomically."""
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
