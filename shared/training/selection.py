"""The figure that selects a checkpoint."""

import torch
from torch import Tensor
from torch.nn import functional

from shared.datasets.collection import Collection


def macro_precision(embeddings: Tensor, data: Collection, k: int = 10) -> float:
    """Return P@k by cosine against the images of other groups, averaged over each class, then over classes.

    An image with fewer than k others of its class is asked for no more than there are: a longer list of a small part
    would be its whole, and the figure 1 for any vectors. An image without another of its class, or without one of
    another class, does not count; if none counts, the figure is NaN.
    Source: protocol D of the evaluation (leave one patient out), within one part.

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
        shown = torch.arange(top.shape[1]) < there[:, None]
        counted = ((there > 0) & (foreign & ~same).any(1)).float()
        hits = (same.gather(1, top) & shown).sum(1) / there.clamp(min=1)
        totals.index_add_(0, labels[mine], hits * counted)
        counts.index_add_(0, labels[mine], counted)
    asked = counts > 0
    return float((totals[asked] / counts[asked]).mean()) if asked.any() else float("nan")
