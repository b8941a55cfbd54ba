"""A 3 x 3 convolution with half the multiplications: Winograd's minimal filtering F(4, 3), along the columns.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), with its matrices for
F(4, 3), here along one axis: four output rows are made of six products, not twelve. On both axes, the transforms would
cost what the products save (by calculation). Everything is said in convolutions, which runtimes are fast at.
"""

from collections.abc import Iterable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

#: The input's transform: taps, padding and dilation of each row's convolution. The last begins with an idle tap.
_INPUT = (
    ((4, -5, 1), 1, 2),
    ((-4, -4, 1, 1), 0, 1),
    ((4, -4, -1, 1), 0, 1),
    ((-2, -1, 2, 1), 0, 1),
    ((2, -1, -2, 1), 0, 1),
    ((0, 4, -5, 1), 2, 2),
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
_LEAST = 28  #: height from which it pays


class Winograd(nn.Module):
    """Compute what `convolution` does, up to rounding, (n, inputs, h, w) to (n, outputs, h, w).

    Heights for which it does not pay go through the convolution itself.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        weight = convolution.weight.detach()
        outputs, inputs = weight.shape[:2]
        filters = torch.einsum("kr,oirs->kois", torch.tensor(_FILTER, dtype=torch.float64), weight.double())
        self.taps = _parameters(
            weight.new_tensor(taps).view(1, 1, -1, 1).repeat(inputs, 1, 1, 1) for taps, *_ in _INPUT
        )
        self.filters = _parameters(filters.to(weight.dtype).unsqueeze(3))
        # one weight per channel: a runtime folds what follows, normalisation and ReLU, into it, and finds its layout
        self.output, self.ones = _parameters((weight.new_tensor(_OUTPUT), weight.new_ones(outputs, 1, 1, 1)))

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
        if height % _STRIP or height < _LEAST:
            return self.convolution(x)  # type: ignore[no-any-return]
        outputs, inputs, strips = self.convolution.out_channels, self.convolution.in_channels, height // _STRIP
        products = [
            conv2d(conv2d(x, taps, None, (_STRIP, 1), (padding, 0), (dilation, 1), inputs), filters, padding=(0, 1))
            for taps, filters, (_, padding, dilation) in zip(self.taps, self.filters, _INPUT, strict=True)
        ]
        # sizes are read from each tensor: the exporter then knows all but n, and a runtime drops the reading
        joined = torch.cat(products, 1)
        rows = self.output @ joined.reshape(joined.shape[0], len(_INPUT), outputs * strips * width)
        rows = rows.reshape(rows.shape[0], _STRIP, outputs * strips, width).transpose(1, 2)
        rows = rows.reshape(rows.shape[0], outputs, height, width)
        return conv2d(rows, self.ones, self.convolution.bias, groups=outputs)


def _parameters(tensors: Iterable[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
