"""One hash head on the features of a trunk: training, codes, figures."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.retrieval.trunk import Seen
from shared.datasets.collection import Collection
from shared.encoder.acir import HashHead
from shared.encoder.acir import Head as Layer
from shared.encoder.hashing import codes as packed
from shared.metrics.bootstrap import interval
from shared.metrics.hashing import ball, unique_codes, within_class_ndcg
from shared.metrics.ranking import Metric, Side
from shared.metrics.retrieval import measure
from shared.training.experiment import Cosine, Optimiser
from shared.training.hashing import Fingerprints, Objective, fingerprint, fingerprints, objective
from shared.training.samplers import ClassBalanced

HIDDEN = 128
EPOCHS = 8
BATCHES = ClassBalanced(classes=16, per_class=8)
AUXILIARY = 0.5  #: weight of a cross-entropy on the middle layer, equal for all: only the hashing loss differs
RATES = {"adamw": 1e-2, "adam": 1e-2, "sgd": 5e-2}  #: 3e-3 leaves the losses over cosines undertrained
STRUCTURE = 16  #: pixels of the fingerprints that define the order within a class


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The parameters in which heads differ."""

    method: str = "acir"
    bits: int = 64
    alpha: float = 0.5
    gamma: float = 0.25
    prints: int = 16  #: pixels of the fingerprints
    marks: Fingerprints = "image"  #: kind of the fingerprints
    layer: Layer = "kan"
    darf: bool = True  #: whether it reads f_D
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    labels: Literal["fine", "coarse"] = "fine"  #: coarse: its only label is the set that an image comes from

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that differ from the default."""
        usual = asdict(Head())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def codes(head: Head, seen: Seen, collection: Collection, fusion: int, seed: int) -> NDArray[np.uint8]:
    """(n, bits / 8) codes of all images, by a head trained on the training part.

    Args:
        fusion: width of f_G and f_L together, the features without f_D.
    """
    torch.manual_seed(seed)
    features = seen.blended if head.darf else seen.blended[:, :fusion]
    labels = torch.from_numpy(collection.labels if head.labels == "fine" else coarse(collection))
    fit = torch.from_numpy(np.flatnonzero(collection.split == "train"))
    images = torch.from_numpy(collection.images).float() / 255
    centred = head.method != "acir-released"
    marks = fingerprints(images, head.prints, centred=centred, kind=head.marks, seed=seed)
    model, loss = _trained(head, features[fit], labels[fit], marks[fit], collection.groups[fit.numpy()], seed)
    with torch.inference_mode():
        return packed(loss.logits(model(features)[0]).numpy())


def _trained(
    head: Head, features: Tensor, labels: Tensor, marks: Tensor, groups: NDArray[np.int64], seed: int
) -> tuple[HashHead, Objective]:
    classes = int(labels.max()) + 1
    model = HashHead(features.shape[1], HIDDEN, head.bits, head.layer)
    auxiliary = nn.Linear(HIDDEN, classes)
    loss = objective(
        head.method, classes, head.bits, torch.ones(classes), seed=seed, gamma=head.gamma, alpha=head.alpha
    )
    trained = [*model.parameters(), *auxiliary.parameters(), *loss.parameters()]
    optimiser = Optimiser(
        rates={"all": RATES[head.optimiser]}, kind=head.optimiser, weight_decay=head.weight_decay
    ).build({"all": trained})
    schedule = Cosine()
    for epoch in range(EPOCHS):
        batches = list(BATCHES.batches(labels.numpy(), groups, seed * 1000 + epoch))
        for number, chosen in enumerate(batches):
            rows = torch.from_numpy(chosen)
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(group["base"], epoch + number / len(batches), EPOCHS)
            logits, hidden = model(features[rows])
            total = loss(logits, labels[rows], marks[rows])
            total = total + AUXILIARY * functional.cross_entropy(auxiliary(hidden), labels[rows])
            optimiser.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
    return model.eval(), loss.eval()


def coarse(collection: Collection) -> NDArray[np.int64]:
    """(n,) number of the set that an image comes from."""
    return np.unique(collection.sources, return_inverse=True)[1].astype(np.int64)


def measured(
    vectors: NDArray[Any], collection: Collection, metric: Metric
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Figures of the test images against all others, and the average precision of each query.

    Args:
        vectors: of the whole collection; packed codes for Hamming, embeddings for cosine.
    """
    asked = collection.split == "test"
    sides = {
        name: Side(vectors=vectors[rows], labels=collection.labels[rows], clusters=collection.groups[rows])
        for name, rows in (("queries", asked), ("gallery", ~asked))
    }
    queries, gallery = sides["queries"], sides["gallery"]
    found = measure(queries, gallery, metric=metric, ks=(10, 100))
    average = found.values["mAP"]
    marks = fingerprint(torch.from_numpy(collection.images).float() / 255, STRUCTURE).numpy()
    order = within_class_ndcg(queries, gallery, (marks[asked], marks[~asked]), metric)
    known = interval(average, collection.groups[asked])
    figures: dict[str, Any] = {
        "mAP": known.mean,
        "mAP_low": known.low,
        "mAP_high": known.high,
        "mAP_macro": found.macro("mAP"),
        "mAP@100": found.micro("mAP@100"),
        "P@10": found.micro("P@10"),
        "within_class_nDCG": float(np.nanmean(order)),
        "bytes": vectors.shape[1] * vectors.itemsize,
    }
    if metric == "hamming":
        bits = vectors.shape[1] * 8
        balls = ball(queries, gallery, radii(bits))
        figures["unique_codes"] = unique_codes(gallery.vectors)
        figures["ball"] = {name: balls.micro(name) for name in balls.values}
    return figures, average


def radii(bits: int) -> list[int]:
    """Radii up to a quarter of the bits, the largest in the paper."""
    return sorted({0, 2, 4, bits // 16, bits // 8, bits // 4})


def grid(bits: tuple[int, ...], methods: tuple[str, ...]) -> list[Head]:
    """Every method at every length, then one change at a time at the usual length."""
    usual = Head()
    changes: list[dict[str, Any]] = [
        *({"alpha": value} for value in (0.25, 0.75)),
        *({"gamma": value} for value in (0.15, 0.4)),
        *({"prints": value} for value in (8, 32)),
        *({"marks": value} for value in ("random", "uniform")),
        {"layer": "linear"},
        {"darf": False},
        *(
            {"optimiser": kind, "weight_decay": decay}
            for kind in ("adamw", "adam", "sgd")
            for decay in (0.0, 1e-4)
            if (kind, decay) != (usual.optimiser, usual.weight_decay)
        ),
    ]
    return [
        *(
            Head(method=method, bits=length)
            for length in sorted(bits, key=lambda b: b != usual.bits)
            for method in methods
        ),
        *(replace(usual, **change) for change in changes),
        *(Head(method=method, labels="coarse") for method in methods),
    ]
