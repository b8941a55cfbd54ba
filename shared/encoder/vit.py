"""The pixel transformer (PiT) of ACIR: a pre-norm ViT (Dosovitskiy et al. 2021) over the cells of a feature map.

The released code also applies dropout to the attention weights; here only the attention's output has dropout.
"""

import torch
from torch import Tensor, nn

from shared.encoder.attention import attend

_DROPOUT = 0.1


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm perceptron, each with a residual connection."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(_DROPOUT))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(4 * dim, dim),
            nn.Dropout(_DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, tokens, dim) to the same shape."""
        q, k, v = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.perceptron(x)  # type: ignore[no-any-return]


class PixelTransformer(nn.Module):
    """Map a feature map to the concatenated tokens of the last layers, [cls] separate from the cells."""

    def __init__(self, channels: int, cells: int, dim: int, depth: int, heads: int, last: int) -> None:
        """`last` is the number of final layers whose tokens are concatenated."""
        super().__init__()
        self.last = last
        self.embed = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim), nn.LayerNorm(dim))
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, cells + 1, dim))
        self.dropout = nn.Dropout(_DROPOUT)
        self.blocks = nn.ModuleList(Block(dim, heads, dim // heads) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, channels, s, s) to (n, last * dim) and (n, s * s, last * dim), before any final norm."""
        cells = self.embed(x.flatten(2).transpose(1, 2))
        # added to zeros of the cells' shape, because an expand to a traced batch size exports badly
        cls = self.cls + torch.zeros_like(cells[:, :1])
        tokens = self.dropout(torch.cat([cls, cells], 1) + self.positions)
        layers = []
        for block in self.blocks:
            tokens = block(tokens)
            layers.append(tokens)
        joined = torch.cat(layers[-self.last :], -1)
        return joined[:, 0], joined[:, 1:]
