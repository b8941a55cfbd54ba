"""Time until a stack is ready: the first start of a home, the second, and the one after `kill -9` of everything.

`python -m benchmarks.start [--rounds 5]`. Ready means that `/readyz` answers 200: Postgres and the vectors process run
and searches are answered; the workers load their models later. Also measured: the time until a model is published.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks import report
from services.embedded.client import Embedded
from shared import process

WITHIN_S = 120.0
TARGET_S = 5.0


def ready(stack: Embedded, asks: Callable[[dict[str, str]], bool] = lambda _: True) -> bool:
    try:
        answer = httpx.get(f"{stack.url}/readyz", timeout=1.0)
    except (httpx.HTTPError, KeyError, OSError):
        return False
    return answer.status_code == 200 and asks(answer.json())


def start(home: Path) -> tuple[Embedded, float, float]:
    """A started stack, and the seconds until it was ready and until a model was published."""
    stack, began = Embedded(home), time.monotonic()
    stack.start()
    process.until(lambda: ready(stack), WITHIN_S, 0.01)
    taken = time.monotonic() - began
    process.until(lambda: ready(stack, lambda told: told["model"] not in ("none yet", "unknown")), WITHIN_S, 0.05)
    return stack, taken, time.monotonic() - began


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """(seconds until ready, seconds until a model was published) for each of the three starts of one home."""
    found = {}
    for kind in ("first", "again", "after kill -9"):
        stack, until_ready, until_model = start(folder / "home")
        found[kind] = (until_ready, until_model)
        if kind == "again":
            stack.kill()
        else:
            stack.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    about = report.facts("start", {})
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="similis-start-") as folder:
            rounds.append(measure(Path(folder)))
    rows = [[kind, *(_spread([one[kind][i] for one in rounds]) for i in (0, 1))] for kind in rounds[0]]
    worst = max(one["first"][0] for one in rounds)
    verdict = "reached" if worst <= TARGET_S else "not reached"
    body = [
        "# Start",
        "",
        f"{args.rounds} fresh homes, each started three times; seconds, median (least to most).",
        f"Ready within {TARGET_S:g} s of the first start: {verdict} (slowest {worst:.1f} s).",
        "",
        *report.table(["start", "ready", "with a model published"], rows),
    ]
    report.write("start", about, {"rounds": rounds}, body, args.out)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
