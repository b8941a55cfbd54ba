"""A 3 x 3 convolution with half the multiplications: Winograd's minimal filtering F(4, 3), along the columns.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), with its matrices for
F(4, 3), here along one axis: four output rows are made of six products, not twelve. On both axes, the transforms would
cost what the products save (by calculation). Everything is said in convolutions, which runtimes are fast at.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

#: The input's transform, by row: the taps of its convolution, where the first lies in the strip, and their spacing.
_INPUT = (
    ((4, -5, 1), -1, 2),
    ((-4, -4, 1, 1), 0, 1),
    ((4, -4, -1, 1), 0, 1),
    ((-2, -1, 2, 1), 0, 1),
    ((2, -1, -2, 1), 0, 1),
    ((4, -5, 1), 0, 2),
)
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_STRIP = len(_OUTPUT)  #: rows that are computed together
_LEAST, _LEAST_PRODUCT = 14, 28 * 32  #: height, and height times outputs, from which it pays


class Winograd(nn.Module):
    """Compute what `convolution` does, up to rounding, (n, inputs, h, w) to (n, outputs, h, w).

    Maps for which it does not pay go through the convolution itself.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        weight = convolution.weight.detach()
        filters = torch.einsum("kr,oirs->kois", torch.tensor(_FILTER, dtype=torch.float64), weight.double())
        self.filters = _parameters(filters.to(weight.dtype).unsqueeze(3))
        # one weight per channel: a runtime folds what follows, normalisation and ReLU, into it, and finds its layout
        self.output, self.ones = _parameters((weight.new_tensor(_OUTPUT), weight.new_ones(len(weight), 1, 1, 1)))

    @staticmethod
    def fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether this computes what the module does, and runtimes have fast layouts for its channels."""
        return (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (3, 3)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and module.groups == 1
            and module.in_channels % 16 == module.out_channels % 16 == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        outputs, strips = self.convolution.out_channels, math.ceil(height / _STRIP)
        if height < _LEAST or height * outputs < _LEAST_PRODUCT:
            return self.convolution(x)  # type: ignore[no-any-return]
        products = [
            conv2d(_combined(x, strips, *taps), filters, padding=(0, 1))
            for taps, filters in zip(_INPUT, self.filters, strict=True)
        ]
        # sizes are read from each tensor: the exporter then knows all but n, and a runtime drops the reading
        joined = torch.cat(products, 1)
        rows = self.output @ joined.reshape(joined.shape[0], len(_INPUT), outputs * strips * width)
        rows = rows.reshape(rows.shape[0], _STRIP, outputs * strips, width).transpose(1, 2)
        rows = rows.reshape(rows.shape[0], outputs, strips * _STRIP, width)
        if height % _STRIP:  # not always: a runtime copies everything even to slice off nothing
            rows = rows[:, :, :height]
        return conv2d(rows, self.ones, self.convolution.bias, groups=outputs)


def _combined(x: Tensor, strips: int, taps: Sequence[int], first: int, spacing: int) -> Tensor:
    """(n, inputs, h, w) to (n, inputs, strips, w): of each strip, one combination of the rows that it reads.

    A convolution pads both ends alike, and the last strip may read beyond the end: idle taps make up for it above.
    """
    inputs, height = int(x.shape[1]), int(x.shape[2])
    beyond = _STRIP * (strips - 1) + first + spacing * (len(taps) - 1) - (height - 1)
    idle = math.ceil((max(beyond, -first) + first) / spacing)
    weights = x.new_tensor((0,) * idle + tuple(taps)).view(1, 1, -1, 1).repeat(inputs, 1, 1, 1)
    return conv2d(x, weights, None, (_STRIP, 1), (idle * spacing - first, 0), (spacing, 1), inputs)


def _parameters(tensors: Iterable[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
