"""The two attention layers of ACIR on feature maps. Source: arXiv 2503.09370 and the code released with it."""

import torch
from torch import Tensor, nn

from shared.errors import Invalid

WINDOW = 7


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v over the last two axes, (..., tokens, d)."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights: Tensor = (scores if bias is None else scores + bias).softmax(-1)
    return weights @ v


class WindowAttention(nn.Module):
    """ConvMSA: x + attention inside 7 x 7 windows. 1 x 1 convolutions are the projections; there is no normalisation.

    All heads share one table of relative position biases.
    """

    def __init__(self, channels: int, side: int, heads: int, head_dim: int) -> None:
        """Raises: `Invalid` if the side is not a multiple of 7."""
        super().__init__()
        if side % WINDOW:
            raise Invalid(f"a side of {side} pixels is not a multiple of the window of {WINDOW}")
        self.side, self.heads, self.head_dim = side, heads, head_dim
        self.query = nn.Conv2d(channels, heads * head_dim, 1, bias=False)
        self.key_value = nn.Conv2d(channels, 2 * heads * head_dim, 1, bias=False)
        self.positions = nn.Parameter(0.02 * torch.randn(2 * WINDOW - 1, 2 * WINDOW - 1))
        self.out = nn.Conv2d(heads * head_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, side, side) to the same shape."""
        key, value = self.key_value(x).chunk(2, 1)
        attended = attend(self._windows(self.query(x)), self._windows(key), self._windows(value), self._bias())
        across = self.side // WINDOW
        heads = attended.reshape(-1, across, across, self.heads, WINDOW, WINDOW, self.head_dim)
        rows = heads.permute(0, 3, 6, 1, 4, 2, 5).reshape(-1, self.heads * self.head_dim, self.side, self.side)
        return x + self.out(rows)  # type: ignore[no-any-return]

    def _windows(self, x: Tensor) -> Tensor:
        """Split (n, heads * d, side, side) into (n * windows, heads, 49, d)."""
        across = self.side // WINDOW
        parts = x.reshape(-1, self.heads, self.head_dim, across, WINDOW, across, WINDOW)
        return parts.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, self.heads, WINDOW * WINDOW, self.head_dim)

    def _bias(self) -> Tensor:
        """Return (49, 49): the table entry for the offset between each query and key position."""
        place = torch.arange(WINDOW * WINDOW, device=self.positions.device)
        y, x = place // WINDOW, place % WINDOW
        return self.positions[y[:, None] - y + WINDOW - 1, x[:, None] - x + WINDOW - 1]


class DepthAttention(nn.Module):
    """DaRF: queries from the shallow map, keys and values from the deep map of the same side. No bias, no residual.

    The text summary of the paper swaps the two roles; its figure and its code agree with this class.
    """

    def __init__(self, shallow: int, deep: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Conv2d(shallow, heads * head_dim, 1, bias=False)
        self.key = nn.Conv2d(deep, heads * head_dim, 1, bias=False)
        self.value = nn.Conv2d(deep, heads * head_dim, 1, bias=False)
        self.out = nn.Linear(heads * head_dim, shallow, bias=False)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Map (n, shallow, s, s) and (n, deep, s, s) to (n, shallow, s, s)."""
        side = shallow.shape[-1]
        attended = attend(*map(self._tokens, (self.query(shallow), self.key(deep), self.value(deep))))
        out = self.out(attended.transpose(1, 2).flatten(2))
        return out.transpose(1, 2).reshape(-1, self.out.out_features, side, side)  # type: ignore[no-any-return]

    def _tokens(self, x: Tensor) -> Tensor:
        """Reshape (n, heads * d, s, s) to (n, heads, s * s, d)."""
        return x.reshape(-1, self.heads, self.head_dim, x.shape[-2] * x.shape[-1]).transpose(2, 3)
