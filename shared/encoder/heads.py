"""The embedding head of metric learning, placed on a backbone."""

from torch import Tensor, nn
from torch.nn import functional


class MetricHead(nn.Module):
    """Map features (n, features) to unit vectors (n, dim).

    Source: arXiv 2508.04790 ("1024 -> 512 -> 512") and its released code, which adds normalisation and dropout.
    """

    def __init__(self, features: int, dim: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 1024),
            nn.BatchNorm1d(1024),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(1024, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(512, dim),
            nn.BatchNorm1d(dim),
        )

    def raw(self, features: Tensor) -> Tensor:
        """Return the vectors before normalisation to unit length; the centre loss uses these."""
        return self.layers(features)  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        return functional.normalize(self.raw(features), dim=1)


class Headed(nn.Module):
    """A backbone with a head in place of its classifier."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.backbone(pixels))  # type: ignore[no-any-return]
