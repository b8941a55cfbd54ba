"""A synthetic set for trainings of seconds: four classes of stripes, two images per group."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.datasets.collection import Collection

CLASSES = 4


def stripes(n: int, side: int, seed: int) -> Collection:
    """(n, side, side): stripes whose direction is the class, under noise; a quarter is `val`, an eighth `test`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    groups = np.arange(n) // 2
    labels = groups % CLASSES
    angle = labels[:, None, None] * np.pi / CLASSES
    wave = np.sin(0.9 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6, (n, 1, 1)))
    images = 128 + 50 * wave + 20 * rng.standard_normal((n, side, side))
    part = np.array(["train", "val", "train", "test", "train", "val", "train", "train"])
    return Collection(
        name="stripes",
        images=np.clip(images, 0, 255).astype(np.uint8),
        labels=labels.astype(np.int64),
        classes=tuple(f"stripe {c}" for c in range(CLASSES)),
        groups=groups.astype(np.int64),
        split=part[groups // CLASSES % len(part)],
        sources=np.full(n, "stripes"),
        licence="made by the test",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripes:
    n: int = 64
    side: int = 32
    seed: int = 0

    def load(self, root: Path) -> Collection:
        return stripes(self.n, self.side, self.seed)
