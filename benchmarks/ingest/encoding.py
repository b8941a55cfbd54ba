"""Forward passes: ONNX Runtime against eager torch with the same weights and frames, interleaved.

`python -m benchmarks.ingest.encoding` builds each model (untrained: speed does not depend on the values), measures it,
and writes `benchmarks/results/encoding.md` and `.json`. Rounds in which other processes used the machine are
discarded: torch's threads wait for one another, so a busy machine makes torch five times slower and inflates the ratio.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from shared.encoder.base import Encoder
from shared.encoder.build import build
from shared.encoder.export import agreement
from shared.encoder.network import body
from shared.encoder.runtime import load
from shared.encoder.samples import samples
from shared.encoder.simplify import simplify
from shared.types import Pixels

ARCHITECTURES = ("densenet121", "resnet50", "efficientnet_b0", "vgg16")
QUIET = 0.1  #: share of a core that other processes may use in a round that counts
PATIENCE = 2  #: rounds tried per round wanted
TARGET = 2.0  #: ONNX Runtime over eager torch, DenseNet121

NOTES = (
    "Milliseconds per image through `Encoder.encode` (checks and normalisation included), 224 x 224, fp32: median and",
    "quartiles. One thread: processor time, which other work hardly lengthens. More threads: the clock, in rounds",
    "that others left alone; where too few were, all count and the row says busy, and no verdict is drawn from it.",
    "The ratio is taken round by round. Roof: the graph's arithmetic per second as a share of a large matrix product's",
    "on the same threads (best of ten): near 100 %, no runtime does the same arithmetic faster here, and the ratio",
    "only tells how far eager torch is from there. Cosine, difference: the worst of the batch.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Quartiles."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    architecture: str
    threads: int
    batch: int
    rounds: int
    quiet: bool  #: False: too few rounds were quiet, so all of them count
    onnx_ms: Spread  #: per image
    torch_ms: Spread
    ratio: Spread  #: torch over onnx, round by round
    roof: float  #: the graph's arithmetic per second, as a share of a matrix product's on as many threads
    max_abs_diff: float
    min_cosine: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as models:
        for architecture in options.architectures:
            start = time.perf_counter()
            build(Path(models) / architecture, architecture, architecture, "random:0")
            seconds[architecture] = round(time.perf_counter() - start, 1)
            for threads in options.threads:
                rows += measure(Path(models) / architecture, architecture, threads, options.batches, options.rounds)
                print(_line(rows[-1]), flush=True)
    facts = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.ingest.encoding", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": report.machine(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "onnxruntime", "numpy")},
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "build_s": seconds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    data = {**facts, "rows": [asdict(row) for row in rows]}
    (options.out / "encoding.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (options.out / "encoding.md").write_text(_markdown(facts, rows), encoding="utf-8")
    print(f"written: {options.out / 'encoding.md'}")


def measure(folder: Path, architecture: str, threads: int, batches: Sequence[int], rounds: int) -> list[Row]:
    """One row per batch size. Odd rounds run torch first, so that neither always inherits a warm cache."""
    encoders = {"onnx": load(folder, "onnx", threads), "torch": load(folder, "torch", threads)}
    gflop, peak = _gflop(architecture), _gflop_per_s(threads)
    rows = []
    for batch in batches:
        pixels = samples(batch, encoders["onnx"].card.recipe.size, 1)
        vectors = {name: encoder.encode(pixels).embeddings for name, encoder in encoders.items()}  # also warms up
        diff, cosine = agreement(vectors["torch"], vectors["onnx"])
        ms, quiet = _rounds(encoders, pixels, threads, rounds)
        rows.append(
            Row(
                architecture=architecture,
                threads=threads,
                batch=batch,
                rounds=len(ms["onnx"]),
                quiet=quiet,
                onnx_ms=_spread(ms["onnx"]),
                torch_ms=_spread(ms["torch"]),
                roof=round(gflop / (statistics.median(ms["onnx"]) * 1e-3) / peak, 2),
                ratio=_spread([slow / fast for slow, fast in zip(ms["torch"], ms["onnx"], strict=True)]),
                max_abs_diff=diff,
                min_cosine=min(cosine, 1.0),
            )
        )
    return rows


def _rounds(
    encoders: Mapping[str, Encoder], pixels: Pixels, threads: int, wanted: int
) -> tuple[dict[str, list[float]], bool]:
    """(ms per image of the quiet rounds, True); of all rounds and False if too few were quiet.

    With one thread, process time is measured, which does not advance while others run: all rounds count.
    """
    every: list[dict[str, float]] = []
    calm: list[dict[str, float]] = []
    clock = time.process_time if threads == 1 else time.perf_counter
    while len(calm) < wanted and len(every) < PATIENCE * wanted:
        times: dict[str, float] = {}
        before = _busy_s()
        for name in ("torch", "onnx") if len(every) % 2 else ("onnx", "torch"):
            times[name] = _ms_per_image(encoders[name], pixels, clock)
        busy, own, wall = (after - then for after, then in zip(_busy_s(), before, strict=True))
        every.append(times)
        if threads == 1 or busy - own < QUIET * wall:
            calm.append(times)
    kept = calm if len(calm) == wanted else every
    return {name: [times[name] for times in kept] for name in ("onnx", "torch")}, kept is calm


def _busy_s() -> tuple[float, float, float]:
    """Processor seconds of the whole machine and of this process, and wall-clock seconds."""
    jiffies = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]]
    idle = jiffies[3] + jiffies[4]
    return (sum(jiffies[:8]) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def _ms_per_image(encoder: Encoder, pixels: Pixels, clock: Callable[[], float]) -> float:
    time.sleep(0.02)  # idle threads of the other runtime spin for some milliseconds
    start, images = clock(), 0
    while (taken := clock() - start) < 0.3:  # well above the 10 ms resolution of the kernel's counters
        encoder.encode(pixels)
        images += len(pixels)
    return taken * 1e3 / images


def _gflop(architecture: str) -> float:
    """Floating-point operations of one forward pass, in 10^9."""
    cheapest = simplify(body(architecture, empty=True).to("meta"))
    with FlopCounterMode(display=False) as counter:
        cheapest(torch.empty(1, 3, 224, 224, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def _gflop_per_s(threads: int) -> float:
    """Speed of a large float32 matrix product, an upper bound for convolutions."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    a, best = torch.rand(2048, 2048), 0.0
    for _ in range(10):
        start = clock()
        torch.mm(a, a)
        best = max(best, 2 * 2048**3 / 1e9 / (clock() - start))
    return best


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low=round(low, 2), median=round(median, 2), high=round(high, 2))


def _line(row: Row) -> str:
    def cell(spread: Spread) -> str:
        return f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"

    rounds = f"{row.rounds}{'' if row.quiet else ' (busy)'}"
    return (
        f"| {row.architecture} | {row.threads} | {row.batch} | {rounds} | {cell(row.onnx_ms)} | {cell(row.torch_ms)} "
        f"| **{row.ratio.median:.2f}** ({row.ratio.low:.2f} to {row.ratio.high:.2f}) "
        f"| {row.roof:.0%} | {row.min_cosine:.7f} | {row.max_abs_diff:.1e} |"
    )


def _verdict(row: Row) -> str:
    if not row.quiet:
        return "busy machine, no verdict"
    return "reached" if row.ratio.median >= TARGET else "not reached"


def _markdown(facts: Mapping[str, object], rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.architecture == "densenet121"]
    verdict = (
        "; ".join(
            f"{row.threads} thread{'s' if row.threads > 1 else ''}, batch {row.batch}: {row.ratio.median:.2f} "
            f"({_verdict(row)})"
            for row in judged
        )
        or "not measured"
    )
    built = ", ".join(f"{name} {seconds} s" for name, seconds in dict(facts["build_s"]).items())  # type: ignore[call-overload]
    versions = ", ".join(f"{name} {number}" for name, number in dict(facts["versions"]).items())  # type: ignore[call-overload]
    return "\n".join(
        [
            "# Encoding on CPU: ONNX Runtime and eager torch",
            "",
            f"Target: ONNX Runtime at least {TARGET:.0f} times eager torch for DenseNet121. {verdict}.",
            "",
            *NOTES,
            "",
            "| model | threads | batch | rounds | ONNX, ms | torch, ms | torch / ONNX | roof | cosine | difference |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(_line, rows),
            "",
            f"Making a card (weights, graph, parity check), once: {built}.",
            "",
            f"- Machine: {facts['machine']}; load average at the end {facts['load_average']}",
            f"- Versions: {versions}",
            f"- Date: {facts['date']}",
            f"- Command: `{facts['command']}`",
            "",
        ]
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest.encoding", description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--scratch", type=Path, default=None, help="where the models are built; VGG16 needs 2 GB")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
