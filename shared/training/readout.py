"""The last layers of the shipped model, computed instead of descended to.

What leads to the three parts of ACIR's content are linear layers. From a finished trunk they are best taken from its
own principal components, whitened in part: no direction of the features rules the cosine only because it varies most,
and none is blown up that hardly varies at all. Whitening pooled features for retrieval: Jegou and Chum, ECCV 2012.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared.encoder.acir import Acir
from shared.errors import Invalid

POWER = 0.4  #: 0 keeps the components' variances, 0.5 makes them equal
_FLOOR = 1e-3  #: of an eigenvalue of the correlation matrix
_PART = 64


def readouts(acir: Acir) -> list[nn.Linear]:
    """The layers that make f_G, f_L and f_D. Raises `Invalid` without DaRF."""
    if acir.darf is None:
        raise Invalid("readouts need a network with DaRF")
    return [acir.whole, acir.local, acir.darf.attention.out]


def whiten(acir: Acir, views: Tensor, power: float = POWER) -> None:
    """Each readout gives principal components of its inputs for the views, those of large variance last.

    f_L and f_D are means over cells, which a linear layer may be applied after as well as before.

    Args:
        views: (n, 3, side, side), n larger than any readout's inputs.
        power: component i is divided by its variance to this power.

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
        _set(layer, torch.cat(inputs).double(), power)


def contents(acir: Acir, views: Tensor) -> list[Tensor]:
    """f_G, f_L and f_D of all views, (n, width) each; together they are what the hash head reads."""
    with torch.inference_mode():
        found = [acir.features(part).parts for part in chunks(views)]
    return [torch.cat(parts).float() for parts in zip(*found, strict=True)]


def chunks(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + _PART] for start in range(0, len(rows), _PART)]


def _set(layer: nn.Linear, inputs: Tensor, power: float) -> None:
    """DaRF's readout has no bias, so its features keep their mean."""
    middle, scale = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    standard = (inputs - middle) / scale
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(inputs))
    values, vectors = values[-layer.out_features :], vectors[:, -layer.out_features :]
    solved = (vectors * values.clamp(min=_FLOOR) ** -power).T / scale
    with torch.no_grad():
        layer.weight.copy_(solved)
        if "bias" in dict(layer.named_parameters()):
            layer.bias.copy_(-solved @ middle)


@contextmanager
def _inputs(layers: list[nn.Linear]) -> Iterator[list[list[Tensor]]]:
    """What reaches the layers in the block, averaged over cells: for each layer a list of (n, width)."""
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
