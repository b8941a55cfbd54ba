"""Every experiment on retrieval, one after the other: frozen, finetune, hashing, ood, base.

Each is the benchmark of its own name with its own options, and goes on where it was stopped: what stands in the results
or the scratch folder is not run again. On one core `quick` takes 15 minutes for frozen features (committed sets are not
measured again: name another --out), two hours of trainings for finetune, and minutes for ood and base; hashing takes
four hours of two cores (--threads 2), 17 minutes for each of twelve trunks. `full` measures the papers' four networks
with the weights that they used, from torchvision's site; it trains five seeds for twenty epochs, with DenseNet121 and
ResNet50, and ACIR-S from end to end for forty epochs, three seeds, four kinds: days of a GPU, and no job for a CPU.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.report import RESULTS
from benchmarks.retrieval import base, finetune, frozen, hashing, ood
from benchmarks.retrieval.options import parser

#: in their order: ood looks through a trunk that hashing may have trained, in the scratch folder that they share
STEPS: Mapping[str, Callable[[], None]] = {
    "frozen": frozen.main,
    "finetune": finetune.main,
    "hashing": hashing.main,
    "ood": ood.main,
    "base": base.main,
}
PROFILED = {"frozen", "finetune", "hashing", "ood"}
THREADED = {"frozen", "finetune", "hashing", "ood"}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _options(arguments)
    before = sys.argv
    for name in (name for name in STEPS if name in asked.steps):
        print(f"== {name}", flush=True)
        sys.argv = [name, *words(name, asked)]  # what its results call their command
        try:
            STEPS[name]()
        finally:
            sys.argv = before


def words(name: str, asked: argparse.Namespace) -> list[str]:
    """The options of one benchmark."""
    scratch = asked.scratch / ("hashing" if name == "ood" else name)
    out = asked.out if name == "base" else asked.out / name
    found = ["--data", str(asked.data), "--out", str(out), "--scratch", str(scratch)]
    found += ["--profile", asked.profile] if name in PROFILED else []
    return found + (["--threads", str(asked.threads)] if name in THREADED else [])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = parser(__doc__, RESULTS / "retrieval", "similis-retrieval")
    own.prog = "python -m benchmarks.retrieval"
    own.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    return own.parse_args(arguments)


if __name__ == "__main__":
    main()
