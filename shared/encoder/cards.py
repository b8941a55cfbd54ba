"""Model cards: a file beside the weights with everything that determines a vector.

Each model has a folder: `card.json`, `weights.safetensors`, and `model.onnx` for a neural network. Vectors of two
fingerprints are never compared, so the fingerprint covers every ingredient that changes a vector. It covers neither
runtime nor device: the parity check admits a runtime to a numeric class (`shared.encoder.export`).
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from shared.disk import regular
from shared.encoder.backbones import Pooling
from shared.encoder.ood import Calibration
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe
from shared.wording import wrong

CARD, WEIGHTS, GRAPH = "card.json", "weights.safetensors", "model.onnx"
MOST_PIXELS = 1 << 28  #: of all frames of an image, as float32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Options = Mapping[str, Any]  #: JSON; `shared.encoder.kinds` lists those of each architecture

_TTA = re.compile(r"none|five(:[0-9]{1,9})?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Origin of the weights."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: str  #: "torchvision:IMAGENET1K_V1", "file", or "random:SEED"
    sha256: str  #: of weights.safetensors
    trained: bool
    seed: int | None = None  #: of untrained weights
    origin_sha256: str | None = None  #: of the file they were read from
    note: str = ""  #: licence, training set, in the words of the card's author


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The ONNX graph exported from the weights, and its deviation from torch at export."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    sha256: str  #: of model.onnx
    opset: int
    exporter: str
    max_abs_diff: float  #: of the embeddings
    min_cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    architecture: str
    dim: int
    weights: Weights
    pooling: Pooling
    graph: Graph | None = None  #: None: no graph (the null encoder, or a model built without one)
    recipe: Recipe = field(default_factory=Recipe)
    channels: int = 3  #: the grey frame is repeated to this number
    mean: tuple[float, ...] = IMAGENET_MEAN  #: one per channel
    std: tuple[float, ...] = IMAGENET_STD
    numeric: Literal["fp32"] = "fp32"
    metric: Literal["cosine", "dot", "l2"] = "cosine"  #: embeddings are raw; a cosine index normalises
    bits: int = 0  #: length of the hash code; 0: no hash head
    options: Options = field(default_factory=dict)  #: of the architecture
    tta: str = "none"  #: test-time augmentation, none, five or five:SEED: see `shared.encoder.tta`
    reconstructs: bool = False  #: the model has a decoder, and so an out-of-distribution score
    about: Mapping[str, Any] = field(default_factory=dict)  #: data, recipe, figures, limits, licence, command
    #: by modality; the archive's own calibrations, in the database, take precedence
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.dim < 1 or self.channels < 1 or self.bits < 0 or self.bits % 8 or self.recipe.size < 32:
            raise Invalid("a card needs a dimension, a channel, a multiple of 8 bits, and a side of at least 32 pixels")
        if not 1 <= self.recipe.frames * self.recipe.size**2 <= MOST_PIXELS:
            raise Invalid(
                "a card's recipe must take at least one frame of an image, and no more pixels than fit into 1 GiB"
            )
        check_views(self.tta)
        if not len(self.mean) == len(self.std) == self.channels or not min(self.std) > 0:
            raise Invalid("a card needs a mean and a deviation above zero for each channel")

    @property
    def fingerprint(self) -> str:
        """The identity of the vector space: 64 hexadecimal digits."""
        ingredients: dict[str, Any] = {
            "weights": self.weights.sha256,
            "architecture": self.architecture,
            "dim": self.dim,
            "bits": self.bits,
            "preprocessing": {
                "recipe": self.recipe.to_json(),
                "channels": self.channels,
                "mean": self.mean,
                "std": self.std,
            },
            "pooling": self.pooling,
            "tta": self.tta,
            "numeric": self.numeric,
        }
        if self.options:  # only if set, so that cards older than this field keep their fingerprint
            ingredients["options"] = self.options
        if self.reconstructs:
            ingredients["reconstructs"] = True
        return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()

    @property
    def label(self) -> str:
        """The display name; it says when the weights are untrained."""
        if self.weights.trained:
            return f"{self.architecture} ({self.weights.source})"
        return f"{self.architecture} (untrained, seed {self.weights.seed})"

    @property
    def fitted_hash(self) -> bool:
        """The hash code comes from a head fitted on embeddings (`shared.encoder.hashing`), not from the network."""
        return "hash" in self.options

    @property
    def kind_options(self) -> Options:
        """The options of the network alone, without the fitted hash head's."""
        return {key: value for key, value in self.options.items() if key != "hash"}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Card":
        """Raises: `Invalid` for an unknown, missing or ill-typed key, or a fingerprint that does not match the card."""
        data = dict(data)
        fingerprint = data.pop("fingerprint", None)
        recipe = data.get("recipe", {})
        if not isinstance(recipe, dict):
            raise Invalid("the card's recipe is not an object")
        Recipe.from_json(recipe)  # refuses unknown keys; types are checked below
        text = json.dumps(data)
        if r"\u0000" in text:
            raise Invalid("the card contains a NUL character")
        try:
            card = _adapter().validate_json(text)
        except ValidationError as error:
            raise Invalid(f"the card has missing or wrong fields: {wrong(error)}") from None
        if fingerprint not in (None, card.fingerprint):
            raise Invalid("the card was changed: its fingerprint does not match")
        return card


@cache
def _adapter() -> TypeAdapter[Card]:
    """Made once, on first use: making it takes ten times as long as reading a card."""
    return TypeAdapter(Card)


def check_views(tta: str) -> None:
    """Raises: `Invalid` unless `tta` is none, five, or five:SEED."""
    if not _TTA.fullmatch(tta):
        raise Invalid(
            "test-time augmentation must be none, five, or five:SEED with a whole number of up to nine digits"
        )


def check_name(name: str) -> None:
    """Raises: `Invalid` for a name that cannot be a file name, a URL part and a metric label."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            "a model's name has 1 to 64 characters: a-z, 0-9, '.', '_', '-'; it starts with a letter or digit"
        )


def read(folder: Path, *, verify: bool = True) -> Card:
    """Return the folder's card; with `verify`, weights and graph have the digests that the card states.

    Raises:
        NotFound: there is no card.
        Invalid: the card is malformed, or its weights or graph are missing or were changed.
    """
    try:
        data = json.loads(regular(folder / CARD, "the model card").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("there is no model card") from None
    except (ValueError, RecursionError):
        raise Invalid("the model card is not JSON") from None
    if not isinstance(data, dict):
        raise Invalid("the model card is not an object")
    card = Card.from_json(data)
    if verify:
        _verify(folder / WEIGHTS, card.weights.sha256)
        if card.graph is not None:
            _verify(folder / GRAPH, card.graph.sha256)
    return card


def write(card: Card, folder: Path) -> None:
    """Write the card to the folder durably. Raises: `Conflict` if there is one already: a card never changes."""
    try:
        with (folder / CARD).open("x", encoding="utf-8") as file:
            file.write(json.dumps(card.to_json(), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise Conflict("the folder holds a model card already") from None


def folders(models: Path) -> list[Path]:
    """Return the folders that hold a card, sorted by name, without unfinished builds (names that start with a dot)."""
    return sorted(path.parent for path in models.glob(f"*/{CARD}") if not path.parent.name.startswith("."))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    try:
        found = sha256_of(regular(path, f"the model's {path.name}"))
    except FileNotFoundError:
        raise Invalid(f"the model's {path.name} is missing") from None
    if found != expected:
        raise Invalid(f"the model's {path.name} was changed: its SHA-256 differs from the card's")
