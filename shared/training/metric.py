"""Metric learning: an embedding head under triplet, classification and centre loss. Source: arXiv 2508.04790."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder.backbones import backbone
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD
from shared.encoder.heads import Headed, MetricHead
from shared.encoder.network import Network
from shared.training.experiment import Batch, Experiment, Json, Method
from shared.training.finetune import check_smoothing, frozen_norm, save_network, trainable
from shared.training.losses import CentreLoss

DIM = 512
Mining = Literal["batch-hard", "semi-hard", "drawn"]


class MetricModel(nn.Module):
    def __init__(self, network: Network, features: int, classes: int, *, freeze_norm: bool) -> None:
        super().__init__()
        self.network = network
        self.head = MetricHead(features, DIM)
        self.classifier = nn.Linear(DIM, classes)
        self.centre = CentreLoss(classes, DIM)
        self.freeze_norm = freeze_norm

    def train(self, mode: bool = True) -> "MetricModel":
        super().train(mode)
        if self.freeze_norm:
            frozen_norm(self.network)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (n, side, side) in [0, 1] to (n, 512), before normalisation to unit length."""
        return self.head.raw(self.network(pixels))


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLearning(Method[MetricModel]):
    architecture: str
    weights: str  #: as `shared.encoder.weights.find` reads it
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    freeze_norm: bool = False  #: as in `AdvancedFT`
    triplet: float = 0.6  #: weights of the three losses
    classification: float = 0.3
    centre: float = 0.1
    margin: float = 0.5  #: of Euclidean distances between unit vectors
    mining: Mining = "batch-hard"  #: `drawn`: the batch has the three parts of `shared.training.samplers.Triplets`
    smoothing: float = 0.1
    centres_of: Literal["raw", "unit"] = "raw"  #: the vectors that the centre loss uses

    def __post_init__(self) -> None:
        check_smoothing(self.smoothing)

    def build(self, data: Collection) -> MetricModel:
        network = trainable(self.architecture, self.weights, self.mean, self.std)
        dim = backbone(self.architecture).dim
        return MetricModel(network, dim, len(data.classes), freeze_norm=self.freeze_norm)

    def groups(self, model: MetricModel) -> Mapping[str, Iterable[nn.Parameter]]:
        return {
            "backbone": model.network.parameters(),
            "head": [*model.head.parameters(), *model.classifier.parameters()],
        }

    def step(self, model: MetricModel, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        drawn = self.mining == "drawn"
        # three passes, as in the released code: batch normalisation is computed for each part separately
        raw = torch.cat([model(part) for part in batch.pixels.chunk(3 if drawn else 1)]).float()
        unit = functional.normalize(raw, dim=1)
        told = len(unit) // 3 if drawn else len(unit)  # the released code classifies only the anchors
        labels = batch.labels[:told]
        parts = {
            "triplet": self._triplet(unit, batch.labels),
            "classification": functional.cross_entropy(
                model.classifier(unit[:told]), labels, label_smoothing=self.smoothing
            ),
        }
        if self.centre:
            parts["centre"] = model.centre((raw if self.centres_of == "raw" else unit)[:told], labels)
        shares = {"triplet": self.triplet, "classification": self.classification, "centre": self.centre}
        loss = torch.stack([shares[name] * part for name, part in parts.items()]).sum()
        return loss, parts

    def embed(self, model: MetricModel, pixels: Tensor) -> Tensor:
        return functional.normalize(model(pixels).float(), dim=1)

    def save(self, model: MetricModel, folder: Path, experiment: Experiment, about: Json) -> None:
        save_network(Headed(model.network.body, model.head), folder, experiment, about, self, {"head": "metric"})

    def _triplet(self, unit: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the triplets that violate the margin; a differentiable zero if there are none."""
        loss, miner = _mined(self.mining, self.margin)
        chosen = miner(unit, labels) if miner else tuple(torch.arange(len(unit), device=unit.device).chunk(3))
        made: Tensor = loss(unit, labels, chosen)
        return made


@cache
def _mined(mining: Mining, margin: float) -> tuple[Any, Any]:
    """Return the triplet loss, and the miner that selects triplets from a batch; None for drawn triplets."""
    euclidean = distances.LpDistance(normalize_embeddings=False, p=2)
    miner = {
        "batch-hard": miners.BatchHardMiner(distance=euclidean),
        "semi-hard": miners.TripletMarginMiner(margin, type_of_triplets="semihard", distance=euclidean),
        "drawn": None,
    }[mining]
    return losses.TripletMarginLoss(margin, distance=euclidean), miner
