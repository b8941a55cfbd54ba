"""Rewrites that make the graph cheaper without changing its function."""

import copy

from torch import nn

_TRANSITION = (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.AvgPool2d)


def simplify(network: nn.Module) -> nn.Module:
    """Return the network, or a cheaper copy that computes the same; the argument is not changed.

    DenseNet's transitions convolve 1 x 1 and then average 2 x 2. Both are linear and act on different axes, so they
    commute. After pooling, the convolution has a quarter of the pixels, which saves 8 % of DenseNet121's arithmetic.
    """
    if not _transitions(network):
        return network
    network = copy.deepcopy(network)
    for transition in _transitions(network):
        transition[2], transition[3] = transition[3], transition[2]
    return network


def _transitions(network: nn.Module) -> list[nn.Sequential]:
    return [part for part in network.modules() if isinstance(part, nn.Sequential) and _is_transition(part)]


def _is_transition(part: nn.Sequential) -> bool:
    if tuple(map(type, part.children())) != _TRANSITION:
        return False
    convolution = part[2]
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == convolution.stride == (1, 1)
        and convolution.padding == (0, 0)  # padding would enter the average, and the two would not commute
    )
