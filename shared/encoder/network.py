"""Card to torch module: one forward pass from grey pixels to raw embedding. Both runtimes run this one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.encoder.backbones import BACKBONES, backbone
from shared.encoder.vision import models
from shared.errors import Invalid

State = dict[str, Tensor]


class Outputs(NamedTuple):
    """What a body that is more than a backbone gives in one pass; a backbone gives its embeddings alone."""

    embeddings: Tensor  #: (n, dim)
    logits: Tensor | None = None  #: (n, bits): before the sign; a bit is set where it is at least 0
    errors: Tensor | None = None  #: (n,): reconstruction error; higher is stranger


def named(outputs: Tensor | Outputs) -> State:
    """The outputs that there are, by name."""
    if isinstance(outputs, Tensor):
        return {"embeddings": outputs}
    return {name: value for name, value in outputs._asdict().items() if value is not None}


class Network(nn.Module):
    """Grey pixels (n, side, side) in [0, 1] to (n, dim) or `Outputs`: repeat channels, normalise, body."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        # not persistent: they stand in the card, and weights are the body's own
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor | Outputs:
        return self.body(self.normalised(pixels))  # type: ignore[no-any-return]

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the body takes: (n, channels, side, side)."""
        coloured = pixels.unsqueeze(1).expand(-1, self.mean.shape[1], -1, -1)
        return (coloured - self.mean) / self.std


def body(architecture: str, *, empty: bool = False) -> nn.Module:
    """The backbone without its classifier, in eval mode: torchvision's own initialisation, or `empty` to be filled.

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
    """The tensors that make the vectors. The counters of batch normalisation do not, so they are left out."""
    return {key: value.contiguous() for key, value in module.state_dict().items() if not _counter(key)}


def fill(module: nn.Module, state: Mapping[str, Tensor], architecture: str) -> None:
    """The module holds the weights as float32.

    Those of parts that only training needs may be there or not, and are not used: a backbone's classifier; ACIR's
    classifier, and its decoder where the module has none.

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
        raise Invalid(f"the weights are not those of {architecture}: {'; '.join(found)}")
    module.load_state_dict(given, strict=False)  # strict but for the counters: checked above, with better words


def _counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _tell(what: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
