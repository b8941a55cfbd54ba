"""Your own archive: a small network fine-tuned end to end on labelled images, on a CPU in minutes to hours.

`similis train own_archive --folder IMAGES --labels labels.csv --label pathology` trains on your own files; without a
folder it trains on the sixteen classes of the development data. It uses fine-tuning, not metric learning, because
fine-tuning was better on the validation part of these classes after the same amount of work. The results of these five
epochs on the test part, with the command, are in `benchmarks/results/retrieval/own_archive`.
"""

from dataclasses import replace

from shared.training.configs import advanced_ft
from shared.training.experiment import Experiment

PRESETS = ("recommended",)
VARIANTS = ("mobilenet_v2", "squeezenet1_0", "densenet121", "resnet50")


def experiment(preset: str, variant: str) -> Experiment:
    return replace(advanced_ft.experiment(preset, variant), name=f"own-archive-{variant}", epochs=5, patience=3)
