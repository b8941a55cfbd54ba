"""AdvancedFT: end-to-end training of a backbone with a classifier that is then discarded. Source: arXiv 2508.04790."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder.backbones import backbone
from shared.encoder.build import build
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD
from shared.encoder.network import Network, save_state, state_of
from shared.encoder.weights import find
from shared.errors import Invalid
from shared.training.experiment import Batch, Encode, Experiment, Json, Method
from shared.training.selection import macro_precision


class Classifier(nn.Module):
    """Map (n, side, side) in [0, 1] to features (n, dim) and logits (n, classes)."""

    def __init__(self, network: Network, dim: int, classes: int, *, freeze_norm: bool) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(dim, classes)
        self.freeze_norm = freeze_norm

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.freeze_norm:
            frozen_norm(self.network)
        return self

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(pixels)
        return features, self.head(features)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvancedFT(Method[Classifier]):
    """Cross entropy with label smoothing over a linear classifier; the pooled features are the embedding."""

    architecture: str
    weights: str  #: as `shared.encoder.weights.find` reads it
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    smoothing: float = 0.1
    freeze_norm: bool = False  #: keep batch normalisation's statistics: for weights that have them folded in

    def __post_init__(self) -> None:
        check_smoothing(self.smoothing)

    def build(self, data: Collection) -> Classifier:
        network = trainable(self.architecture, self.weights, self.mean, self.std)
        dim = backbone(self.architecture).dim
        return Classifier(network, dim, len(data.classes), freeze_norm=self.freeze_norm)

    def groups(self, model: Classifier) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"backbone": model.network.parameters(), "head": model.head.parameters()}

    def step(self, model: Classifier, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits = model(batch.pixels)[1]
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
        return loss, {"accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def embed(self, model: Classifier, pixels: Tensor) -> Tensor:
        features: Tensor = model(pixels)[0]
        return features

    def validate(self, model: Classifier, held: Collection, encode: Encode) -> Mapping[str, float]:
        features = encode(held)
        head = model.head
        with torch.inference_mode():
            logits = head(features.to(head.weight.device)).cpu()
        correct = (logits.argmax(1) == torch.from_numpy(held.labels)).float().mean()
        return {"macro_precision_at_10": macro_precision(features, held, 10), "val_accuracy": float(correct)}

    def save(self, model: Classifier, folder: Path, experiment: Experiment, about: Json) -> None:
        save_network(model.network.body, folder, experiment, about, self)


def check_smoothing(share: float) -> None:
    """Raises: `Invalid` if the share is not in [0, 1]."""
    if not 0 <= share <= 1:
        raise Invalid("the label smoothing must be 0 to 1")


def trainable(architecture: str, weights: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """Return the backbone with its weights and normalisation, with all parameters trainable."""
    body = find(architecture, weights).body
    for name, buffer in body.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()  # weights have no counters, so the buffer is uninitialised memory
    return Network(body.requires_grad_(requires_grad=True), mean, std)


def frozen_norm(network: Network) -> None:
    """Put batch normalisation in eval mode, so that it keeps its statistics during training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class Pretrained(Protocol):
    """The origin of a method's backbone."""

    @property
    def architecture(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def save_network(
    body: nn.Module,
    folder: Path,
    experiment: Experiment,
    about: Json,
    of: Pretrained,
    options: Mapping[str, str] | None = None,
) -> None:
    """Write the body to the new folder as a model with a card; `options` are those of its kind."""
    weights = folder.with_name("trained.safetensors")
    save_state(state_of(body), weights)
    note = f"{experiment.name} ({experiment.preset}), from {Path(of.weights).name}"
    build(
        folder, experiment.name, of.architecture, str(weights), experiment.recipe, of.mean, of.std,
        options=options, note=note, about=about,
    )  # fmt: skip
    weights.unlink()
