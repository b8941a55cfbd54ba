"""A layer of a Kolmogorov-Arnold network. Source: Liu et al. 2024 (arXiv 2404.19756), cubic, 5 intervals on [-1, 1]."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

GRID, ORDER = 5, 3
BASES = GRID + ORDER
_STEP = 2 / GRID
_NOISE = 0.1  #: initial amplitude of the splines, as in the authors' code: the base function dominates at first


def spline_bases(x: Tensor) -> Tensor:
    """Evaluate the 8 cubic B-splines of [-1, 1] at x, (...) to (..., 8); all vanish outside [-2.2, 2.2].

    On a uniform grid all splines are one shifted function: (2 - s)^3 / 6 - 4 (1 - s)^3 / 6 at distance s from the
    centre, in grid steps, with both bases clamped at 0.
    """
    centres = torch.arange(-1, BASES - 1, device=x.device, dtype=x.dtype) * _STEP - 1
    distance = ((x.unsqueeze(-1) - centres) / _STEP).abs()
    outer, inner = (2 - distance).clamp(min=0), (1 - distance).clamp(min=0)
    return outer**3 / 6 - inner**3 * (2 / 3)


class SplineLinear(nn.Module):
    """A layer with a learned function per edge: y = W SiLU(x) + sum_j (scale * C_j) B_j(x)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.scale = nn.Parameter(torch.empty(outputs, inputs))
        self.coefficients = nn.Parameter((torch.rand(outputs, inputs, BASES) - 0.5) * (_NOISE / GRID))
        nn.init.kaiming_uniform_(self.base, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.scale, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, outputs)."""
        splines = (self.scale.unsqueeze(-1) * self.coefficients).flatten(1)
        bases = spline_bases(x.float()).flatten(1)  # the 8 bits of bfloat16 cannot resolve positions on the grid
        return functional.linear(functional.silu(x), self.base) + functional.linear(bases, splines)
