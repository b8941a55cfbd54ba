"""similis-base, the shipped model: train `trunk` first, then `decoder`, which loads the weights of `trunk`."""

from dataclasses import replace

from shared.training.acir import Reconstruction, Shape
from shared.training.blend import Blend, Portion
from shared.training.distort import Distort
from shared.training.experiment import Cosine, Experiment, Optimiser
from shared.training.selfsupervised import Descriptive

PRESETS = ("recommended",)
VARIANTS = ("trunk", "decoder")
#: 64 bits, 8 bytes per image: half of ACIR's 128, because the training data are less varied than a hospital's archive
SHAPE = Shape(widths="xs", bits=64, side=112, spots=True)
WEIGHTS = "runs/similis-base-trunk-recommended-0/model/weights.safetensors"  #: the weights that `decoder` loads
FLIPS = Distort(area=(1, 1), stretch=0, degrees=0, gamma=0, contrast=0, inverted=0, coarse=0, noise=0)


def experiment(preset: str, variant: str) -> Experiment:
    trunk = Experiment(
        name="similis-base-trunk",
        preset=preset,
        data=Blend(side=SHAPE.side),
        side=SHAPE.side,
        method=Descriptive(shape=SHAPE),
        sampler=Portion(batch=64, batches_per_epoch=50),
        augmentation=Distort(),
        optimiser=Optimiser(rates={"all": 1.5e-3}, weight_decay=0.02),
        schedule=Cosine(warmup=0.5),
        epochs=20,
        patience=20,
        reload_best=False,  # the selection figure is measured on classes of the training part
    )
    if variant == "trunk":
        return trunk
    return replace(
        trunk,
        name="similis-base",
        method=Reconstruction(shape=SHAPE, weights=WEIGHTS, half=True),
        augmentation=FLIPS,
        optimiser=Optimiser(rates={"decoder": 1e-3}),
        epochs=6,
        patience=6,
        selection="negative_error",
        reload_best=True,
    )
