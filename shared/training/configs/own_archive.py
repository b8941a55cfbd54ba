"""One's own archive: a small network fine-tuned whole on labelled images, by a CPU in minutes to hours.

`similis train own_archive --folder IMAGES --labels labels.csv --label pathology` trains on files of one's own; without
a folder it trains on the sixteen classes of the development data. Fine-tuning and not metric learning, because on the
validation part of those it was ahead after as much work. What these five epochs give on the test part, with the
command, stands in `benchmarks/results/retrieval/own_archive`.
"""

from dataclasses import replace

from shared.training.configs import advanced_ft
from shared.training.experiment import Experiment

PRESETS = ("recommended",)
VARIANTS = ("mobilenet_v2", "squeezenet1_0", "densenet121", "resnet50")


def experiment(preset: str, variant: str) -> Experiment:
    return replace(advanced_ft.experiment(preset, variant), name=f"own-archive-{variant}", epochs=5, patience=3)
