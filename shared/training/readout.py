"""The last layers of the shipped model, solved in closed form instead of trained.

Linear layers lead to the parts of ACIR's content. For a finished trunk, the best weights found are the principal
components of each layer's inputs, partly whitened: a direction of large variance does not dominate the cosine, and a
direction of little variance is not amplified. Whitening pooled features for retrieval: Jegou and Chum, ECCV 2012.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared.encoder.acir import Acir, content
from shared.errors import Invalid

POWER = 0.4  #: component i is divided by its variance to this: 0 keeps the variances, 0.5 makes them equal
_FLOOR = 1e-3  #: of an eigenvalue of the correlation matrix
_STILL = 0.1  #: of the mean deviation: a feature that varies less is not scaled up further
_PART = 64


def readouts(acir: Acir) -> list[nn.Linear]:
    """Return the layers that make the parts of the content, in their order. Raises: `Invalid` without DaRF."""
    if acir.darf is None:
        raise Invalid("readouts need a network with DaRF")
    counts = [] if acir.spots is None else [acir.spots.rings, acir.spots.relative]
    return [acir.whole, acir.local, acir.darf.attention.out, *counts]


def whiten(acir: Acir, views: Tensor) -> None:
    """Set each readout to the principal components of its inputs for the views, in order of increasing variance.

    f_L and f_D are means over cells; a linear layer gives the same before the mean as after it.

    Args:
        views: (n, 3, side, side), n larger than any readout's inputs.

    Raises:
        Invalid: there are too few views.
    """
    layers = readouts(acir)
    if len(views) <= max(layer.in_features for layer in layers):
        raise Invalid("components need more views than a readout has inputs")
    with _inputs(layers) as seen, torch.inference_mode():
        for part in chunks(views):
            acir.features(part)
    for layer, inputs in zip(layers, seen, strict=True):
        _set(layer, torch.cat(inputs).double())


def contents(acir: Acir, views: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hash head's inputs and the contents of all views, (n, dim) each."""
    with torch.inference_mode():
        found = [acir.features(part) for part in chunks(views)]
    return torch.cat([one.blended for one in found]).float(), torch.cat([content(one) for one in found])


def chunks(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + _PART] for start in range(0, len(rows), _PART)]


def _set(layer: nn.Linear, inputs: Tensor) -> None:
    """DaRF's readout has no bias, so its features keep their mean."""
    middle, scale = inputs.mean(0), inputs.std(0)
    scale = scale.clamp(min=_STILL * float(scale.mean()))
    standard = (inputs - middle) / scale
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(inputs))
    values, vectors = values[-layer.out_features :], vectors[:, -layer.out_features :]
    solved = (vectors * values.clamp(min=_FLOOR) ** -POWER).T / scale
    with torch.no_grad():
        layer.weight.copy_(solved)
        if "bias" in dict(layer.named_parameters()):
            layer.bias.copy_(-solved @ middle)


@contextmanager
def _inputs(layers: list[nn.Linear]) -> Iterator[list[list[Tensor]]]:
    """Collect the inputs of the layers during the block, averaged over cells: for each layer a list of (n, width)."""
    seen: list[list[Tensor]] = [[] for _ in layers]

    def note(number: int) -> RemovableHandle:
        def hook(_layer: nn.Module, given: tuple[Tensor]) -> None:
            seen[number].append(given[0].float() if given[0].ndim == 2 else given[0].float().mean(1))

        return layers[number].register_forward_pre_hook(hook)

    handles = [note(number) for number in range(len(layers))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
