"""How the trunk and the hash head of the shipped model learn: from what images are like, a little from what they are.

The first two parts of ACIR's content predict descriptors of the view they are given (`shared.training.descriptors`),
so that a similarity of contents is one of layout and grain, also between images of modalities that were never seen;
the third draws the images of a class together, where there is one. The code keeps those similarities: ACIR's
structure-aware hashing, with all that as the structure. When the trunk has learned, spots are added where the shape
counts them, the last layers are solved in closed form (`shared.training.readout`), and a hash head is fitted to what
they give. The decoder follows as for any ACIR (`shared.training.acir`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder.acir import Acir, content
from shared.encoder.hashing import fit_hash
from shared.training.acir import Shape, rgb, save_network
from shared.training.blend import DRAWN, TEXTURE
from shared.training.data import resized
from shared.training.descriptors import Targets
from shared.training.experiment import Batch, Experiment, Json, Method
from shared.training.hashing import quantisation_loss, relaxed_hamming
from shared.training.readout import chunks, contents, whiten

_FITTED = 1500  #: images that the targets are fitted on
_EPS = 1e-6
_HEAD_BATCH = 256

#: gradients, brightness, grain and its quarters in the targets of f_G and f_L
LAYOUT, GRAIN = (1.0, 0.7, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)


class Pupil(nn.Module):
    """The network that is kept, and the targets that are not."""

    def __init__(self, acir: Acir, targets: Targets, data: Collection) -> None:
        super().__init__()
        self.acir = acir
        self.targets = targets
        self.data = data
        #: the class whose images are unlike each other; -1 where there is none
        self.unlabelled = data.classes.index(TEXTURE) if TEXTURE in data.classes else -1

    def same(self, labels: Tensor) -> Tensor:
        """(n, n): who is of one class."""
        return (labels[:, None] == labels) & (labels != self.unlabelled)[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptive(Method[Pupil]):
    """f_G follows layout, f_L grain, f_D classes, with weight `classes`; codes follow all three."""

    shape: Shape
    classes: float = 0.2
    hashing: float = 0.3
    gamma: float = 0.25  #: share of the bits by which images of one class that look unlike may differ
    views: int = 8000  #: of which the readouts are computed and the hash head is finished
    head_steps: int = 1500

    @property
    def takes(self) -> int:
        return self.shape.side

    def build(self, data: Collection) -> Pupil:
        acir = replace(self.shape, spots=False).network(0, decoder=False)
        rows = torch.randperm(len(data))[:_FITTED]
        images = resized(torch.from_numpy(data.images[rows.numpy()]).float() / 255, self.shape.side)
        dims = [acir.whole.out_features, acir.local.out_features]
        return Pupil(acir, Targets(dims, (LAYOUT, GRAIN), images), data)

    def groups(self, model: Pupil) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"all": model.acir.parameters()}

    def step(self, model: Pupil, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        features = model.acir.features(rgb(batch.pixels))
        logits = model.acir.head(features.blended)[0]
        with torch.autocast(batch.pixels.device.type, enabled=False):
            wanted = model.targets(batch.pixels)
            whole, local, relation = (centred(part) for part in features.parts)
            layout, grain = (1 - (a * b).sum(1).mean() for a, b in zip((whole, local), wanted, strict=True))
            same = model.same(batch.labels)
            classes = class_contrast(relation, same)
            code = structure_loss(logits, products([*wanted, relation.detach()]), same, self.gamma)
        loss = (layout + grain) / 2 + self.classes * classes + self.hashing * code
        return loss, {"layout": layout, "grain": grain, "classes": classes, "code": code}

    def embed(self, model: Pupil, pixels: Tensor) -> Tensor:
        return content(model.acir.features(rgb(pixels)))

    def save(self, model: Pupil, folder: Path, experiment: Experiment, about: Json) -> None:
        finished = self.settle(model, experiment)
        save_network(finished, self.shape, folder, experiment, about, decoder=False, half=True)

    def settle(self, model: Pupil, experiment: Experiment) -> Acir:
        """Return the finished network: the trained trunk, with spots, solved readouts and a new hash head.

        Readouts are whitened on views of real images. Contents no longer change by then, so iterative quantisation
        (Gong and Lazebnik 2011) finds a rotation that descent on pairs does not: codes of unseen kinds of images are
        more even and keep more of their order. The hash head learns to follow it.
        """
        torch.manual_seed(experiment.seed)
        acir = self.shape.network(0, decoder=False).eval()
        own = {name: value for name, value in acir.state_dict().items() if name.startswith(("head.", "spots."))}
        trunk = {name: value for name, value in model.acir.state_dict().items() if not name.startswith("head.")}
        acir.load_state_dict(trunk | own)
        rows = torch.randint(len(model.data), (self.views,))
        stored = chunks(torch.from_numpy(model.data.images)[rows])
        views = torch.cat([experiment.augmentation(part.float() / 255, self.shape.side) for part in stored])
        real = torch.from_numpy(~np.isin(model.data.sources, DRAWN))[rows]
        whiten(acir, rgb(views[real]))
        blended, found = contents(acir, rgb(views))
        fitted = fit_hash(found.numpy(), self.shape.bits, experiment.seed, rotate=True)
        wanted = torch.from_numpy(fitted.logits(found.numpy()))
        self._follow(acir.head, blended, wanted / wanted.std())
        return acir

    def _follow(self, head: nn.Module, blended: Tensor, wanted: Tensor) -> None:
        """The hash head gives about the wanted logits."""
        optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-4)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.head_steps)
        for _ in range(self.head_steps):
            drawn = torch.randint(len(blended), (_HEAD_BATCH,))
            loss = functional.mse_loss(head(blended[drawn])[0], wanted[drawn])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimiser.step()
            falling.step()


def centred(part: Tensor) -> Tensor:
    """Unit vectors without their mean, as `content` has them."""
    part = part.float()
    return functional.normalize(part - part.mean(1, keepdim=True), dim=1)


def products(parts: Sequence[Tensor]) -> Tensor:
    """(n, n): how alike images are, the mean over the parts, unit vectors (n, dim) each."""
    return torch.stack([part @ part.T for part in parts]).mean(0)


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
