"""Memory of the stack's processes during intake, and whether it grows."""

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import sqlalchemy as sa

from benchmarks import processes
from benchmarks.stack import Stack
from shared.errors import SimilisError

FLAT_MIB = 2.0  #: per 1,000 images; 5,000 images then add less than 10 MiB
WARM = 0.3  #: share of the images after which buffers, pools and models have reached their size

_SETTLED = sa.text("SELECT count(*) FROM image WHERE settled_at IS NOT NULL")


@dataclass(frozen=True, slots=True)
class Sample:
    images: int
    pss: dict[str, float]  #: MiB by role, summed over its processes
    anonymous: dict[str, float]


@dataclass
class Memory:
    """Samples memory in a thread until the block ends."""

    stack: Stack
    every_s: float = 1.0
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                images = int(self.stack.one(_SETTLED))
            except SimilisError:
                continue
            roles = self.stack.roles()
            pss = {role: sum(map(processes.pss_mib, pids)) for role, pids in roles.items()}
            anonymous = {role: sum(map(processes.anonymous_mib, pids)) for role, pids in roles.items()}
            self.samples.append(Sample(images, pss, anonymous))

    def peaks(self) -> dict[str, dict[str, float]]:
        """By role: the highest PSS and anonymous memory, MiB."""
        roles = sorted({role for sample in self.samples for role in sample.pss})
        return {
            role: {
                "pss": round(max(sample.pss.get(role, 0.0) for sample in self.samples), 1),
                "anonymous": round(max(sample.anonymous.get(role, 0.0) for sample in self.samples), 1),
            }
            for role in roles
        }

    def growth(self) -> dict[str, dict[str, Any]]:
        """By role: PSS and anonymous memory, MiB, and their slope in MiB per 1,000 images after the warm-up part."""
        if len(self.samples) < 3:
            return {}
        first, last = self.samples[0].images, self.samples[-1].images
        warm = [s for s in self.samples if s.images >= first + WARM * (last - first)]
        return {role: _of_role(role, warm) for role in sorted(warm[-1].pss)}


def _of_role(role: str, samples: list[Sample]) -> dict[str, Any]:
    found: dict[str, Any] = {"from": samples[0].images, "to": samples[-1].images, "samples": len(samples)}
    for name, values in (
        ("pss", [s.pss.get(role, 0.0) for s in samples]),
        ("anonymous", [s.anonymous.get(role, 0.0) for s in samples]),
    ):
        found[f"{name}_median_mib"] = round(float(np.median(values)), 1)
        found[f"{name}_peak_mib"] = round(max(values), 1)
        found[f"{name}_slope_mib"] = round(slope([s.images for s in samples], values), 2)
    found["flat"] = found["anonymous_slope_mib"] < FLAT_MIB
    return found


def slope(images: list[int], values: list[float]) -> float:
    """MiB per 1,000 images: the median of all pairwise slopes (Theil and Sen), so that one jump is not a trend."""
    x, y = np.asarray(images, float), np.asarray(values, float)
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first] > 0
    if not apart.any():
        return 0.0
    return float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart]) * 1000)
