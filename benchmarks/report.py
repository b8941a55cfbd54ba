"""What every benchmark writes: its figures with machine, date, commit, command, seeds, versions and load."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "onnxruntime", "qdrant-client", "qdrant-edge-py", "sqlalchemy", "psycopg", "fastapi", "pydicom")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, with the lowest and the highest."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], digits: int = 3) -> "Spread":
        numbers = sorted(values)
        return cls(*(round(v, digits) for v in (numbers[0], statistics.median(numbers), numbers[-1])))

    def ends(self) -> tuple[float, float, float]:
        return self.low, self.median, self.high

    def overlaps(self, other: "Spread") -> bool:
        """Whether the ranges overlap, so that it is undecided which of the two is less."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{self.median:g} ({self.low:g} to {self.high:g})"


def facts(module: str, seeds: Mapping[str, int]) -> Json:
    """The circumstances of a run; call this at the start, because it records the load average before the run."""
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "seeds": dict(seeds),
        "versions": {name: version(name) for name in PACKAGES},
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
    }


def commit() -> str:
    """The short commit hash, marked `-dirty` if the working tree differs from it; `unknown` outside a checkout."""
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        done = subprocess.run(asked, cwd=RESULTS.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]


def write(name: str, about: Json, figures: Json, body: Sequence[str], folder: Path = RESULTS) -> None:
    """Write `name.md` and `name.json` to the folder, and print the body."""
    load = [round(load, 1) for load in os.getloadavg()]
    about = about | {"load_average_after": about.get("load_average_after", load)}  # kept if rewritten
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    seeds = ", ".join(f"{what} {seed}" for what, seed in about["seeds"].items())
    foot = [
        "",
        f"- Command: `{about['command']}`",
        f"- Date and commit: {about['date']}, {about['commit']}",
        f"- Machine: {about['machine']}",
        f"- Load average before and after: {about['load_average_before']}, {about['load_average_after']}",
        f"- Seeds: {seeds}",
        f"- Versions: {versions}",
        "",
    ]
    print("\n".join(body))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join([*body, *foot]), encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(about | figures, indent=1) + "\n", encoding="utf-8")
    print(f"written: {folder / name}.md and .json")
