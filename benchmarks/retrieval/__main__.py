"""Runs all retrieval experiments in order: frozen, finetune, hashing, ood, base.

Each is the benchmark module of that name, with its options, and resumes after a stop: what the results or the scratch
folder hold is not run again. On one core `quick` takes 15 minutes for frozen features (committed sets are not measured
again: name another --out), two hours of training for finetune, and minutes for ood and base; hashing takes four hours
on two cores (--threads 2), 17 minutes for each of twelve trunks. `full` measures the papers' four networks with the
weights that they used, from torchvision's site; it trains DenseNet121 and ResNet50 with five seeds for twenty epochs,
and ACIR-S end to end for forty epochs, three seeds and four kinds: days on a GPU, too long for a CPU.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.report import RESULTS
from benchmarks.retrieval import base, finetune, frozen, hashing, ood
from benchmarks.retrieval.options import parser

#: in this order: ood uses a trunk that hashing may have trained, in their shared scratch folder
STEPS: Mapping[str, Callable[[], None]] = {
    "frozen": frozen.main,
    "finetune": finetune.main,
    "hashing": hashing.main,
    "ood": ood.main,
    "base": base.main,
}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _options(arguments)
    before = sys.argv
    for name in (name for name in STEPS if name in asked.steps):
        print(f"== {name}", flush=True)
        sys.argv = [name, *words(name, asked)]  # recorded as the command in the results
        try:
            STEPS[name]()
        finally:
            sys.argv = before


def words(name: str, asked: argparse.Namespace) -> list[str]:
    """The command-line options for one benchmark."""
    scratch = asked.scratch / ("hashing" if name == "ood" else name)
    found = ["--data", str(asked.data), "--scratch", str(scratch)]
    if name == "base":
        return [*found, "--out", str(asked.out)]
    return [*found, "--out", str(asked.out / name), "--profile", asked.profile, "--threads", str(asked.threads)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = parser(__doc__, RESULTS / "retrieval", "similis-retrieval")
    own.prog = "python -m benchmarks.retrieval"
    own.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    return own.parse_args(arguments)


if __name__ == "__main__":
    main()
