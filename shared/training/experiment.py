"""An experiment: everything that decides which weights come out, as one value with a digest.

Its parts are frozen dataclasses, so that the value can be written down and compared. A configuration file
(`shared/training/configs`) makes one; the loop (`shared.training.train`) runs it and knows no method.
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
    views: tuple[Tensor, ...]  #: (n, side, side) float32 in [0, 1] each, augmented apart
    clean: Tensor  #: (n, side, side), the same images before augmentation
    labels: Tensor  #: (n,) int64
    groups: Tensor  #: (n,) int64
    rows: Tensor  #: (n,) int64, rows of the training part

    @property
    def pixels(self) -> Tensor:
        return self.views[0]


class Data(Protocol):
    """Where the images come from; implementations are frozen dataclasses. One without a `pad` gives padded squares."""

    def load(self, root: Path) -> Collection:
        """All parts: trained on is `train`, selected by is `val`; `test` is never looked at."""


class Sampler(Protocol):
    def batches(self, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Iterable[Rows]:
        """One epoch: finite, the same for the same arguments."""


class Augmentation(Protocol):
    def __call__(self, images: Tensor, side: int) -> Tensor:
        """(n, h, w) to (n, side, side), both in [0, 1]; draws from torch's global generator."""


class Schedule(Protocol):
    def rate(self, base: float, epoch: float, epochs: int) -> float:
        """The learning rate after `epoch` of `epochs` epochs; whole numbers are the starts of epochs."""


class Method(ABC, Generic[Model]):
    """A network with the loss over it. The model is one module: its state is what a checkpoint holds."""

    @property
    def takes(self) -> int | None:
        """Pixels of the only square input that the network takes; None: it takes any."""
        return None

    @abstractmethod
    def build(self, data: Collection) -> Model:
        """A new model for the training part; random numbers come from torch's global generator."""

    @abstractmethod
    def step(self, model: Model, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss to descend (scalar), and its parts by name, for the eye."""

    @abstractmethod
    def embed(self, model: Model, pixels: Tensor) -> Tensor:
        """(n, side, side) in [0, 1] to (n, dim): what `encode` gives for a whole collection."""

    @abstractmethod
    def save(self, model: Model, folder: Path, experiment: "Experiment") -> None:
        """The model stands in the new folder: weights and card, and whatever it needs to encode."""

    def validate(self, model: Model, held: Collection, encode: "Encode") -> Mapping[str, float]:  # noqa: ARG002
        """Figures of the validation part by name; `Experiment.selection` names the one that must rise."""
        return {"macro_precision_at_10": macro_precision(encode(held), held, 10)}

    def groups(self, model: Model) -> Mapping[str, Iterable[nn.Parameter]]:
        """What is trained, by the names that `Optimiser.rates` has."""
        return {"all": model.parameters()}


class Encode(Protocol):
    def __call__(self, data: Collection) -> Tensor:
        """(n, dim) float32 on the CPU: `Method.embed` over a collection, in batches, in evaluation mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """AdamW, Adam or SGD with one learning rate for each group of the method's parameters."""

    rates: Mapping[str, float]
    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  #: of SGD

    def __post_init__(self) -> None:
        if min([*self.rates.values(), self.weight_decay, self.momentum]) < 0:
            raise Invalid("learning rates, weight decay and momentum are 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Invalid("betas are 0 to less than 1")

    def build(self, groups: Mapping[str, Iterable[nn.Parameter]]) -> torch.optim.Optimizer:
        """Raises `Invalid` where names differ: a group without a rate would silently not be trained."""
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
    factor: int = 2  #: each cycle is so many times longer than the one before
    least: float = 1e-6

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 1:
            raise Invalid("the first cycle has an epoch or more, and the factor of the next is 1 or more")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - cycles know no end
        position, length = int(epoch), self.first
        while position >= length:
            position, length = position - length, length * self.factor
        return self.least + (base - self.least) * (1 + math.cos(math.pi * position / length)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Linear warm-up, then one cosine down to `least`, stepped per batch."""

    warmup: float = 1.0  #: epochs
    start: float = 0.1  #: share of the rate at which the warm-up begins
    least: float = 1e-6

    def rate(self, base: float, epoch: float, epochs: int) -> float:
        if epoch < self.warmup:
            return base * (self.start + (1 - self.start) * epoch / self.warmup)
        done = (epoch - self.warmup) / max(epochs - self.warmup, 1e-9)
        return self.least + (base - self.least) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixedCosine:
    """Linear warm-up, and after it a cosine of its own length, stepped per epoch; what is left of it is not run.

    As timm's CosineLRScheduler with `warmup_prefix`, one cycle: t_initial `cycle`, warmup_lr_init `first`.
    """

    cycle: int  #: epochs from the end of the warm-up to `least`
    warmup: int = 10  #: epochs
    first: float = 1e-4  #: rate of the first epoch
    least: float = 5e-6

    def __post_init__(self) -> None:
        if self.cycle < 1:
            raise Invalid("a cycle has an epoch or more")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - the cosine has its own length
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
            raise Invalid("a step has an epoch or more")

    def rate(self, base: float, epoch: float, epochs: int) -> float:  # noqa: ARG002 - steps know no end
        return base * self.factor ** (int(epoch) // self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """Every image once, in random order; the last batch is dropped where it is not full and not the only one."""

    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise Invalid("a batch has an image or more")

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
    reload_best: bool = True  #: else the weights of the last epoch are kept, as the papers' code does
    clip: float | None = 1.0  #: most that the norm of the gradient may be; None leaves it as it is
    precision: Literal["fp32", "bf16"] = "bf16"  #: of the forward pass; weights and optimiser are float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 32 or self.epochs < 1 or self.patience < 1 or self.views < 1:
            raise Invalid("an experiment has at least 32 pixels, one epoch, one of patience, and one view")
        if not 0 <= self.seed < 2**32:
            raise Invalid("a seed is 0 to 4294967295")
        if self.clip is not None and self.clip <= 0:
            raise Invalid("a gradient that is clipped to nothing trains nothing; no clip is None")
        if self.precision not in ("fp32", "bf16"):
            raise Invalid("the precision is fp32 or bf16")

    @property
    def recipe(self) -> Recipe:
        """The preprocessing for the model's card: as the data became squares, so the platform has to make them."""
        return Recipe(size=self.side, pad=getattr(self.data, "pad", "square"))

    def to_json(self) -> Json:
        described = describe(self)
        return described if isinstance(described, dict) else {}

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: equal for two experiments that would do the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def describe(value: object) -> object:
    """The value as JSON has it; dataclasses name their class.

    Raises: `Invalid` for what has no such form: two experiments that differ in it would look alike.
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
