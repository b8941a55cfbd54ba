"""One's own archive: a small network and an embedding head, trained on labelled images by a CPU in hours.

`similis train own_archive --folder IMAGES --labels labels.csv --label pathology` trains on files of one's own; without
a folder it trains on the sixteen classes of the development data, which is how it was measured. Metric learning,
because what is asked for is an order of images; rates are higher than the paper's, since one cannot train for long.
"""

from dataclasses import replace

from shared.training.configs import metric_learning
from shared.training.experiment import Experiment, Optimiser
from shared.training.samplers import ClassBalanced

PRESETS = ("recommended",)
VARIANTS = ("mobilenet_v2", "squeezenet1_0", "densenet121", "resnet50")


def experiment(preset: str, variant: str) -> Experiment:
    return replace(
        metric_learning.experiment(preset, variant),
        name=f"own-archive-{variant}",
        sampler=ClassBalanced(classes=8, per_class=4),
        optimiser=Optimiser(rates={"backbone": 3e-4, "head": 1e-3}),
        epochs=10,
        patience=4,
    )
