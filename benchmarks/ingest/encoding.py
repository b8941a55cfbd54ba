"""Forward passes: ONNX Runtime against eager torch with the same weights and frames, in turn.

`python -m benchmarks.ingest.encoding` builds each model (untrained: speed does not depend on the values), measures it,
and writes `benchmarks/results/encoding.md` and `.json`. Each round runs each runtime in a fresh process, so that
neither inherits the other's threads and caches, or keeps a lucky layout of memory for all rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.report import Json, Spread
from shared.encoder.base import Encoder
from shared.encoder.build import build
from shared.encoder.cards import read
from shared.encoder.export import agreement
from shared.encoder.network import body
from shared.encoder.runtime import Runtime, load
from shared.encoder.samples import samples
from shared.encoder.simplify import simplify
from shared.types import Embeddings, Pixels

ARCHITECTURES = ("densenet121", "resnet50", "efficientnet_b0", "vgg16")
QUIET = 0.1  #: share of a core that other processes may use in a round that counts
PATIENCE = 2  #: rounds tried per round wanted
TARGET = 2.0  #: ONNX Runtime over eager torch, DenseNet121
MEASURE_S = 0.6  #: measured per figure, well above the 10 ms resolution of the kernel's counters

NOTES = (
    "Milliseconds per image through `Encoder.encode` (checks and normalisation included), 224 x 224, fp32: median,",
    "lowest and highest of the rounds, each in fresh processes. One thread: processor time, which other work hardly",
    "lengthens. More threads: the clock, in rounds that others left alone, because torch's threads wait for one",
    "another; where too few were, all count and the row says busy, and no verdict is drawn from it. On a virtual",
    "machine whose processors exchange data slowly for minutes, two threads take then as long as one.",
    "The ratio is taken round by round. Roof: the graph's arithmetic per second as a share of a large matrix product's",
    "on the same threads (best of ten): near 100 %, no runtime does the same arithmetic faster here, and the ratio",
    "only tells how far eager torch is from there. Cosine, difference: the worst of the batch.",
)


class Measured(NamedTuple):
    """One runtime in one round, for one batch size."""

    ms: float  #: per image
    others: float  #: share of a core that other processes used meanwhile


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    about = report.facts("ingest.encoding", {"weights": 0, "frames": 1})
    about["versions"] |= {"torch": torch.__version__}
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as models:
        for architecture in options.architectures:
            start, folder = time.perf_counter(), Path(models) / architecture
            build(folder, architecture, architecture, "random:0")
            seconds[architecture] = round(time.perf_counter() - start, 1)
            for threads in options.threads:
                rows += measure(folder, architecture, threads, options.batches, options.rounds)
    report.write("encoding", about, {"rows": rows, "build_s": seconds}, _text(rows, seconds), options.out)


def measure(folder: Path, architecture: str, threads: int, batches: Sequence[int], rounds: int) -> list[Json]:
    """One row per batch size."""
    gflop, peak = _gflop(architecture), _gflop_per_s(threads)
    runs, quiet = _rounds(folder, threads, batches, rounds)
    rows = []
    for number, batch in enumerate(batches):
        onnx, eager = ([run[runtime][number].ms for run in runs] for runtime in ("onnx", "torch"))
        vectors = [_vectors(folder, runtime, threads, batch) for runtime in ("torch", "onnx")]
        difference, cosine = agreement(*vectors)
        rows.append(
            {"architecture": architecture, "threads": threads, "batch": batch, "rounds": len(runs), "quiet": quiet}
            | {"onnx_ms": asdict(Spread.of(onnx, 1)), "torch_ms": asdict(Spread.of(eager, 1))}
            | {"ratio": asdict(Spread.of((slow / fast for slow, fast in zip(eager, onnx, strict=True)), 2))}
            | {"roof": round(gflop / (statistics.median(onnx) * 1e-3) / peak, 2)}
            | {"max_abs_diff": difference, "min_cosine": min(cosine, 1.0)}
        )
    return rows


def _rounds(
    folder: Path, threads: int, batches: Sequence[int], wanted: int
) -> tuple[list[dict[Runtime, list[Measured]]], bool]:
    """(The quiet rounds, True); all rounds and False if too few were quiet. Processor time counts in any round."""
    every: list[dict[Runtime, list[Measured]]] = []
    calm: list[dict[Runtime, list[Measured]]] = []
    while len(calm) < wanted and len(every) < PATIENCE * wanted:
        order: tuple[Runtime, ...] = ("torch", "onnx") if len(every) % 2 else ("onnx", "torch")
        every.append({runtime: _alone(folder, runtime, threads, batches) for runtime in order})
        if threads == 1 or all(one.others < QUIET for found in every[-1].values() for one in found):
            calm.append(every[-1])
    return (calm, True) if len(calm) == wanted else (every, False)


def _alone(folder: Path, runtime: Runtime, threads: int, batches: Sequence[int]) -> list[Measured]:
    """Measure the runtime in a process of its own, one figure per batch size."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_measured, folder, runtime, threads, batches).result()


def _measured(folder: Path, runtime: Runtime, threads: int, batches: Sequence[int]) -> list[Measured]:
    encoder = load(folder, runtime, threads)
    found = []
    for batch in batches:
        pixels, before = samples(batch, encoder.card.recipe.size, 1), _busy_s()
        ms = ms_per_image(encoder, pixels, threads)
        busy, own, wall = (after - then for after, then in zip(_busy_s(), before, strict=True))
        found.append(Measured(ms, (busy - own) / wall))
    return found


def ms_per_image(encoder: Encoder, pixels: Pixels, threads: int) -> float:
    """Processor time with one thread, which other work hardly lengthens; wall-clock time with more."""
    clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter
    encoder.encode(pixels)  # warms up
    time.sleep(0.02)  # idle threads of another runtime spin for some milliseconds
    start, images = clock(), 0
    while (taken := clock() - start) < MEASURE_S:
        encoder.encode(pixels)
        images += len(pixels)
    return taken * 1e3 / images


def _busy_s() -> tuple[float, float, float]:
    """Processor seconds of the whole machine and of this process, and wall-clock seconds."""
    jiffies = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]]
    idle = jiffies[3] + jiffies[4]
    return (sum(jiffies[:8]) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def _vectors(folder: Path, runtime: Runtime, threads: int, batch: int) -> Embeddings:
    return load(folder, runtime, threads).encode(samples(batch, read(folder).recipe.size, 1)).embeddings


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


def _verdict(row: Json) -> str:
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    reached = "reached" if row["ratio"]["median"] >= TARGET else "not reached"
    return f"{threads}, batch {row['batch']}: {row['ratio']['median']:.2f} " + (
        f"({reached})" if row["quiet"] else "(busy machine, no verdict)"
    )


def _text(rows: Sequence[Json], build_s: dict[str, float]) -> list[str]:
    head = ["model", "threads", "batch", "rounds", "ONNX, ms", "torch, ms", "torch / ONNX", "roof"]
    lines = [
        [
            row["architecture"], row["threads"], row["batch"], f"{row['rounds']}{'' if row['quiet'] else ' (busy)'}",
            Spread(**row["onnx_ms"]), Spread(**row["torch_ms"]), Spread(**row["ratio"]), f"{row['roof']:.0%}",
            f"{row['min_cosine']:.7f}", f"{row['max_abs_diff']:.1e}",
        ]
        for row in rows
    ]  # fmt: skip
    verdict = "; ".join(_verdict(row) for row in rows if row["architecture"] == "densenet121") or "not measured"
    return [
        "# Encoding on CPU: ONNX Runtime and eager torch",
        "",
        f"Target: ONNX Runtime at least {TARGET:.0f} times eager torch for DenseNet121. {verdict}.",
        "",
        *NOTES,
        "",
        *report.table([*head, "cosine", "difference"], lines),
        "",
        "Making a card (weights, graph, parity check), once: "
        + ", ".join(f"{name} {seconds} s" for name, seconds in build_s.items())
        + ".",
    ]


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
