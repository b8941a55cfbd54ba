"""Losses that pytorch-metric-learning lacks or has in another form."""

import torch
from torch import Tensor, nn


class CentreLoss(nn.Module):
    """Half the mean squared distance of each vector to the centre of its class; the centres follow the vectors.

    The centres are not parameters of the optimiser: in training, each call computes the loss and then moves them by
    `rate` towards the vectors of their class.
    Source: Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, eq. 2 and 4.
    """

    centres: Tensor  #: (classes, dim)

    def __init__(self, classes: int, dim: int, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centres", torch.zeros(classes, dim))

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Map (n, dim) and (n,) to a scalar; only the vectors have a gradient."""
        vectors = vectors.float()
        away = vectors - self.centres[labels]
        if self.training:
            self._follow(away.detach(), labels)
        return away.square().sum(1).mean() / 2

    def _follow(self, away: Tensor, labels: Tensor) -> None:
        sums = torch.zeros_like(self.centres).index_add_(0, labels, away)
        counts = torch.bincount(labels, minlength=len(self.centres))[:, None]
        self.centres = self.centres + self.rate * sums / (1 + counts)
