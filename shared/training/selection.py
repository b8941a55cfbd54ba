"""The figure that selects a checkpoint."""

import torch
from torch import Tensor
from torch.nn import functional

from shared.datasets.collection import Collection


def macro_precision(embeddings: Tensor, data: Collection, k: int = 10) -> float:
    """Return P@k by cosine against the images of other groups, averaged over each class, then over classes.

    For an image with fewer than k such images of its class, the hits are divided by their number; an image with none
    does not count. Source: P@k_adj and protocol D of the evaluation (leave one patient out), within one part.

    Args:
        embeddings: (n, dim), rows of `data`.
    """
    unit = functional.normalize(embeddings, dim=1)
    labels, groups = torch.from_numpy(data.labels), torch.from_numpy(data.groups)
    totals, counts = torch.zeros(len(data.classes)), torch.zeros(len(data.classes))
    for start in range(0, len(unit), 512):
        mine = slice(start, start + 512)
        foreign = groups[mine, None] != groups
        same = (labels[mine, None] == labels) & foreign
        scores = (unit[mine] @ unit.T).masked_fill(~foreign, -torch.inf)
        top = scores.topk(min(k, len(unit)), dim=1).indices
        there = same.sum(1).clamp(max=k)
        hits = (same.gather(1, top).sum(1) / there.clamp(min=1)).where(there > 0, 0)
        totals.index_add_(0, labels[mine], hits.float())
        counts.index_add_(0, labels[mine], (there > 0).float())
    asked = counts > 0
    return float((totals[asked] / counts[asked]).mean()) if asked.any() else 0.0
