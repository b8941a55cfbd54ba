"""ACIR (arXiv 2503.09370), stage 1. Stage 2, the decoder, is `decoder` with the weights of stage 1.

`released-code` follows the authors' repository: shuffled batches weighted by class, its loss, no clipping, timm's
cosine, fingerprints of the augmented images at 32 pixels. `paper` takes fingerprints before augmentation, at the
paper's 16 pixels. Both deviate in the distance and the quantiser (the repository's do not work: see
`shared.training.hashing`), leave out pairs i = j, normalise the inputs of the KAN, and select the checkpoint by the
validation part (the authors select by the test queries).
`recommended` has our loss, which keeps the images of a class apart, and balanced batches; the small widths are trained
from scratch at 112 pixels, for a CPU.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from shared.training.acir import Hashing, Reconstruction, Shape
from shared.training.augment import Augment
from shared.training.data import Named
from shared.training.experiment import Cosine, Experiment, Optimiser, PrefixedCosine, Shuffled
from shared.training.samplers import ClassBalanced

Widths = Literal["full", "s", "s-half", "xs"]

PRESETS = ("recommended", "paper", "released-code")
VARIANTS = get_args(Widths)
BITS = 64
CROPS = Augment(scale=(0.8, 1.0), horizontal=0.5, vertical=0.5, degrees=0, brightness=0, contrast=0, erasing=0)
FLIPS = replace(CROPS, scale=(1.0, 1.0))


def experiment(preset: str, variant: Widths) -> Experiment:
    side = 224 if variant == "full" else 112
    method = Hashing(
        shape=Shape(widths=variant, bits=BITS, side=side),
        objective="acir-released",
        stem="resnet50 torchvision:IMAGENET1K_V1" if variant == "full" else "",
        weighted=True,
    )
    paper = Experiment(
        name=f"acir-{variant}",
        preset=preset,
        data=Named(name="radiology_16class", side=side),
        side=side,
        method=method,
        sampler=Shuffled(batch=256),
        augmentation=CROPS,
        optimiser=Optimiser(rates={"stem": 3e-4, "rest": 3e-4}, weight_decay=0.01, betas=(0.9, 0.95)),
        schedule=PrefixedCosine(cycle=150),
        epochs=150,
        patience=50,
        clip=None,
        precision="fp32",
    )
    if preset == "paper":
        return paper
    if preset == "released-code":
        return replace(paper, method=replace(method, fingerprint=32, printed="augmented"))
    # a pretrained stem has a tenth of the rate of the new parts; a stem trained from scratch has the same rate
    rates = {"stem": 3e-5, "rest": 3e-4} if variant == "full" else {"stem": 1e-3, "rest": 1e-3}
    return replace(
        paper,
        method=replace(method, objective="acir", weighted=False),
        sampler=ClassBalanced(classes=16, per_class=4),
        optimiser=replace(paper.optimiser, rates=rates),
        schedule=Cosine(warmup=1),
        epochs=40,
        patience=10,
        clip=1.0,
        precision="bf16",
    )


def decoder(stage1: Experiment, weights: Path, epochs: int = 30) -> Experiment:
    """Return stage 2. Images are only flipped: the decoder must not learn to reconstruct crops or changed contrast.

    Args:
        stage1: an experiment of `Hashing`.
        weights: the safetensors file in the model folder of stage 1.
    """
    if not isinstance(stage1.method, Hashing):
        raise TypeError("stage 2 follows an experiment of ACIR's stage 1")
    return replace(
        stage1,
        name=f"{stage1.name}-decoder",
        method=Reconstruction(shape=stage1.method.shape, weights=str(weights)),
        sampler=Shuffled(batch=64),
        augmentation=FLIPS,
        optimiser=Optimiser(rates={"decoder": 3e-4}, weight_decay=0.01),
        schedule=Cosine(),
        epochs=epochs,
        patience=5,
        selection="negative_error",
    )
