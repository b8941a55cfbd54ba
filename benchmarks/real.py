"""Encodings of real radiographs, one per image in a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.encoder.build import build
from shared.encoder.cards import read
from shared.encoder.convert import convert
from shared.encoder.runtime import Runtime, load
from shared.errors import NotFound
from shared.types import Embeddings, Pixels

PART = 64
SLOTS = 2


def encode_radiographs(folder: Path, encoder: str, scratch: Path) -> tuple[Embeddings, str]:
    """(n, dim) embeddings of every image in the npz files under `folder`, in order, and a description of the source.

    Args:
        encoder: `densenet121`, untrained; the path of a MobileNetV2 state dict, whose inputs are in [-1, 1]; or the
            folder of a model, such as `models/similis-base`.

    Raises:
        NotFound: there are no images.
    """
    images, sources = [], []
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as data:
            images += [data[name] for name in sorted(data.files) if name.endswith("_images") and data[name].ndim == 3]
        sources.append(path.stem)
    if not images:
        raise NotFound("there are no npz files with images in this folder")
    stacked = np.concatenate(images)
    folder = model(encoder, scratch)
    runtime: Runtime = (
        "torch" if read(folder).graph is None else "onnx"
    )  # the shipped model has no graph before a stack starts
    encoders = [load(folder, runtime) for _ in range(SLOTS)]
    parts = [stacked[start : start + PART] for start in range(0, len(stacked), PART)]
    with ThreadPoolExecutor(SLOTS) as pool:  # ONNX Runtime releases the GIL while it computes
        vectors = list(
            pool.map(
                lambda n: np.concatenate(
                    [encoders[n].encode(enlarged(p, encoders[n].card.recipe.size)).embeddings for p in parts[n::SLOTS]]
                ),
                range(SLOTS),
            )
        )
    ordered = np.empty((len(stacked), vectors[0].shape[1]), np.float32)
    places = np.arange(len(stacked)) // PART % SLOTS
    for n, found in enumerate(vectors):
        ordered[places == n] = found
    card = encoders[0].card
    return ordered, f"{len(stacked):,} real images of {', '.join(sources)}, encoder {card.name}, {card.label}"


def enlarged(images: NDArray[np.uint8], side: int) -> Pixels:
    """(n, side, side) in [0, 1], resized bilinearly."""
    resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image, np.float32) / 255 for image in resized])


def model(encoder: str, scratch: Path) -> Path:
    """The folder of a model: `encoder` itself if it is one, else a model built for this run."""
    if (Path(encoder) / "card.json").is_file():
        return Path(encoder)
    folder = scratch / "real-model"
    if not encoder.endswith(".pth"):
        build(folder, encoder, encoder, "random:0")
        return folder
    weights = scratch / "weights.safetensors"
    convert(Path(encoder), weights)
    half = (0.5, 0.5, 0.5)
    build(folder, "mobilenet-v2", "mobilenet_v2", str(weights), mean=half, std=half)
    return folder
