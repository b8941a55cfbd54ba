"""ACIR (arXiv 2503.09370), stage 2, the decoder. Stage 1: --set method.weights=MODEL/weights.safetensors."""

from pathlib import Path

from shared.training.configs import acir
from shared.training.experiment import Experiment

PRESETS = acir.PRESETS
VARIANTS = acir.VARIANTS


def experiment(preset: str, variant: acir.Widths) -> Experiment:
    return acir.decoder(acir.experiment(preset, variant), Path("weights.safetensors"))
