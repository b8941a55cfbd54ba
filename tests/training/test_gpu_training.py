"""Every method through the training loop on a GPU, if there is one: stopped, resumed, and usable on the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.encoder.runtime import load
from shared.training import checkpoint as kept
from shared.training.acir import Hashing, Shape
from shared.training.augment import NoAugmentation
from shared.training.experiment import Cosine, Experiment, Optimiser
from shared.training.finetune import AdvancedFT
from shared.training.metric import MetricLearning
from shared.training.samplers import ClassBalanced
from shared.training.selfsupervised import Descriptive
from shared.training.train import train
from tests.training.small_set import Stripes

XS = Shape(widths="xs", bits=16, side=112)
SQUEEZE: Mapping[str, Any] = {"architecture": "squeezenet1_0", "weights": "random:0"}
METHODS = {
    "advanced": (AdvancedFT(**SQUEEZE), ("backbone", "head")),
    "metric": (MetricLearning(**SQUEEZE), ("backbone", "head")),
    "acir": (Hashing(shape=XS), ("stem", "rest")),
    "base": (Descriptive(shape=XS, views=640, head_steps=5), ("all",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedAfter:
    def __call__(self, images: Tensor, side: int) -> Tensor:
        if batches and batches.pop() == "stop":
            raise KeyboardInterrupt
        return NoAugmentation()(images, side)


batches: list[str] = []  # a stack: the last entry is next


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_trained_in_mixed_precision_stopped_and_resumed(tmp_path: Path, name: str) -> None:
    method, groups = METHODS[name]
    one = Experiment(
        name=name,
        data=Stripes(n=480, side=112),
        side=112,
        method=method,
        sampler=ClassBalanced(classes=4, per_class=25),
        augmentation=StoppedAfter(),
        optimiser=Optimiser(rates=dict.fromkeys(groups, 1e-3)),
        schedule=Cosine(),
        epochs=2,
        patience=2,
        precision="bf16",
    )
    batches[:] = ["stop", *["go on"] * 3]  # stops in the second epoch; each has two batches
    with pytest.raises(KeyboardInterrupt):
        train(one, Path(), tmp_path / "out", threads=1)
    assert kept.load(tmp_path / "out").epoch == 1
    batches.clear()
    figures = train(one, Path(), tmp_path / "out", threads=1)
    assert len(figures["history"]) == 2
    assert torch.cuda.is_available() == ("cuda" in figures["machine"])
    pixels = np.random.default_rng(0).random((2, 112, 112), np.float32)
    assert np.isfinite(load(tmp_path / "out" / "model").encode(pixels).embeddings).all()
