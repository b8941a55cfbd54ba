"""ACIR: one network for embedding, hash code and reconstruction error. Source: arXiv 2503.09370 and its released code.

A ResNet stem is tapped after its second and fourth stage. The deep map goes through a pixel transformer, which gives
a global and a local feature; both taps go through window attention into DaRF, which gives the third. The three are
the content of an image; a KAN turns them into a code, and a decoder reconstructs the image from the deep map.
Inputs are RGB in [0, 1], neither centred nor scaled.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.encoder.attention import DepthAttention, WindowAttention
from shared.encoder.kan import SplineLinear
from shared.encoder.network import Outputs
from shared.encoder.spots import WIDTHS as SPOTS
from shared.encoder.spots import Spots
from shared.encoder.stem import Stem
from shared.encoder.vit import PixelTransformer
from shared.errors import Invalid

Head = Literal["kan", "linear"]
SIDES = (112, 224)
_CELLS = 7  #: side of the deep map
_FLAT = 1e-3  #: variance below which an image counts as uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """How wide each part is; heads are (number, dimension of one)."""

    blocks: tuple[int, int, int, int]  #: of the stem's stages
    bottleneck: bool  #: ResNet-50's block in place of ResNet-18's
    base: int = 64  #: channels of the first stage, before a bottleneck's expansion by 4
    shallow_heads: tuple[int, int]
    deep_heads: tuple[int, int]
    darf_heads: tuple[int, int]
    dim: int  #: of the transformer, and its depth, heads and how many last layers are joined
    depth: int
    heads: int
    last: int
    fusion: int  #: of the global and of the local feature
    hidden: int  #: the middle layer of the hash head
    decoder: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  #: channels of each block's two convolutions

    @property
    def shallow(self) -> int:
        return self.base * 2 * (4 if self.bottleneck else 1)

    @property
    def deep(self) -> int:
        return 4 * self.shallow


FULL = Widths(
    blocks=(3, 4, 6, 3),
    bottleneck=True,
    shallow_heads=(8, 64),
    deep_heads=(8, 64),
    darf_heads=(12, 128),
    dim=768,
    depth=12,
    heads=12,
    last=6,
    fusion=1536,
    hidden=512,
    decoder=((512, 512), (256, 256), (128, 64)),
)
S = Widths(
    blocks=(2, 2, 2, 2),
    bottleneck=False,
    shallow_heads=(4, 32),
    deep_heads=(8, 64),
    darf_heads=(4, 64),
    dim=384,
    depth=6,
    heads=6,
    last=4,
    fusion=512,
    hidden=256,
    decoder=((256, 128), (64, 64), (32, 32)),
)
S_HALF = Widths(
    blocks=(2, 2, 2, 2),
    bottleneck=False,
    base=40,
    shallow_heads=(4, 32),
    deep_heads=(4, 64),
    darf_heads=(4, 32),
    dim=256,
    depth=4,
    heads=4,
    last=3,
    fusion=256,
    hidden=128,
    decoder=((128, 64), (32, 32), (16, 16)),
)
XS = Widths(
    blocks=(2, 2, 2, 2),
    bottleneck=False,
    base=32,
    shallow_heads=(4, 32),
    deep_heads=(4, 64),
    darf_heads=(4, 32),
    dim=192,
    depth=3,
    heads=3,
    last=3,
    fusion=256,
    hidden=128,
    decoder=((128, 64), (32, 32), (16, 16)),
)
WIDTHS = {"full": FULL, "s": S, "s-half": S_HALF, "xs": XS}


class Features(NamedTuple):
    """The parts of an image's content, and the deep map that the decoder reads."""

    whole: Tensor  #: f_G (n, fusion), from the [cls] tokens
    local: Tensor  #: f_L (n, fusion), from the other tokens
    relation: Tensor | None  #: f_D (n, shallow), from DaRF; None without it
    spots: tuple[Tensor, ...]  #: (n, 128) and (n, 64), from `Spots`; empty without it
    deep: Tensor  #: x4 (n, deep, 7, 7)

    @property
    def parts(self) -> list[Tensor]:
        return [part for part in (self.whole, self.local, self.relation, *self.spots) if part is not None]

    @property
    def weights(self) -> list[float]:
        """The weight of each part in the content: 1, but of f_D, which alone knows classes, that of all spots."""
        counts = [1.0] * len(self.spots)
        relation = [] if self.relation is None else [sum(counts) or 1.0]
        return [1.0, 1.0, *relation, *counts]

    @property
    def blended(self) -> Tensor:
        """The input of the hash head: z = [f_G ; f_L ; f_D], and the spots where they are counted."""
        return torch.cat(self.parts, 1)


class HashHead(nn.Module):
    """Blended features to logits of the code, and to the middle layer, which the auxiliary classifier reads.

    A LayerNorm without parameters stands before each layer (our choice, as in FastKAN): splines vanish outside
    [-2.2, 2.2], and nothing else would keep the features there.
    """

    def __init__(self, dim: int, hidden: int, bits: int, kind: Head = "kan") -> None:
        super().__init__()
        layer = SplineLinear if kind == "kan" else nn.Linear
        self.inner = nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), layer(dim, hidden))
        self.outer = nn.Sequential(nn.LayerNorm(hidden, elementwise_affine=False), layer(hidden, bits))

    def forward(self, blended: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) to logits (n, bits), whose signs are the code, and hidden (n, hidden)."""
        hidden = self.inner(blended)
        return self.outer(hidden), hidden


class Decoder(nn.Module):
    """The deep map back to the image, without a skip and without an output activation.

    InstanceNorm stays: without it, blank and dimmed images are reconstructed perfectly and pass for known ones.
    """

    def __init__(self, channels: int, widths: tuple[tuple[int, int], ...], side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (middle, out), factor in zip(widths, (2, 4, side // (8 * _CELLS)), strict=True):
            for start, end in ((channels, middle), (middle, out)):
                layers += [nn.Conv2d(start, end, 3, padding=1), nn.InstanceNorm2d(end), nn.LeakyReLU(0.01)]
            layers.append(nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True))
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, deep: Tensor) -> Tensor:
        """(n, channels, 7, 7) to (n, 3, side, side)."""
        return self.layers(deep)  # type: ignore[no-any-return]


class Acir(nn.Module):
    """RGB (n, 3, side, side) in [0, 1] to `Outputs`.

    Trained in two stages: first everything but the decoder, by `features`, `head` and `classifier`;
    then the decoder alone, by `features(x).deep`, with all else frozen and in eval mode.
    """

    def __init__(  # noqa: PLR0913 - the options of its card
        self,
        widths: Widths,
        bits: int,
        classes: int,
        *,
        side: int = 224,
        head: Head = "kan",
        darf: bool = True,
        spots: bool = False,
        decoder: bool = True,
    ) -> None:
        """`classes`: of the auxiliary classifier; 0 leaves it out, as serving does. Raises: `Invalid` for other sides.

        `spots` adds two parts to the content that are not the paper's: bright and dark spots, counted by size. A trunk
        that was trained on few kinds of images tells lesions of other kinds apart no better than chance; counts do.

        At 112 pixels the stem's last stride is 1, so that the taps are 14 x 14 and 7 x 7.
        """
        super().__init__()
        if side not in SIDES:
            raise Invalid(f"ACIR takes sides of {SIDES[0]} or {SIDES[1]} pixels, not {side}")
        w = widths
        self.stem = Stem(w.blocks, w.base, bottleneck=w.bottleneck, last_stride=side // SIDES[0])
        self.transformer = PixelTransformer(w.deep, _CELLS**2, w.dim, w.depth, w.heads, w.last)
        self.whole = nn.Linear(w.last * w.dim, w.fusion)
        self.local = nn.Linear(w.last * w.dim, w.fusion)
        self.darf = Darf(w, side // 8) if darf else None
        self.spots = Spots(side) if spots else None
        self.dim = 2 * w.fusion + (w.shallow if darf else 0) + (sum(SPOTS) if spots else 0)
        self.head = HashHead(self.dim, w.hidden, bits, head)
        self.classifier = nn.Linear(w.hidden, classes) if classes else None
        self.decoder = Decoder(w.deep, w.decoder, side) if decoder else None

    def features(self, x: Tensor) -> Features:
        shallow, deep = self.stem(x)
        cls, cells = self.transformer(deep)
        relation = None if self.darf is None else self.darf(shallow, deep)
        spots = () if self.spots is None else self.spots(x)
        return Features(self.whole(cls), self.local(cells).mean(1), relation, spots, deep)

    def forward(self, x: Tensor) -> Outputs:
        features = self.features(x)
        logits, _ = self.head(features.blended)
        errors = None if self.decoder is None else relative_error(x, self.decoder(features.deep))
        return Outputs(content(features), logits, errors)


class Darf(nn.Module):
    """Window attention on both taps, pooled to 7 x 7, then the shallow map queries the deep one."""

    def __init__(self, widths: Widths, side: int) -> None:
        super().__init__()
        self.shallow = nn.Sequential(
            WindowAttention(widths.shallow, side, *widths.shallow_heads),
            nn.BatchNorm2d(widths.shallow),
            nn.ReLU(),
            nn.AvgPool2d(side // _CELLS),
        )
        self.deep = nn.Sequential(
            WindowAttention(widths.deep, _CELLS, *widths.deep_heads), nn.BatchNorm2d(widths.deep), nn.ReLU()
        )
        self.attention = DepthAttention(widths.shallow, widths.deep, *widths.darf_heads)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """(n, shallow, side, side), (n, deep, 7, 7) to f_D (n, shallow)."""
        return self.attention(self.shallow(shallow), self.deep(deep)).mean((2, 3))  # type: ignore[no-any-return]


def content(features: Features) -> Tensor:
    """(n, dim) unit vectors: each part centred and of fixed length, so that a dot product is the mean Pearson
    correlation of the parts, weighted by `Features.weights`.

    Per part, because the [cls] part varies several times as much as the others and would decide alone.
    """
    parts = [functional.normalize(part.float() - part.float().mean(1, keepdim=True), dim=1) for part in features.parts]
    total = sum(features.weights)
    scaled = [part * math.sqrt(weight / total) for part, weight in zip(parts, features.weights, strict=True)]
    return torch.cat(scaled, 1)


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """(n,): mean squared error of each image."""
    return (reconstruction.float() - x.float()).pow(2).mean((1, 2, 3))


def relative_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """(n,): squared error over the image's own variance + 0.001. This is the stored OOD score: an image with little
    in it has little to get wrong, so by plain error a blank or a dimmed one passes for known.
    """
    x = x.float()
    variance = (x - x.mean((1, 2, 3), keepdim=True)).pow(2).mean((1, 2, 3))
    return squared_error(x, reconstruction) / (variance + _FLAT)
