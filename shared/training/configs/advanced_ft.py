"""AdvancedFT (arXiv 2508.04790): a backbone fine-tuned end to end; the embedding is its pooled features.

`paper` follows the text, `released-code` the authors' notebook where it differs. Where the text is silent both follow
the notebook, except that `paper` has no vertical flips (no such view exists) and selects by retrieval. `recommended`
has ten times higher rates, for smaller archives and fewer epochs, one cosine, and images that keep their aspect ratio.
"""

from dataclasses import replace

from shared.encoder.backbones import PAPER_WEIGHTS
from shared.training.augment import Augment
from shared.training.data import Named, Squashed
from shared.training.experiment import Cosine, Experiment, Optimiser, Shuffled, WarmRestarts
from shared.training.finetune import AdvancedFT

PRESETS = ("recommended", "paper", "released-code")
VARIANTS = ("densenet121", "resnet50", "vgg16", "efficientnet_b0", "mobilenet_v2", "squeezenet1_0")
SMALL = ("mobilenet_v2", "squeezenet1_0")  #: at 128 pixels, for training without a GPU


def experiment(preset: str, variant: str) -> Experiment:
    side = 128 if variant in SMALL else 224
    stored = side * 256 // 224
    paper = Experiment(
        name=f"advanced-ft-{variant}",
        preset=preset,
        data=Squashed(name="radiology_16class", side=stored),
        side=side,
        method=AdvancedFT(architecture=variant, weights=PAPER_WEIGHTS.get(variant, "torchvision:IMAGENET1K_V1")),
        sampler=Shuffled(batch=16),
        augmentation=Augment(),
        optimiser=Optimiser(rates={"backbone": 1e-5, "head": 1e-4}),
        schedule=WarmRestarts(),
        epochs=20,
        patience=7,
    )
    if preset == "released-code":
        return replace(
            paper,
            augmentation=Augment(vertical=0.3),
            optimiser=Optimiser(rates={"backbone": 1e-4, "head": 1e-4}),
            selection="val_accuracy",
            reload_best=False,
            precision="fp32",
        )
    if preset == "recommended":
        return replace(
            paper,
            data=Named(name="radiology_16class", side=stored),
            optimiser=Optimiser(rates={"backbone": 1e-4, "head": 1e-3}),
            schedule=Cosine(),
        )
    return paper
