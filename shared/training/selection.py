"""The figure by which a checkpoint is chosen."""

import torch
from torch import Tensor
from torch.nn import functional

from shared.datasets.collection import Collection


def macro_precision(embeddings: Tensor, data: Collection, k: int = 10) -> float:
    """P@k by cosine, averaged over the images of each class, then over classes; each image asks all of other groups.

    An image with fewer than k images of its class elsewhere is divided by how many there are; one with none does
    not count. Source: P@k_adj and protocol D of the evaluation (leave one patient out), inside one part.

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
