"""One network on every installed runtime: speed, and deviation from eager float32.

`python -m benchmarks.ingest.runtimes` measures the shipped model and DenseNet121 (untrained: neither speed nor
agreement depends much on the values) through `Encoder.encode`, in turn, and writes `results/runtimes.md` and `.json`.
OpenVINO is measured if it is installed; it is no dependency of Similis.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.ingest.encoding import ms_per_image
from benchmarks.report import Json, Spread
from shared.encoder.build import build
from shared.encoder.cards import GRAPH, WEIGHTS, Card, read
from shared.encoder.derive import with_graph
from shared.encoder.export import agreement
from shared.encoder.kinds import load_network
from shared.encoder.network import named
from shared.encoder.runtime import Forward, Loaded, Raw, onnx_forward
from shared.encoder.samples import samples
from shared.types import Pixels

SHIPPED = Path(__file__).parents[2] / "models" / "similis-base"
BASE = "torch, eager"  #: the reference for speed and agreement
FRAMES = 8  #: frames whose embeddings are compared


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    about = report.facts("ingest.runtimes", {"weights": 0, "frames": 1})
    about["versions"] |= {"torch": torch.__version__}
    with tempfile.TemporaryDirectory(prefix="similis-runtimes-", dir=options.scratch) as scratch:
        rows = [row for name in options.models for row in measure(_ready(Path(scratch), name), name, options)]
    report.write("runtimes", about, {"rows": rows, "rounds": options.rounds}, _text(rows, options), options.out)


def _ready(scratch: Path, name: str) -> Path:
    """A folder of the model with an ONNX graph: an architecture is built, an existing folder is copied."""
    folder = scratch / Path(name).name
    if Path(name).is_dir():
        with_graph(folder, Path(name))
    else:
        build(folder, folder.name, name, "random:0")
    return folder


def measure(folder: Path, name: str, options: argparse.Namespace) -> list[Json]:
    """One row per runtime and batch size; each round runs all runtimes in turn, in alternating order."""
    card = read(folder)
    torch.set_num_threads(options.threads)
    encoders = {runtime: Loaded(card, forward, runtime) for runtime, forward in forwards(folder, card, options.threads)}
    frames = samples(FRAMES, card.recipe.size, 1)
    wanted = encoders[BASE].encode(frames).embeddings
    rows = []
    for batch in options.batches:
        ms: dict[str, list[float]] = {runtime: [] for runtime in encoders}
        for number in range(options.rounds):
            for runtime in list(encoders)[:: 1 if number % 2 else -1]:
                ms[runtime].append(ms_per_image(encoders[runtime], frames[:batch], options.threads))
        for runtime, encoder in encoders.items():
            difference, cosine = agreement(wanted, encoder.encode(frames).embeddings)
            ratio = Spread.of((slow / fast for slow, fast in zip(ms[BASE], ms[runtime], strict=True)), 2)
            rows.append(
                {"model": Path(name).name, "runtime": runtime, "threads": options.threads, "batch": batch}
                | {"ms": asdict(Spread.of(ms[runtime], 2)), "times_eager": asdict(ratio)}
                | {"cosine_min": min(cosine, 1.0), "difference_max": difference}
            )
    return rows


def forwards(folder: Path, card: Card, threads: int) -> Iterator[tuple[str, Forward]]:
    """The same network on every available runtime."""
    yield BASE, _by_torch(load_network(card, folder / WEIGHTS))
    yield "torch, channels last", _by_torch(_channels_last(load_network(card, folder / WEIGHTS)))
    yield "torch, bfloat16", _by_torch(load_network(card, folder / WEIGHTS), bfloat16=True)
    yield (
        "torch, channels last, bfloat16",
        _by_torch(_channels_last(load_network(card, folder / WEIGHTS)), bfloat16=True),
    )
    yield "ONNX Runtime", onnx_forward(folder / GRAPH, threads)
    if importlib.util.find_spec("openvino"):
        yield "OpenVINO, float32", _by_openvino(folder / GRAPH, threads, float32=True)
        yield "OpenVINO, own choice", _by_openvino(folder / GRAPH, threads)  # bfloat16 where the processor has it


def _channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its weights, and so its activations, in channels-last layout."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _by_torch(network: torch.nn.Module, *, bfloat16: bool = False) -> Forward:
    def forward(batch: Pixels) -> Raw:
        casting = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
        with torch.inference_mode(), casting:
            found = named(network(torch.from_numpy(batch)))
        return {name: value.float().numpy() for name, value in found.items()}

    return forward


def _by_openvino(graph: Path, threads: int, *, float32: bool = False) -> Forward:
    openvino: Any = importlib.import_module("openvino")
    options = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": "f32"} if float32 else {})
    compiled = openvino.compile_model(graph, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def forward(batch: Pixels) -> Raw:
        answers = compiled([batch])
        return {name: answers[number] for number, name in enumerate(names)}

    return forward


def _text(rows: Sequence[Json], options: argparse.Namespace) -> list[str]:
    head = ["model", "runtime", "batch", "ms per image", "times eager", "cosine", "difference"]
    lines = [
        [
            row["model"], row["runtime"], row["batch"], Spread(**row["ms"]), Spread(**row["times_eager"]),
            f"{row['cosine_min']:.7f}", f"{row['difference_max']:.1e}",
        ]
        for row in rows
    ]  # fmt: skip
    missing = "" if importlib.util.find_spec("openvino") else " OpenVINO is not installed here."
    return [
        "# Runtimes of the forward pass",
        "",
        f"Through `Encoder.encode`, {options.threads} thread(s), median (lowest to highest) of {options.rounds} rounds",
        "that take all runtimes in turn; processor time with one thread, the clock with more. Times eager: the speed",
        f"as a multiple of eager float32 torch, round by round. Cosine and difference: the worst of {FRAMES} frames",
        f"against eager float32.{missing}",
        "",
        *report.table(head, lines),
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest.runtimes", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[str(SHIPPED), "densenet121"], help="folders, or architectures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
