"""Weights for tests and demonstrations that are marked as untrained, and still tell images apart.

Torchvision's initialisation assumes that batch normalisation will scale the activations. In eval mode it does not
(its statistics are still 0 and 1): EfficientNet's signal decays to 1e-15, ResNet's grows with every block, and all
images get nearly the same direction. So the statistics are measured once, on synthetic frames; in networks without
batch normalisation, each layer is standardised instead.
Source: Salimans & Kingma 2016 (data-dependent initialisation); Mishkin & Matas 2016 (LSUV).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shared.encoder.cards import Options
from shared.encoder.ensemble import Ensemble
from shared.encoder.heads import Headed
from shared.encoder.kinds import body, kind
from shared.encoder.network import Network
from shared.encoder.samples import samples

_FRAMES, _SIDE, _FRAMES_SEED = 8, 224, 20240


def untrained(architecture: str, seed: int, options: Options | None = None) -> nn.Module:
    """Return the body with the seed's weights: the same for one machine and version of torch."""
    options = options or {}
    with _deterministic(seed):
        module = body(architecture, options)
        frames = torch.from_numpy(samples(_FRAMES, _side(options), _FRAMES_SEED))
        normalisation = kind(architecture)
        with torch.no_grad():
            _settle(module, Network(module, normalisation.mean, normalisation.std).normalised(frames))
    return module


def _side(options: Options) -> int:
    """Return the side that the options of the body or of a member fix, else the default."""
    every = (options, *(member.get("options") or {} for member in options.get("members", ())))
    return next((one["side"] for one in every if "side" in one), _SIDE)


def _settle(module: nn.Module, frames: Tensor) -> None:
    """Fit the module's statistics to the frames, which have the shape of its input."""
    if isinstance(module, Ensemble):
        for member in module.networks():
            _settle(member.body, member.normalised(frames[:, 0]))
        return
    if isinstance(module, Headed):
        _settle(module.backbone, frames)
        frames = module.backbone(frames)
        module = module.head
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    if norms:
        _measure(module, norms, frames)
    else:
        _standardise(module, frames)


def _measure(module: nn.Module, norms: Sequence[nn.BatchNorm1d | nn.BatchNorm2d], frames: Tensor) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None means a plain mean over the batches, here one
        norm.train()
    module(frames)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _standardise(module: nn.Module, frames: Tensor) -> None:
    """Scale each layer's output to mean 0 and variance 1, in one pass: each input comes from layers already scaled."""
    hooks = [
        part.register_forward_hook(_rescale)
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None
    ]
    module(frames)
    for hook in hooks:
        hook.remove()


def _rescale(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None:
        return output
    over = [0, *range(2, output.ndim)]
    mean = output.mean(over)
    centred = output - mean.view(1, -1, *[1] * (output.ndim - 2))
    # a dense unit has too few samples for its own deviation, so all units share one
    scale = (centred.std(over) if output.ndim > 2 else centred.std()).clamp_min(1e-6)
    layer.weight.div_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.sub_(mean).div_(scale)
    return centred / scale.view(1, -1, *[1] * (output.ndim - 2))


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Use the seed and one thread (sums over several threads round differently); restore both settings after."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
