"""ACIR is trained in two stages: first all but the decoder, then the decoder alone. Source: arXiv 2503.09370."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder.acir import WIDTHS, Acir, Decoder, Head, content, relative_error, squared_error
from shared.encoder.build import build
from shared.encoder.network import save_state, state_of
from shared.encoder.weights import find
from shared.errors import Invalid, NotFound
from shared.training.experiment import Batch, Encode, Experiment, Json, Method
from shared.training.hashing import Objective, class_weights, fingerprint, objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The options of an `acir` card."""

    widths: Literal["full", "s", "s-half", "xs"]
    bits: int
    side: int = 224
    head: Head = "kan"
    darf: bool = True
    spots: bool = False

    def __post_init__(self) -> None:
        if self.bits < 8 or self.bits % 8:
            raise Invalid("the bits of a code must be a multiple of 8")

    def network(self, classes: int, *, decoder: bool) -> Acir:
        return Acir(
            WIDTHS[self.widths],
            self.bits,
            classes,
            side=self.side,
            head=self.head,
            darf=self.darf,
            spots=self.spots,
            decoder=decoder,
        )

    def options(self, *, decoder: bool) -> dict[str, Any]:
        return {**asdict(self), "decoder": decoder}


class Hashed(nn.Module):
    def __init__(self, network: Acir, loss: Objective) -> None:
        super().__init__()
        self.network = network
        self.loss = loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashing(Method[Hashed]):
    """Stage 1: trunk and hash head, by any objective over the logits and an auxiliary classifier."""

    shape: Shape
    objective: str = "acir"  #: a name of `shared.training.hashing.METHODS`
    gamma: float = 0.25
    alpha: float = 0.5  #: of the quantisation
    auxiliary: float = 0.5  #: of the cross-entropy over the head's middle layer
    fingerprint: int = 16  #: pixels
    printed: Literal["clean", "augmented"] = "clean"  #: the images that fingerprints are of
    weighted: bool = False  #: by inverse class frequency: for shuffled batches; class-balanced ones need none
    stem: str = ""  #: architecture and weights it starts from, as `resnet50 torchvision:IMAGENET1K_V1`; empty: nothing
    half: bool = False  #: the weights are stored as float16

    def __post_init__(self) -> None:
        if self.fingerprint < 2:
            raise Invalid("a fingerprint needs at least two pixels a side")
        if self.stem and " " not in self.stem:
            raise Invalid("a stem must name an architecture and weights, such as resnet50 torchvision:IMAGENET1K_V1")

    @property
    def takes(self) -> int:
        return self.shape.side

    def build(self, data: Collection) -> Hashed:
        """Raises: `Invalid` for OrthoHash, whose batch normalisation over the logits has no place in the network."""
        if self.objective == "orthohash":
            raise Invalid("OrthoHash can be trained on features only: its normalisation is not part of the network")
        classes = len(data.classes)
        weights = class_weights(torch.from_numpy(data.labels), classes) if self.weighted else torch.ones(classes)
        loss = objective(self.objective, classes, self.shape.bits, weights, gamma=self.gamma, alpha=self.alpha)
        network = self.shape.network(classes, decoder=False)
        if self.stem:
            architecture, weights_of_stem = self.stem.split(" ", 1)
            network.stem.load_state_dict(find(architecture, weights_of_stem).body.state_dict())
        return Hashed(network, loss)

    def groups(self, model: Hashed) -> Mapping[str, Iterable[nn.Parameter]]:
        stem = {id(p) for p in model.network.stem.parameters()}
        return {
            "stem": model.network.stem.parameters(),
            "rest": [p for p in model.parameters() if id(p) not in stem],
        }

    def step(self, model: Hashed, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        network = model.network
        logits, hidden = network.head(network.features(rgb(batch.pixels)).blended)
        shown = batch.clean if self.printed == "clean" else batch.pixels
        prints = fingerprint(shown, self.fingerprint, centred=self.objective != "acir-released")
        hashing = model.loss(logits, batch.labels, prints)
        if network.classifier is None:
            return hashing, {"hashing": hashing}
        guess = network.classifier(hidden)
        classifying = functional.cross_entropy(guess.float(), batch.labels)
        accuracy = (guess.argmax(1) == batch.labels).float().mean()
        return hashing + self.auxiliary * classifying, {"hashing": hashing, "accuracy": accuracy}

    def embed(self, model: Hashed, pixels: Tensor) -> Tensor:
        return content(model.network.features(rgb(pixels)))

    def save(self, model: Hashed, folder: Path, experiment: Experiment, about: Json) -> None:
        save_network(model.network, self.shape, folder, experiment, about, decoder=False, half=self.half)


class Reconstructing(nn.Module):
    """Only the decoder is trained. The rest stays in evaluation mode, or its batch normalisation would drift."""

    def __init__(self, network: Acir) -> None:
        super().__init__()
        self.network = network.requires_grad_(requires_grad=False)
        self.decoder.requires_grad_(requires_grad=True)

    @property
    def decoder(self) -> Decoder:
        if self.network.decoder is None:
            raise Invalid("this network has no decoder")
        return self.network.decoder

    def train(self, mode: bool = True) -> "Reconstructing":
        super().train(mode=False)
        self.decoder.train(mode)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction(Method[Reconstructing]):
    """Stage 2: the decoder paints the input again from the deep map, by mean squared error.

    The squared error is our choice: the paper's loss is not known.
    """

    shape: Shape
    weights: str  #: path of the safetensors that stage 1 wrote
    half: bool = False

    @property
    def takes(self) -> int:
        return self.shape.side

    def build(self, data: Collection) -> Reconstructing:  # noqa: ARG002 - it needs no classes
        """Raises: `NotFound` without the weights; `Invalid` if they are not of this shape, or no safetensors."""
        if not Path(self.weights).is_file():
            raise NotFound("there is no file with the weights of stage 1: --set method.weights=FILE.safetensors")
        network = self.shape.network(0, decoder=True)
        try:
            state = {name: value.float() for name, value in load_file(self.weights).items()}
        except SafetensorError:
            raise Invalid("the weights of stage 1 are not in safetensors format") from None
        try:
            missing, unexpected = network.load_state_dict(state, strict=False)
        except RuntimeError:
            raise Invalid("the weights of stage 1 do not fit this shape") from None
        lost = [name for name in missing if not name.startswith("decoder.") and "num_batches" not in name]
        foreign = [name for name in unexpected if not name.startswith("classifier.")]
        if lost or foreign:
            raise Invalid("the weights of stage 1 do not fit this shape")
        return Reconstructing(network)

    def groups(self, model: Reconstructing) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"decoder": model.decoder.parameters()}

    def step(self, model: Reconstructing, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = rgb(batch.pixels)
        with torch.no_grad():
            deep = model.network.stem(x)[1]
        loss = squared_error(x, model.decoder(deep)).mean()
        return loss, {}

    def embed(self, model: Reconstructing, pixels: Tensor) -> Tensor:
        """(n, 1): the OOD score, which is all that this stage changes.

        It is the error over the image's variance: the training is selected by what the threshold will be set on, and
        not by the squared error that is descended, in which images of much contrast would decide.
        """
        x = rgb(pixels)
        return relative_error(x, model.decoder(model.network.stem(x)[1]))[:, None]

    def validate(self, model: Reconstructing, held: Collection, encode: Encode) -> Mapping[str, float]:  # noqa: ARG002
        return {"negative_error": -float(encode(held).mean())}

    def save(self, model: Reconstructing, folder: Path, experiment: Experiment, about: Json) -> None:
        save_network(model.network, self.shape, folder, experiment, about, decoder=True, half=self.half)


def rgb(pixels: Tensor) -> Tensor:
    """(n, side, side) to (n, 3, side, side)."""
    return pixels[:, None].expand(-1, 3, -1, -1)


def save_network(
    network: Acir, shape: Shape, folder: Path, experiment: Experiment, about: Json, *, decoder: bool, half: bool
) -> None:
    """The network stands in the new folder as a model with its card and graph."""
    weights = folder.with_name("trained.safetensors")
    save_state(state_of(network), weights)
    build(
        folder,
        experiment.name,
        "acir",
        str(weights),
        experiment.recipe,
        options=shape.options(decoder=decoder),
        half=half,
        note=f"{experiment.name} ({experiment.preset})",
        about=about,
    )
    weights.unlink()
