"""ACIR's trunk on the 16 classes, trained once per seed, and its features of every image, kept on disk.

Heads are trained on these features, so without augmentation, and on a trunk shaped by ACIR's own loss.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.retrieval.scratch import HALF, digest, keep
from shared.datasets.collection import Collection
from shared.encoder.acir import Acir, content
from shared.encoder.network import Network
from shared.encoder.weights import find
from shared.training.acir import Hashing, Shape, rgb
from shared.training.checkpoint import METRICS, MODEL
from shared.training.configs import acir
from shared.training.data import encode
from shared.training.experiment import Experiment
from shared.training.train import train

WEIGHTS = "weights.safetensors"
SIDE = 128  #: input of the frozen backbones


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """One end-to-end training."""

    widths: acir.Widths
    epochs: int
    objective: str = "acir"
    darf: bool = True
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.widths}-{self.objective}{'' if self.darf else '-no-darf'}-{self.epochs}-{self.seed}"

    @property
    def shape(self) -> Shape:
        return Shape(widths=self.widths, bits=acir.BITS, side=112, darf=self.darf)

    @property
    def experiment(self) -> Experiment:
        base = acir.experiment("recommended", self.widths)
        method = Hashing(shape=self.shape, objective=self.objective)
        return replace(base, name=f"acir-{self.name}", method=method, epochs=self.epochs, seed=self.seed)

    def folder(self, data: Path, scratch: Path) -> Path:
        """Its training folder; the name depends on recipe and data."""
        made_of = digest(self.experiment.digest, self.experiment.data.load(data))
        return scratch / "trunks" / f"{self.name}-{made_of}"

    def trained(self, data: Path, scratch: Path) -> Path:
        """The folder of the trained model; an interrupted training is resumed, a finished one reused."""
        out = self.folder(data, scratch)
        if not (out / METRICS).exists():
            train(self.experiment, data, out)
        return out / MODEL

    def network(self, model: Path, *, decoder: bool = False) -> Acir:
        body = find("acir", str(model / WEIGHTS), self.shape.options(decoder=decoder)).body
        if not isinstance(body, Acir):
            raise TypeError("the weights are not ACIR's")
        return body


class Seen(NamedTuple):
    """Features of a collection; rows are in its order."""

    blended: Tensor  #: (n, dim) z, the input of a head
    embeddings: NDArray[np.float32]  #: (n, dim) content, for float search
    logits: NDArray[np.float32] | None  #: (n, bits) of the trunk's own head


def seen(trunk: Trunk, collection: Collection, data: Path, scratch: Path) -> Seen:
    """Features of the collection from the trained trunk; cached on disk."""
    path = scratch / "features" / f"{trunk.folder(data, scratch).name}-{collection.name}-{digest(collection)}.npz"
    if not path.exists():
        network = trunk.network(trunk.trained(data, scratch))
        bits = acir.BITS

        def look(pixels: Tensor) -> Tensor:
            features = network.features(rgb(pixels))
            return torch.cat([network.head(features.blended)[0], features.blended, content(features)], 1)

        found = encode(look, collection, trunk.experiment.side).numpy()
        keep(
            path,
            logits=found[:, :bits],
            blended=found[:, bits : bits + network.dim],
            embeddings=found[:, bits + network.dim :],
        )
    held = np.load(path)
    return Seen(torch.from_numpy(held["blended"]), held["embeddings"], held["logits"])


def seen_by_backbone(architecture: str, weights: str, collection: Collection, scratch: Path) -> Seen:
    """Pooled features of a frozen backbone, for comparison with the trunk's."""
    name = f"{architecture}-{Path(weights).stem.replace(':', '-')}-{collection.name}-{digest(collection)}"
    path = scratch / "features" / f"{name}.npz"
    if not path.exists():
        network = Network(find(architecture, weights).body, HALF, HALF).eval()
        found = encode(lambda pixels: _vectors(network, pixels), collection, SIDE).numpy()
        keep(path, embeddings=found)
    embeddings = np.load(path)["embeddings"]
    return Seen(torch.from_numpy(embeddings), embeddings, None)


def _vectors(network: Network, pixels: Tensor) -> Tensor:
    found = network(pixels)
    return found if isinstance(found, Tensor) else found.embeddings
