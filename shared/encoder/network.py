"""The torch module of a card: one forward pass from grey pixels to raw embeddings, used for both runtimes."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.encoder.backbones import BACKBONES, backbone
from shared.encoder.vision import models
from shared.errors import Invalid

State = dict[str, Tensor]


class Outputs(NamedTuple):
    """Outputs of one pass through a body that is more than a backbone; a backbone returns only its embeddings."""

    embeddings: Tensor  #: (n, dim)
    logits: Tensor | None = None  #: (n, bits): a bit of the hash code is set where the logit is at least 0
    errors: Tensor | None = None  #: (n,): reconstruction error; higher is stranger


def named(outputs: Tensor | Outputs) -> State:
    """Return the outputs that are not None, by name."""
    if isinstance(outputs, Tensor):
        return {"embeddings": outputs}
    return {name: value for name, value in outputs._asdict().items() if value is not None}


class Network(nn.Module):
    """Map grey pixels (n, side, side) in [0, 1] to (n, dim) or `Outputs`: repeat channels, normalise, run the body."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        # not persistent: mean and std are stored in the card, and the weights file holds only the body's tensors
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor | Outputs:
        return self.body(self.normalised(pixels))  # type: ignore[no-any-return]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the body's input, (n, channels, side, side)."""
        coloured = pixels.unsqueeze(1).expand(-1, self.mean.shape[1], -1, -1)
        return (coloured - self.mean) / self.std


def body(architecture: str, *, empty: bool = False) -> nn.Module:
    """Return the backbone without its classifier, in eval mode: torchvision's initialisation, or `empty` for `fill`.

    Raises: `Invalid` for an unknown architecture.
    """
    shape = backbone(architecture)
    with torch.device("meta" if empty else "cpu"):
        module: nn.Module = models().get_model(architecture, weights=None)
    module.set_submodule(shape.head, nn.AdaptiveAvgPool2d(1) if shape.head_pools else nn.Identity())
    if empty:
        module = module.to_empty(device="cpu")
    return module.eval().requires_grad_(requires_grad=False)


def state_of(module: nn.Module) -> State:
    """Return the tensors that determine the vectors, so without the counters of batch normalisation."""
    return {key: value.contiguous() for key, value in module.state_dict().items() if not _counter(key)}


def save_state(state: State, path: Path, source: str = "") -> None:
    """Write the tensors as safetensors; `source` becomes the file's metadata.

    Raises: `OSError` if the disk does not take the file: safetensors has an error of its own for that.
    """
    try:
        # only one key: safetensors writes several in random order, which would change the digest each time
        save_file(state, path, metadata={"source": source} if source else None)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from None


def fill(module: nn.Module, state: Mapping[str, Tensor], architecture: str) -> None:
    """Load the weights into the module as float32.

    Weights of parts that only training needs are optional and ignored: a backbone's classifier; ACIR's classifier,
    and its decoder if the module has none.

    Raises:
        Invalid: a weight is missing, unexpected, of another shape, or not finite.
    """
    wanted = state_of(module)
    spare = (BACKBONES[architecture].head + ".",) if architecture in BACKBONES else ("classifier.", "decoder.")
    unused = tuple(part for part in spare if not any(key.startswith(part) for key in wanted))
    given = {key: value.float() for key, value in state.items() if not (_counter(key) or key.startswith(unused))}
    problems = [
        _tell("missing", wanted.keys() - given.keys()),
        _tell("unexpected", given.keys() - wanted.keys()),
        _tell("of another shape", {k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape}),
        _tell("not finite", {k for k, value in given.items() if not torch.isfinite(value).all()}),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise Invalid(f"the weights do not fit {architecture}: {'; '.join(found)}")
    module.load_state_dict(given, strict=False)  # the check above is strict but for the counters, with clearer messages


def _counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _tell(what: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
