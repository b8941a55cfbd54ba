"""Method 1: frozen features and exact search (arXiv 2411.01473), with the weights available.

`python -m benchmarks.retrieval.frozen` encodes each set with each network, measures under every protocol with L2 and
cosine, times FAISS's flat indexes, and writes JSON lines first, then tables and plots. Encoded sets are kept in
the scratch folder and sets with figures are skipped, so a stopped run resumes.

ImageNet weights are available for SqueezeNet and MobileNetV2; DenseNet121, ResNet50, VGG16 and EfficientNet-B0 are
the papers' networks with random weights: a texture baseline, not a reproduction of their figures. `--profile full`
uses the papers' weights from torchvision's site, and writes to a folder `full`. `--search` only repeats the search
times, on random vectors, in case the machine was busy when the sets were measured.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.report import RESULTS, facts, write
from benchmarks.retrieval.flat import flat_times, rounded
from benchmarks.retrieval.options import parser
from benchmarks.retrieval.scratch import HALF, converted, digest, keep, keep_lines, network
from benchmarks.retrieval.tables import figure_tables, notes, timing_table
from shared.datasets.collection import Collection
from shared.datasets.development import load
from shared.datasets.splits import hold_out
from shared.encoder.backbones import PAPER_WEIGHTS
from shared.encoder.runtime import load as load_encoder
from shared.imaging.recipe import Recipe
from shared.metrics.retrieval import KS
from shared.training.evaluate import Plan, Report, evaluate
from shared.training.figures import figures, votes
from shared.training.pictures import maps
from shared.training.protocols import PROTOCOLS, Subjects
from shared.training.vectors import Vectors, encode

OUT = RESULTS / "retrieval" / "frozen"
RESAMPLES = 1000
SEARCH = "search.jsonl"  #: repeated search times, beside the sets' own files
KEPT = {"mAP", "MRR", "P_adj@10", "hit@10", "graded_nDCG@10", "grade_difference@10"} | {
    f"{name}@{k}" for name in ("P", "R", "nDCG", "nDCG_retrieved_ideal") for k in KS
}


@dataclass(frozen=True, slots=True)
class Net:
    name: str
    architecture: str
    weights: str  #: a file of the development data, torchvision:NAME, or random:SEED
    side: int
    mean: tuple[float, ...] | None = None  #: None: ImageNet's
    std: tuple[float, ...] | None = None
    share: float = 1.0  #: of the groups in a large set
    large_side: int | None = None  #: pixels in a large set, if different


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    grades: tuple[int, ...] | None = None  #: ordinal value of each class
    large: bool = False


TRAINED = (
    Net("squeezenet", "squeezenet1_0", "weights/squeezenet1_0_imagenet_fp16.pth", 224),
    Net("mobilenet", "mobilenet_v2", "weights/mobilenet_v2_imagenet_fp16.pth", 224, HALF, HALF),
)
NETS = (
    *TRAINED,
    # random networks have no training size; the 16 classes are stored at 64 pixels and gain nothing from more
    Net("densenet121-random", "densenet121", "random:0", 112, large_side=64),
    Net("resnet50-random", "resnet50", "random:0", 112, large_side=64),
    Net("efficientnet-random", "efficientnet_b0", "random:0", 112, large_side=64),
    # the slowest, 283 ms an image, and its graph accepts no smaller side: only a few patients
    Net("vgg16-random", "vgg16", "random:0", 224, share=0.04),
)
PROFILES: Mapping[str, tuple[Net, ...]] = {
    "quick": NETS,
    "full": (*TRAINED, *(Net(name, name, weights, 224) for name, weights in PAPER_WEIGHTS.items())),
}
#: By proxy, MIAS's normal, benign and malignant count as BI-RADS 1, 2 and 5; no radiologist graded (SOURCE.md).
SETS = (
    Set("mias", (1, 2, 5)),
    Set("radiology_16class", large=True),
    Set("mias-density", (1, 2, 3)),
    Set("busi", (1, 2, 5)),
    Set("mias-lesions", (2, 5)),
    Set("radiology_mednist", large=True),
)


def main() -> None:
    asked = options(None)
    nets = [net for net in PROFILES[asked.profile] if asked.nets is None or net.name in asked.nets]
    seeds = {"first of the five splits of patient": 0, "bootstrap": 0}
    about = facts("retrieval.frozen", seeds | ({"random weights": 0} if asked.profile == "quick" else {}))
    asked.out.mkdir(parents=True, exist_ok=True)
    threadpool_limits(asked.threads)  # for both BLAS and FAISS
    if asked.search:
        _searched(about, asked.out)
    for one in (one for one in SETS if one.name in asked.sets and not asked.search):
        raw = asked.out / f"{one.name}.jsonl"
        if raw.exists():
            print(f"{one.name}: {raw} is there")
            continue
        encoded = {net.name: _encoded(net, one, asked) for net in nets}
        lines = list(_measured(one, encoded))
        keep_lines(raw, [{"kind": "about"} | about, *lines])
        _draw(one, encoded, asked)
    _tables(about, asked.profile, asked.out)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = parser(__doc__, OUT, "similis-frozen")
    own.add_argument("--search", action="store_true", help="time the searches of what was measured, and no more")
    own.add_argument("--nets", nargs="*", help="of the profile; all by default")
    own.add_argument("--sets", nargs="*", default=[one.name for one in SETS])
    asked = own.parse_args(arguments)
    if asked.profile != "quick":  # the figures of `quick` answer the same questions with other weights
        asked.out = asked.out / asked.profile
    return asked


@dataclass(frozen=True, slots=True)
class Encoded:
    net: Net
    data: Collection
    rows: NDArray[np.int64]  #: row numbers in the whole set
    vectors: NDArray[np.float32]
    encode_ms: float  #: per image


def _encoded(net: Net, one: Set, asked: argparse.Namespace) -> Encoded:
    """The set's images encoded by the network, with the time per image; cached in the scratch folder."""
    side = (net.large_side if one.large else None) or net.side
    data = load(one.name, asked.data, side)
    rows = _chosen(net, one, data)
    data = data.where(rows)
    weights, recipe = converted(net.weights, asked.data, asked.scratch), Recipe(size=side, pad="square")
    model = network(net.name, net.architecture, weights, recipe, asked.scratch, net.mean, net.std)
    kept = asked.scratch / "features" / f"{model.name}-{one.name}-{digest(data)}.npz"
    if not kept.exists():
        encoder = load_encoder(model, "onnx", asked.threads)
        began = time.process_time()
        vectors = encode(encoder, data.images).embeddings
        took = (time.process_time() - began) * 1000 / len(data)
        keep(kept, vectors=vectors, encode_ms=np.array(took))
        print(f"{one.name}, {net.name}: {len(data)} images, {took:.1f} ms of processor time each", flush=True)
    with np.load(kept) as held:
        return Encoded(net, data, rows, held["vectors"], float(held["encode_ms"]))


def _chosen(net: Net, one: Set, data: Collection) -> NDArray[np.int64]:
    """All rows, or, for a share of a large set, whole groups drawn equally from each part of its split."""
    if not one.large or net.share == 1:
        return np.arange(len(data))
    taken = np.zeros(len(data), np.bool_)
    for part in np.unique(data.split):
        taken |= hold_out(data.split == part, data.labels, data.groups, net.share)
    return np.flatnonzero(taken)


def _measured(one: Set, encoded: dict[str, Encoded]) -> Iterator[dict[str, Any]]:
    """One line per network, distance and protocol, and one per timing."""
    for rows in {tuple(e.rows) for e in encoded.values()}:
        mine = [e for e in encoded.values() if tuple(e.rows) == rows]
        subjects = Subjects.of(mine[0].data, None if one.grades is None else np.array(one.grades))
        spaces = {
            f"{e.net.name} {metric}": space
            for e in mine
            for metric, space in Vectors(e.vectors, None).spaces(("cosine", "l2")).items()
        }
        report = evaluate(subjects, spaces, Plan(protocols=tuple(PROTOCOLS), resamples=RESAMPLES))
        print(f"{one.name}: {len(subjects)} images, {len(spaces)} spaces measured", flush=True)
        yield from _lines(one, report)
    for e in encoded.values():
        yield {"kind": "timing", "set": one.name, "net": e.net.name, **_timed(e)}


def _lines(one: Set, report: Report) -> Iterator[dict[str, Any]]:
    of_run: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in figures(report):
        if row.name not in (KEPT if row.part == "all" else {"P@10", "mAP"}):
            continue
        net, _, metric = row.space.rpartition(" ")
        line = of_run.setdefault(
            (row.space, row.protocol, row.part),
            {
                "kind": "figures", "set": one.name, "net": net, "distance": metric, "protocol": row.protocol,
                "leaks": row.leaks, "part": row.part, "images": len(report.subjects), "queries": row.queries,
                "patients": row.patients, "unanswerable": row.unanswerable, "seeds": row.seeds, "figures": {},
            },
        )  # fmt: skip
        line["figures"][row.name] = {
            "micro": _three(row.micro), "macro": _three(row.macro), "random": [row.random_micro, row.random_macro],
            "majority": [row.majority_micro, row.majority_macro], "sd": [row.sd_micro, row.sd_macro],
            "short": row.short,
        }  # fmt: skip
    for vote in votes(report):
        line = of_run[vote.space, vote.protocol, "all"]
        line.setdefault("votes", {})[vote.k] = {
            "balanced_accuracy": _three(vote.balanced_accuracy), "macro_f1": vote.macro_f1,
            "quadratic_kappa": vote.quadratic_kappa, "balanced_accuracy_456": vote.balanced_accuracy_456,
        }  # fmt: skip
    yield from map(rounded, of_run.values())


def _three(interval: Any) -> list[float]:  # noqa: ANN401
    return [interval.mean, interval.low, interval.high]


def _timed(e: Encoded) -> dict[str, Any]:
    return {
        "index size": len(e.vectors),
        "dim": e.vectors.shape[1],
        "encode_ms": round(e.encode_ms, 2),
        **flat_times(e.vectors),
    }


def _searched(about: dict[str, Any], out: Path) -> None:
    """Repeat the search times on random vectors: a flat search takes as long for any vectors of that number and length.

    They are written to a separate file, because machine and time differ from those of the other figures.
    """
    told: list[dict[str, Any]] = [{"kind": "about"} | about]
    for line in _lines_of(out):
        if line["kind"] == "timing":
            shape = (line["index size"], line["dim"])
            key = {"kind": "search"} | {name: line[name] for name in ("set", "net", "index size", "dim")}
            told.append(key | flat_times(np.random.default_rng(0).standard_normal(shape, np.float32)))
    keep_lines(out / SEARCH, told)


def _lines_of(out: Path) -> list[dict[str, Any]]:
    """The lines of all sets, without the repeated search times."""
    paths = sorted(path for path in out.glob("*.jsonl") if path.name != SEARCH)
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def _draw(one: Set, encoded: dict[str, Encoded], asked: argparse.Namespace) -> None:
    e = next(iter(encoded.values()))
    folder = asked.out / one.name
    folder.mkdir(exist_ok=True)
    said = maps(Subjects.of(e.data), e.vectors, folder)
    (folder / "pictures.json").write_text(json.dumps({"net": e.net.name} | said) + "\n", encoding="utf-8")


def _tables(about: dict[str, Any], profile: str, out: Path) -> None:
    lines, again = _lines_of(out), out / SEARCH
    searched = [json.loads(line) for line in again.read_text().splitlines()] if again.exists() else []
    drawn = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/pictures.json"))}
    body = ["# Frozen features and exact search", "", *notes(profile), "", *figure_tables(lines, out)]
    body += timing_table(lines, searched)
    for name, said in drawn.items():
        body += ["", f"## Pictures: {name}, {said['net']}", ""]
        body += [f"![{kind}]({name}/{kind}.png) {said[kind]}" for kind in ("pca", "tsne")]
    write("tables", about, {"lines": len(lines)}, body, out)


if __name__ == "__main__":
    main()
