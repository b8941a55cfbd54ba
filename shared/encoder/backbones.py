"""The architectures as data, so that naming or listing one costs no torch.

The constructors are torchvision's; the classifier is taken off and what remains ends where the papers cut it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.errors import Invalid

#: How features become a vector: average: global mean of the last feature map; fc7: second dense layer after its ReLU;
#: boxes: the null encoder's; content: ACIR's parts, each centred and unit; members: each member's own
Pooling = Literal["average", "fc7", "boxes", "content", "members"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    dim: int
    pooling: Pooling
    head: str  #: submodule that is taken off; its weights may be absent from a file and are never kept
    head_pools: bool = False  #: the classifier did the pooling too, so a global mean takes its place


#: VGG16 gives its penultimate layer, the others the pooled last feature map (Source: arXiv 2411.01473 and the
#: code released with arXiv 2508.04790). The last two are here because small trained weights exist for them.
BACKBONES: Mapping[str, Backbone] = {
    "densenet121": Backbone(dim=1024, pooling="average", head="classifier"),
    "resnet50": Backbone(dim=2048, pooling="average", head="fc"),
    "vgg16": Backbone(dim=4096, pooling="fc7", head="classifier.6"),
    "efficientnet_b0": Backbone(dim=1280, pooling="average", head="classifier"),
    "mobilenet_v2": Backbone(dim=1280, pooling="average", head="classifier"),
    "squeezenet1_0": Backbone(dim=512, pooling="average", head="classifier", head_pools=True),
}

#: Kinds that are more than a backbone; their options say of what they are made (`shared.encoder.kinds`).
COMPOSED = ("acir", "ensemble")

#: Which trained weights of torchvision the papers' code used.
PAPER_WEIGHTS: Mapping[str, str] = {
    "densenet121": "torchvision:IMAGENET1K_V1",
    "resnet50": "torchvision:IMAGENET1K_V2",
    "vgg16": "torchvision:IMAGENET1K_V1",
    "efficientnet_b0": "torchvision:IMAGENET1K_V1",
}


def backbone(architecture: str) -> Backbone:
    """Raises `Invalid` for an unknown architecture, naming those there are."""
    try:
        return BACKBONES[architecture]
    except KeyError:
        raise Invalid(f"unknown architecture; there are: {', '.join([*BACKBONES, *COMPOSED, 'null'])}") from None


def parse_seed(weights: str) -> int | None:
    """The seed of `random:SEED`, 0 of plain `random`; None if the words name other weights."""
    match = re.fullmatch(r"random(?::(\d{1,18}))?", weights)
    return int(match[1] or 0) if match else None
