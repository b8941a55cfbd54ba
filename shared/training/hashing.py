"""Losses over the logits of a hash head: ACIR's structure-aware contrastive hashing, and the methods beside it.

Each is an `Objective` of the logits (n, bits), labels (n,) and fingerprints (n, d) of a batch.
Sources: ACIR (arXiv 2503.09370) and its released code, from which the docstrings say where these losses differ; CSQ
(Yuan et al., CVPR 2020), OrthoHash (Hoe et al., NeurIPS 2021), GreedyHash (Su et al., NeurIPS 2018), DTSH (Wang, Shi
and Kitani, ACCV 2016).
"""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import Invalid

Mode = Literal["soft", "released"]
Fingerprints = Literal["image", "random", "uniform"]
_EPS = 1e-6


def fingerprint(images: Tensor, size: int = 16, *, centred: bool = True) -> Tensor:
    """Return (n, size * size) unit vectors: small grey versions of the images, whose dot product is their similarity.

    Compute them before any crop or flip. Centred, the similarity is Pearson's correlation; the released code does not
    centre, so that all images are similar (0.72 between classes, 0.76 within).

    Args:
        images: (n, height, width) or (n, channels, height, width) in [0, 1].
    """
    grey = images[:, None] if images.ndim == 3 else images.mean(1, keepdim=True)
    small = functional.interpolate(grey.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    flat = small.flatten(1)
    return functional.normalize(flat - flat.mean(1, keepdim=True) if centred else flat, dim=1)


def fingerprints(
    images: Tensor, size: int = 16, *, centred: bool = True, kind: Fingerprints = "image", seed: int = 0
) -> Tensor:
    """Return the images' fingerprints, or a control: `random` carries no information, `uniform` makes all equal."""
    if kind == "image":
        return fingerprint(images, size, centred=centred)
    if kind == "uniform":
        return torch.full((len(images), size * size), 1 / size)
    drawn = torch.randn(len(images), size * size, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn - drawn.mean(1, keepdim=True), dim=1)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return (classes,) inverse frequencies n / (classes * n_c); 0 for a class without images."""
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), 0.0)


def signs(u: Tensor) -> Tensor:
    """Return codes in {-1, +1}; 0 gives +1, for which `torch.sign` would return 0."""
    return (u >= 0).to(u.dtype) * 2 - 1


def single(u: Tensor) -> Tensor:
    """Convert to at least float32: bfloat16's 8 bits cannot resolve distances of long codes."""
    return u.to(torch.promote_types(u.dtype, torch.float32))


def relaxed_hamming(u: Tensor) -> Tensor:
    """Return (n, n) in [0, 1]: (1 - cosine) / 2, which for codes of -1 and +1 is the Hamming distance over the bits.

    Not centred, unlike the released code: a constant added to u flips bits and must change the distance.
    """
    unit = functional.normalize(single(u), dim=1)
    return (1 - unit @ unit.T) / 2


def quantisation_loss(u: Tensor) -> Tensor:
    """Return the mean of log(1 + (1 - cos(|u|, 1)) / 2), which is 0 for rows with equal |u|."""
    magnitudes = single(u).abs()
    return torch.log1p((1 - functional.cosine_similarity(magnitudes, torch.ones_like(magnitudes), dim=1)) / 2).mean()


def sch_loss(
    u: Tensor,
    labels: Tensor,
    prints: Tensor,
    weights: Tensor,
    *,
    mode: Mode = "soft",
    gamma: float = 0.25,
    alpha: float = 0.5,
) -> Tensor:
    """Return the structure-aware contrastive hashing loss over all ordered pairs i != j, + alpha * quantisation.

    With the relaxed Hamming distance d and the similarity S of fingerprints, each pair is weighted by both classes.
    A pair of different classes costs -exp(S) log d, most for similar images. A pair of one class costs in `soft` mode
    (ours) the cross-entropy of 1 - d against the target 1 - gamma (1 - S), so that dissimilar images settle up to
    gamma * bits apart; in `released` mode -S log(1 - d), which still pulls the whole class into one point. With uniform
    fingerprints both modes are the plain pairwise loss.

    Args:
        u: (n, bits) logits; computed in float32.
        prints: (n, d) unit vectors.
        weights: (classes,).
    """
    similarity = (prints.detach() @ prints.detach().T).clamp(0, 1)
    d = relaxed_hamming(u).clamp(_EPS, 1 - _EPS)  # identical rows would give log(0)
    near, far = torch.log1p(-d), torch.log(d)
    if mode == "released":
        positive = -similarity * near
    else:
        target = 1 - gamma * (1 - similarity)
        positive = -(target * near + (1 - target) * far)
    negative = -similarity.exp() * far
    same = labels[:, None] == labels
    pairs = weights[labels][:, None] * weights[labels] * torch.where(same, positive, negative)
    others = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    return pairs[others].mean() + alpha * quantisation_loss(u)


def dtsh_loss(u: Tensor, labels: Tensor, *, margin: float | None = None, quantisation: float = 1.0) -> Tensor:
    """Return the triplets' mean of log(1 + exp(margin - (theta_ij - theta_ik))), + quantisation * mean (u - sign u)^2.

    theta = u_i . u_j / 2. The margin is bits / 4 unless given (the authors' code has 5 with theta doubled).
    """
    u = single(u)
    theta = u @ u.T / 2
    margin = u.shape[1] / 4 if margin is None else margin
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    anchors, near = positive.nonzero(as_tuple=True)
    gaps = theta[anchors, near][:, None] - theta[anchors]
    triplets = functional.softplus(margin - gaps)[~same[anchors]]
    return (triplets.mean() if len(triplets) else 0 * theta.sum()) + quantisation * (u - signs(u)).pow(2).mean()


class Objective(nn.Module, ABC):
    """A loss over logits. Its own parameters, if any, are trained with the network's."""

    @abstractmethod
    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:
        """Map (n, bits), (n,), (n, d) to a scalar loss."""

    def logits(self, u: Tensor) -> Tensor:
        """Return the values whose signs are the code."""
        return u


class Sch(Objective):
    """ACIR's loss, see `sch_loss`; with `plain`, all fingerprints are equal (the method `pairwise`)."""

    weights: Tensor

    def __init__(
        self, weights: Tensor, *, mode: Mode = "soft", gamma: float = 0.25, alpha: float = 0.5, plain: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.mode, self.gamma, self.alpha, self.plain = mode, gamma, alpha, plain

    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:
        if self.plain:
            prints = functional.normalize(torch.ones_like(prints), dim=1)
        return sch_loss(u, labels, prints, self.weights, mode=self.mode, gamma=self.gamma, alpha=self.alpha)


class Dtsh(Objective):
    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:  # noqa: ARG002 - structure is ignored
        return dtsh_loss(u, labels)


class Csq(Objective):
    """Central similarity quantisation: each class is pulled to its own code, far from the other codes."""

    centres: Tensor

    def __init__(self, classes: int, bits: int, *, quantisation: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("centres", hash_centres(classes, bits, seed))
        self.quantisation = quantisation

    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:  # noqa: ARG002
        u = single(u)
        wanted = ((self.centres[labels] + 1) / 2).to(u.dtype)
        # (tanh u + 1) / 2 is the sigmoid of 2u, so BCE with logits 2u is the same and does not overflow
        central = functional.binary_cross_entropy_with_logits(2 * u, wanted)
        return central + self.quantisation * (u.tanh().abs() - 1).pow(2).mean()


class OrthoHash(Objective):
    """Classification by the cosine to each class's fixed random code, with a margin; no quantisation term."""

    codebook: Tensor

    def __init__(self, classes: int, bits: int, *, scale: float = 8.0, margin: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(classes, bits, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("codebook", signs(drawn))
        self.norm = nn.BatchNorm1d(bits)
        self.scale, self.margin = scale, margin

    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:  # noqa: ARG002
        cosines = functional.normalize(self.norm(single(u)), dim=1) @ functional.normalize(self.codebook, dim=1).T
        own = functional.one_hot(labels, len(self.codebook)).to(cosines.dtype)
        return functional.cross_entropy(self.scale * (cosines - self.margin * own), labels)

    def logits(self, u: Tensor) -> Tensor:
        """Apply the batch normalisation, which balances the bits and is also part of the encoder."""
        return self.norm(u)  # type: ignore[no-any-return]


class GreedyHash(Objective):
    """Classification from the code itself; the gradient passes the sign unchanged."""

    def __init__(self, classes: int, bits: int, *, quantisation: float = 0.1) -> None:
        super().__init__()
        self.classifier = nn.Linear(bits, classes)
        self.quantisation = quantisation

    def forward(self, u: Tensor, labels: Tensor, prints: Tensor) -> Tensor:  # noqa: ARG002
        u = single(u)
        code = u + (signs(u) - u).detach()
        return functional.cross_entropy(self.classifier(code), labels) + self.quantisation * (
            (u.abs() - 1).abs().pow(3).mean()
        )


METHODS = ("acir", "acir-released", "csq", "orthohash", "greedyhash", "dtsh", "pairwise")


def objective(
    name: str, classes: int, bits: int, weights: Tensor, *, seed: int = 0, gamma: float = 0.25, alpha: float = 0.5
) -> Objective:
    """Return one of `METHODS`; gamma and alpha are ACIR's. `acir-released` expects fingerprints that are not centred.

    Raises: `Invalid` for an unknown name.
    """
    if name in {"acir", "pairwise"}:
        return Sch(weights, gamma=gamma, alpha=alpha, plain=name == "pairwise")
    if name == "acir-released":
        return Sch(weights, mode="released", alpha=alpha)
    if name == "csq":
        return Csq(classes, bits, seed=seed)
    if name == "orthohash":
        return OrthoHash(classes, bits, seed=seed)
    if name == "greedyhash":
        return GreedyHash(classes, bits)
    if name == "dtsh":
        return Dtsh()
    raise Invalid(f"unknown hashing method {name}; there are: {', '.join(METHODS)}")


def hash_centres(classes: int, bits: int, seed: int = 0) -> Tensor:
    """Return (classes, bits) of -1 and +1: rows of [H; -H] with the Hadamard matrix H, if there are enough.

    Otherwise drawn until all distances are above bits / 4, and bits / 2 or more on average.

    Raises:
        Invalid: no such centres were found for this few bits.

    Source: Yuan et al. (2020), algorithm 1.
    """
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        rows = np.ones((1, 1))
        while len(rows) < bits:
            rows = np.block([[rows, rows], [rows, -rows]])
        return torch.from_numpy(np.concatenate([rows, -rows])[:classes]).float()
    rng = np.random.default_rng(seed)
    for _ in range(10_000):
        drawn = rng.integers(0, 2, (classes, bits)) * 2.0 - 1
        apart = ((bits - drawn @ drawn.T) / 2)[np.triu_indices(classes, 1)]
        if apart.min() > bits / 4 and apart.mean() >= bits / 2:
            return torch.from_numpy(drawn).float()
    raise Invalid(f"{bits} bits are too few for {classes} centres that are far enough apart")
