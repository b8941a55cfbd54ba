"""How the trunk and the hash head of the shipped model learn: from what images are like, a little from what they are.

Each part of ACIR's content predicts the descriptors of the view it is given (`shared.training.descriptors`), so that
a similarity of contents is one of layout and grain, also between images of modalities that were never seen; classes,
where there are any, draw their images together. The code is to keep those similarities: ACIR's structure-aware
hashing, with descriptors as the structure. The decoder follows as for any ACIR (`shared.training.acir`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder.acir import Acir, content
from shared.training.acir import Shape, rgb, save_network
from shared.training.blend import TEXTURE
from shared.training.data import resized
from shared.training.descriptors import Targets
from shared.training.experiment import Batch, Experiment, Method
from shared.training.hashing import quantisation_loss, relaxed_hamming

_FITTED = 1500  #: images that the targets are fitted on
_EPS = 1e-6

#: gradients, brightness, grain and its quarters in the targets of f_G, f_L and f_D
LAYOUT, GRAIN, BOTH = (1.0, 0.7, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0), (1.0, 0.7, 1.0, 1.0)


class Pupil(nn.Module):
    """The network that is kept, and the targets that are not."""

    def __init__(self, acir: Acir, targets: Targets, unlabelled: int) -> None:
        super().__init__()
        self.acir = acir
        self.targets = targets
        self.unlabelled = unlabelled  #: the class whose images are unlike each other; -1 where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptive(Method[Pupil]):
    """Parts of the content follow descriptors; classes pull with weight `classes`; codes follow the targets."""

    shape: Shape
    classes: float = 0.1
    hashing: float = 0.5
    gamma: float = 0.25  #: share of the bits by which images of one class that look unlike may differ

    def build(self, data: Collection) -> Pupil:
        acir = self.shape.network(0, decoder=False)
        rows = torch.randperm(len(data))[:_FITTED]
        images = resized(torch.from_numpy(data.images[rows.numpy()]).float() / 255, self.shape.side)
        dims = [acir.whole.out_features, acir.local.out_features, acir.dim - 2 * acir.whole.out_features]
        unlabelled = data.classes.index(TEXTURE) if TEXTURE in data.classes else -1
        return Pupil(acir, Targets(dims, (LAYOUT, GRAIN, BOTH), images), unlabelled)

    def groups(self, model: Pupil) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"all": model.acir.parameters()}

    def step(self, model: Pupil, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        features = model.acir.features(rgb(batch.pixels))
        logits = model.acir.head(features.blended)[0]
        with torch.autocast(batch.pixels.device.type, enabled=False):
            wanted = model.targets(batch.pixels)
            found = [centred(part) for part in features.parts]
            missed = torch.stack([1 - (a * b).sum(1).mean() for a, b in zip(found, wanted, strict=True)])
            likeness = torch.stack([target @ target.T for target in wanted]).mean(0)
            same = batch.labels[:, None] == batch.labels
            same &= (batch.labels != model.unlabelled)[:, None]
            classes = class_contrast(content(features), same)
            code = structure_loss(logits, likeness, same, self.gamma)
        loss = missed.mean() + self.classes * classes + self.hashing * code
        return loss, {"layout": missed[0], "grain": missed[1], "both": missed[2], "classes": classes, "code": code}

    def embed(self, model: Pupil, pixels: Tensor) -> Tensor:
        return content(model.acir.features(rgb(pixels)))

    def save(self, model: Pupil, folder: Path, experiment: Experiment) -> None:
        save_network(model.acir, self.shape, folder, experiment, decoder=False, half=True)


def centred(part: Tensor) -> Tensor:
    """Unit vectors without their mean, as `content` has them."""
    part = part.float()
    return functional.normalize(part - part.mean(1, keepdim=True), dim=1)


def class_contrast(contents: Tensor, same: Tensor, temperature: float = 0.2) -> Tensor:
    """Supervised contrastive loss of unit vectors (n, dim); `same` (n, n) says who belongs together.

    0 where nobody does. Source: Khosla et al. 2020 (arXiv 2004.11362), eq. 2.
    """
    own = torch.eye(len(contents), dtype=torch.bool, device=contents.device)
    scores = (contents @ contents.T / temperature).masked_fill(own, -1e4)
    likely = scores - scores.logsumexp(1, keepdim=True)
    pairs = (same & ~own).float()
    per_image = -(likely * pairs).sum(1) / pairs.sum(1).clamp(min=1)
    return per_image.sum() / (pairs.sum(1) > 0).sum().clamp(min=1)


def structure_loss(u: Tensor, likeness: Tensor, same: Tensor, gamma: float, alpha: float = 0.5) -> Tensor:
    """ACIR's soft targets for all pairs: the share of equal bits is to follow the likeness, + alpha * quantisation.

    Pairs of one class are to share (1 - gamma) + gamma * t of their bits, all others t = (1 + likeness) / 2: what
    has nothing in common shares half of them, as codes drawn at random do.

    Args:
        u: (n, bits) logits.
        likeness: (n, n) in [-1, 1].
        same: (n, n), True for pairs of one class.
    """
    shared = (1 + likeness) / 2
    target = torch.where(same, 1 - gamma * (1 - shared), shared).clamp(0, 1)
    d = relaxed_hamming(u).clamp(_EPS, 1 - _EPS)
    loss = -(target * torch.log1p(-d) + (1 - target) * torch.log(d))
    others = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    return loss[others].mean() + alpha * quantisation_loss(u)
