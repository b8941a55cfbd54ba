"""Several models as one: all members get the same grey pixels, and their vectors are joined.

Source: arXiv 2508.04790 and its released code. That code concatenates raw vectors, so the model with the largest
norm dominates; here each vector is normalised first, and `raw` reproduces the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.encoder.network import Network, Outputs
from shared.encoder.tta import Views, average
from shared.errors import Invalid

#: unit: unit vectors, concatenated; raw: raw vectors, concatenated; mean: weighted mean of the unit vectors;
#: pca: principal components of the concatenated unit vectors
Join = Literal["unit", "raw", "mean", "pca"]


class Part(NamedTuple):
    """A member of one of the paper's ensembles."""

    architecture: str
    training: Literal["frozen", "advanced", "metric"]

    @property
    def head(self) -> str | None:
        return "metric" if self.training == "metric" else None


_DENSE, _RES = "densenet121", "resnet50"
#: The named ensembles of the paper, with 3072, 2560, 1024 and 7168 dimensions.
PRESETS: Mapping[str, tuple[Part, ...]] = {
    "best_two_advanced": (Part(_DENSE, "advanced"), Part(_RES, "advanced")),
    "mixed_best": (Part(_DENSE, "advanced"), Part(_DENSE, "metric"), Part(_DENSE, "frozen")),
    "best_two_metric": (Part(_DENSE, "metric"), Part(_RES, "metric")),
    "mega_all": (
        Part(_DENSE, "advanced"),
        Part(_RES, "advanced"),
        Part(_DENSE, "metric"),
        Part(_RES, "metric"),
        Part(_DENSE, "frozen"),
        Part(_RES, "frozen"),
    ),
}


class Ensemble(nn.Module):
    """Map grey pixels (n, 1, side, side) to (n, dim).

    The members' hash codes and reconstruction errors are dropped: they belong to the members' own spaces. With
    `views`, each member's vectors are averaged over the views before they are joined.
    """

    def __init__(self, members: Sequence[Network], join: Join = "unit", weights: Sequence[float] = ()) -> None:
        super().__init__()
        if not members:
            raise Invalid("an ensemble needs at least one member")
        if join == "mean":
            weights = weights or [1.0] * len(members)
            if len(weights) != len(members) or not min(weights) > 0:
                raise Invalid("a weighted mean needs a weight above zero for each member")
        elif weights:
            raise Invalid("only the join mean takes weights")
        self.members = nn.ModuleList(members)
        self.join = join
        self.weights = [weight / sum(weights) for weight in weights]
        self.projection: Projection | None = None
        self.views: Views | None = None

    def networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]

    def forward(self, pixels: Tensor) -> Tensor:
        grey = pixels[:, 0]
        seen = grey if self.views is None else self.views(grey)
        vectors = [self._vectors(member, seen) for member in self.networks()]
        if self.join == "raw":
            return torch.cat(vectors, 1)
        units = [functional.normalize(vector, dim=1) for vector in vectors]
        if self.join == "mean":
            if len({int(u.shape[1]) for u in units}) > 1:
                raise Invalid("vectors of different lengths cannot be averaged; join them by unit, raw or pca")
            return torch.stack([u * weight for u, weight in zip(units, self.weights, strict=True)]).sum(0)
        joined = torch.cat(units, 1)
        return joined if self.projection is None else self.projection(joined)

    def _vectors(self, member: Network, pixels: Tensor) -> Tensor:
        found = member(pixels)
        raw: Tensor = found.embeddings if isinstance(found, Outputs) else found
        return raw if self.views is None else average(raw)


class Projection(nn.Module):
    """Project (n, dim) to (n, components) on principal components fitted on training images."""

    mean: Tensor
    components: Tensor

    def __init__(self, components: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(components, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) @ self.components.T
