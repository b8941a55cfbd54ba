"""Metric learning (arXiv 2508.04790): a 1024-512-512 head under triplet, classification and centre loss.

`paper` follows the text, with our choices where it is silent: batch-hard triplets from class-balanced batches, one
cosine, a patience of 7 and the best checkpoint. `released-code` follows the authors' notebook: no centre loss, triplets
drawn from 200 images, rates halved every 5 epochs, all epochs run, and neither vertical flips nor erased patches.
`recommended` computes the centre loss on unit vectors, because raw vectors have a squared length near 512 and the loss
would dominate the other two. Its images keep their aspect ratio.
"""

from dataclasses import replace

from shared.encoder.backbones import PAPER_WEIGHTS
from shared.training.augment import Augment
from shared.training.data import Named, Squashed
from shared.training.experiment import Cosine, Experiment, Optimiser, Steps
from shared.training.metric import MetricLearning
from shared.training.samplers import ClassBalanced, Triplets

PRESETS = ("recommended", "paper", "released-code")
VARIANTS = ("densenet121", "resnet50", "vgg16", "efficientnet_b0", "mobilenet_v2", "squeezenet1_0")
SMALL = ("mobilenet_v2", "squeezenet1_0")  #: at 128 pixels, for training without a GPU


def experiment(preset: str, variant: str) -> Experiment:
    side = 128 if variant in SMALL else 224
    stored = side * 256 // 224
    data = Squashed(name="radiology_16class", side=stored)
    method = MetricLearning(architecture=variant, weights=PAPER_WEIGHTS.get(variant, "torchvision:IMAGENET1K_V1"))
    paper = Experiment(
        name=f"metric-{variant}",
        preset=preset,
        data=data,
        side=side,
        method=method,
        sampler=ClassBalanced(classes=5, per_class=6),
        augmentation=Augment(),
        optimiser=Optimiser(rates={"backbone": 1e-4, "head": 1e-4}),
        schedule=Cosine(),
        epochs=15,
        patience=7,
    )
    if preset == "released-code":
        return replace(
            paper,
            data=replace(data, limit=200),
            method=replace(method, triplet=0.7, classification=0.3, centre=0.0, mining="drawn"),
            sampler=Triplets(batch=8),
            augmentation=Augment(erasing=0.0),
            schedule=Steps(size=5, factor=0.5),
            patience=15,
            reload_best=False,
            precision="fp32",
        )
    if preset == "recommended":
        return replace(
            paper,
            data=Named(name="radiology_16class", side=stored),
            method=replace(method, centres_of="unit"),
            optimiser=Optimiser(rates={"backbone": 1e-4, "head": 1e-3}),
        )
    return paper
