"""An experiment: everything that determines the trained weights, as one value with a digest.

Its parts are frozen dataclasses, so that it can be written to JSON and compared. A configuration file
(`shared/training/configs`) builds an experiment; the loop (`shared.training.train`) runs it for any method.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.datasets.collection import Collection
from shared.errors import Invalid
from shared.imaging.recipe import Recipe
from shared.training.selection import macro_precision

Json = dict[str, Any]
Model = TypeVar("Model", bound=nn.Module)
Rows = NDArray[np.int64]  #: (batch,), rows of the training part


class Batch(NamedTuple):
    views: tuple[Tensor, ...]  #: (n, side, side) float32 in [0, 1] each, augmented independently
    clean: Tensor  #: (n, side, side), the same images before augmentation
    labels: Tensor  #: (n,) int64
    groups: Tensor  #: (n,) int64
    rows: Tensor  #: (n,) int64, rows of the training part

    @property
    def pixels(self) -> Tensor:
        return self.views[0]


class Data(Protocol):
    """The source of the images, a frozen dataclass. If it has no `pad`, its images are padded to squares."""

    def load(self, root: Path) -> Collection:
        """Return all parts: `train` for training, `val` for selecting the checkpoint; `test` is never used."""


class Sampler(Protocol):
    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterable[Rows]:
        """Return the batches of one epoch: finite, and the same for the same arguments."""


class Augmentation(Protocol):
    def __call__(self, images: Tensor, side: int) -> Tensor:
        """Map (n, h, w) to (n, side, side), both in [0, 1]; draws from torch's global generator."""


class Schedule(Protocol):
    def rate(self, base: float, epoch: float, epochs: int) -> float:
        """Return the learning rate after `epoch` of `epochs` epochs; a whole number is the start of an epoch."""


class Method(ABC, Generic[Model]):
    """A network with its loss. The model is one module, whose state is saved in checkpoints."""

    @property
    def takes(self) -> int | None:
        """The side of the square input that the network requires, in pixels; None if it takes any."""
        return None

    @abstractmethod
    def build(self, data: Collection) -> Model:
        """Return a new model for the training part; random numbers come from torch's global generator."""

    @abstractmethod
    def step(self, model: Model, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the scalar loss to minimise, and its parts by name, for display only."""

    @abstractmethod
    def embed(self, model: Model, pixels: Tensor) -> Tensor:
        """Map (n, side, side) in [0, 1] to (n, dim); `encode` applies it to a whole collection."""

    @abstractmethod
    def save(self, model: Model, folder: Path, experiment: "Experiment", about: Json) -> None:
        """Write the model to the new folder: weights, card with `about`, and everything else that encoding needs."""

    def validate(self, model: Model, held: Collection, encode: "Encode") -> Mapping[str, float]:  # noqa: ARG002
        """Return figures of the validation part by name; `Experiment.selection` names the one to maximise."""
        return {"macro_precision_at_10": macro_precision(encode(held), held, 10)}

    def groups(self, model: Model) -> Mapping[str, Iterable[nn.Parameter]]:
        """Return the trained parameters, by the names in `Optimiser.rates`."""
        return {"all": model.parameters()}


class Encode(Protocol):
    def __call__(self, data: Collection) -> Tensor:
        """Return (n, dim) float32 on the CPU: `Method.embed` over a collection, in batches, in evaluation mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """AdamW, Adam or SGD with a learning rate for each group of the method's parameters."""

    rates: Mapping[str, float]
    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  #: of SGD

    def __post_init__(self) -> None:
        if min([*self.rates.values(), self.weight_decay, self.momentum]) < 0:
            raise Invalid("learning rates, weight decay and momentum must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Invalid("betas must be at least 0 and below 1")

    def build(self, groups: Mapping[str, Iterable[nn.Parameter]]) -> torch.optim.Optimizer:
        """Raises: `Invalid` if the names differ: a group without a rate would silently not be trained."""
        if groups.keys() != self.rates.keys():
            raise Invalid(f"learning rates are for {sorted(self.rates)}, the model has {sorted(groups)}")
        made: list[Json] = [
            {"params": [p for p in groups[name] if p.requires_grad], "lr": rate, "base": rate}
            for name, rate in self.rates.items()
        ]
        if self.kind == "sgd":
            return torch.optim.SGD(made, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        return kind(made, betas=self.betas, weight_decay=self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmRestarts:
    """Cosine annealing with warm restarts, stepped per epoch. Source: SGDR, arXiv 1608.03983."""

    first: int = 5  #: epochs of the first cycle
    factor: int = 2  #: length of each cycle relative to the previous one
    least: float = 1e-6

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 1:
            raise Invalid("the first cycle needs at least one epoch, and the factor must be at least 1")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - cycles continue without end
        position, length = int(epoch), self.first
        while position >= length:
            position, length = position - length, length * self.factor
        return self.least + (base - self.least) * (1 + math.cos(math.pi * position / length)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Linear warm-up, then one cosine down to `least`, updated per batch."""

    warmup: float = 1.0  #: epochs
    start: float = 0.1  #: initial rate of the warm-up, as a share of the base rate
    least: float = 1e-6

    def rate(self, base: float, epoch: float, epochs: int) -> float:
        if epoch < self.warmup:
            return base * (self.start + (1 - self.start) * epoch / self.warmup)
        done = (epoch - self.warmup) / max(epochs - self.warmup, 1e-9)
        return self.least + (base - self.least) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixedCosine:
    """Linear warm-up, then a cosine of `cycle` epochs, updated per epoch; a shorter training cuts the cosine off.

    Like timm's CosineLRScheduler with `warmup_prefix`, one cycle: t_initial `cycle`, warmup_lr_init `first`.
    """

    cycle: int  #: epochs from the end of the warm-up to `least`
    warmup: int = 10  #: epochs
    first: float = 1e-4  #: rate of the first epoch
    least: float = 5e-6

    def __post_init__(self) -> None:
        if self.cycle < 1:
            raise Invalid("a cycle needs at least one epoch")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - `cycle` is the length
        at = int(epoch)
        if at < self.warmup:
            return self.first + at * (base - self.first) / self.warmup
        done = min((at - self.warmup) / self.cycle, 1)
        return self.least + (base - self.least) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The rate is multiplied by `factor` every `size` epochs."""

    size: int
    factor: float

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Invalid("a step needs at least one epoch")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - steps continue without end
        return base * self.factor ** (int(epoch) // self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """Every image once, in random order; an incomplete last batch is dropped, unless it is the only one."""

    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise Invalid("a batch needs at least one image")

    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterator[Rows]:  # noqa: ARG002
        order = np.random.default_rng(seed).permutation(len(labels))
        for start in range(0, max(len(order) - self.batch, 0) + 1, self.batch):
            yield order[start : start + self.batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    name: str
    preset: str = "recommended"
    data: Data
    side: int  #: pixels of the square input
    method: Method[Any]
    sampler: Sampler
    augmentation: Augmentation
    views: int = 1  #: augmented versions of each image in a batch
    optimiser: Optimiser
    schedule: Schedule
    epochs: int
    patience: int  #: epochs without a better selection figure before the training ends
    selection: str = "macro_precision_at_10"  #: a figure of `Method.validate`; higher is better
    reload_best: bool = True  #: False keeps the weights of the last epoch, as the papers' code does
    clip: float | None = 1.0  #: largest norm of the gradient; None does not clip
    precision: Literal["fp32", "bf16"] = "bf16"  #: of the forward pass; weights and optimiser are float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 32 or self.epochs < 1 or self.patience < 1 or self.views < 1:
            raise Invalid(
                "an experiment needs at least 32 pixels a side, one epoch, one epoch of patience, and one view"
            )
        if not 0 <= self.seed < 2**32:
            raise Invalid("a seed must be 0 to 4294967295")
        if self.clip is not None and self.clip <= 0:
            raise Invalid("clip must be above 0, or None for no clipping")
        if self.precision not in ("fp32", "bf16"):
            raise Invalid("the precision must be fp32 or bf16")

    @property
    def recipe(self) -> Recipe:
        """The recipe for the model's card, which makes images square in the same way as the training data."""
        return Recipe(size=self.side, pad=getattr(self.data, "pad", "square"))

    def to_json(self) -> Json:
        described = describe(self)
        return described if isinstance(described, dict) else {}

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, equal for experiments with equal settings."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def describe(value: object) -> object:
    """Return the value as JSON types; dataclasses include their class name.

    Raises: `Invalid` for any other type, because two experiments that differ in it would have one digest.
    """
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__qualname__, **own}
    if isinstance(value, Mapping):
        return {str(key): describe(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise Invalid(f"an experiment cannot be described by a {type(value).__name__}")
