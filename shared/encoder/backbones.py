"""The architectures as data, so that listing them does not import torch.

The constructors are torchvision's. Each network ends where the papers end it; its classifier is removed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.errors import Invalid

#: How features become a vector. average: global mean of the last feature map; fc7: second dense layer after its ReLU;
#: boxes: box means (null encoder); content: ACIR's parts, each centred and of unit length; members: as each member does
Pooling = Literal["average", "fc7", "boxes", "content", "members"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    dim: int
    pooling: Pooling
    head: str  #: the submodule that is removed; a weights file may omit its weights, and they are never stored
    head_pools: bool = False  #: the removed classifier also pooled, so a global mean replaces it


#: VGG16 returns its penultimate layer, the others the pooled last feature map (Source: arXiv 2411.01473 and the
#: code released with arXiv 2508.04790). The last two are included because small trained weights exist for them.
BACKBONES: Mapping[str, Backbone] = {
    "densenet121": Backbone(dim=1024, pooling="average", head="classifier"),
    "resnet50": Backbone(dim=2048, pooling="average", head="fc"),
    "vgg16": Backbone(dim=4096, pooling="fc7", head="classifier.6"),
    "efficientnet_b0": Backbone(dim=1280, pooling="average", head="classifier"),
    "mobilenet_v2": Backbone(dim=1280, pooling="average", head="classifier"),
    "squeezenet1_0": Backbone(dim=512, pooling="average", head="classifier", head_pools=True),
}

#: Kinds that are more than a backbone; their options list the parts (`shared.encoder.kinds`).
COMPOSED = ("acir", "ensemble")

#: The torchvision weights that the papers' code used.
PAPER_WEIGHTS: Mapping[str, str] = {
    "densenet121": "torchvision:IMAGENET1K_V1",
    "resnet50": "torchvision:IMAGENET1K_V2",
    "vgg16": "torchvision:IMAGENET1K_V1",
    "efficientnet_b0": "torchvision:IMAGENET1K_V1",
}


def backbone(architecture: str) -> Backbone:
    """Return the backbone of this name. Raises: `Invalid`, with the known names, for any other."""
    try:
        return BACKBONES[architecture]
    except KeyError:
        raise Invalid(f"unknown architecture; there are: {', '.join([*BACKBONES, *COMPOSED, 'null'])}") from None


def parse_seed(weights: str) -> int | None:
    """Return the seed of `random:SEED`, 0 for plain `random`, or None if `weights` names other weights."""
    match = re.fullmatch(r"random(?::(\d{1,18}))?", weights)
    return int(match[1] or 0) if match else None
