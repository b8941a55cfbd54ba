"""Method 2: the gain of fine-tuning, metric learning, test-time views and ensembles (arXiv 2508.04790).

`python -m benchmarks.retrieval.finetune` trains MobileNetV2 and SqueezeNet from ImageNet weights on the training
split of `radiology_16class`, and measures every system on its test split: an ablation that the paper lacks. Models
and vectors are kept in the scratch folder, so a stopped run resumes, and a longer one extends it. `--profile full`
adds DenseNet121 and ResNet50, with five seeds and twenty epochs: a job for a GPU. Their weights come from
torchvision's site.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import RESULTS, facts, write
from benchmarks.retrieval.gains import Member, System, lines_of, tables
from benchmarks.retrieval.options import parser
from benchmarks.retrieval.scratch import HALF, converted, digest, keep, keep_lines, network
from shared.datasets.collection import Collection
from shared.datasets.development import load
from shared.encoder.backbones import PAPER_WEIGHTS
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD
from shared.encoder.runtime import load as load_encoder
from shared.encoder.tta import VIEWS, Views
from shared.imaging.recipe import Recipe
from shared.training.cli import load as experiment_of
from shared.training.data import Named
from shared.training.experiment import Experiment
from shared.training.train import train

OUT = RESULTS / "retrieval" / "finetune"
SET, SIDE = "radiology_16class", 128
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Net:
    architecture: str
    weights: str  #: a file of the development data, or torchvision:NAME
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    folded: bool = False  #: batch normalisation is folded into the convolutions, so it is frozen in training


NETS: Mapping[str, Net] = {
    "squeezenet": Net("squeezenet1_0", "squeezenet1_0_imagenet_fp16.pth"),
    "mobilenet": Net("mobilenet_v2", "mobilenet_v2_imagenet_fp16.pth", HALF, HALF, folded=True),
    "resnet50": Net("resnet50", PAPER_WEIGHTS["resnet50"]),
    "densenet121": Net("densenet121", PAPER_WEIGHTS["densenet121"]),
}
SMALL = ("squeezenet", "mobilenet")
CONFIGS = {"advanced": "advanced_ft", "metric": "metric_learning"}


@dataclass(frozen=True, slots=True)
class Profile:
    seeds: tuple[int, ...]
    epochs: int
    nets: tuple[str, ...]  #: ensembles use the last two
    views: tuple[str, ...] = ("frozen", "advanced", "metric")  #: the trainings that are also measured over five views


PROFILES: Mapping[str, Profile] = {
    "quick": Profile((0, 1, 2), 3, SMALL),
    "full": Profile((0, 1, 2, 3, 4), 20, tuple(NETS)),
}


def main() -> None:
    own = parser(__doc__, OUT, "similis-finetune")
    own.add_argument("--ready", action="store_true", help="train nothing: measure the models that are there")
    asked = own.parse_args()
    profile = PROFILES[asked.profile]
    seeds = {f"training {n}": seed for n, seed in enumerate(profile.seeds, 1)}
    about = facts("retrieval.finetune", seeds | {"bootstrap": 0})
    torch.set_num_threads(asked.threads)
    data = load(SET, asked.data, SIDE)
    members = list(_members(profile, data, asked))
    lines = [about | {"profile": asked.profile} | line for line in lines_of(systems(members, profile.nets), data)]
    asked.out.mkdir(parents=True, exist_ok=True)
    keep_lines(asked.out / f"{asked.profile}.jsonl", lines)
    costs = {f"{m.net} {m.training} {m.seed}": m.cost for m in members if m.cost}
    write("tables", about, {"trainings": costs}, tables(lines, costs, profile.epochs, asked.out), asked.out)


def systems(members: Sequence[Member], nets: Sequence[str] = SMALL) -> list[System]:
    """Each member alone, plain and over its views, and for each seed the paper's ensembles of its members."""
    found = [System.of([m], "unit", views=views) for m in members for views in (False, True) if m.seen or not views]
    frozen = [m for m in members if m.training == "frozen"]
    for seed in sorted({m.seed for m in members if m.training != "frozen"}):
        mine = {(m.net, m.training): m for m in [*frozen, *(m for m in members if m.seed == seed)]}
        for name, parts in _ensembles(nets).items():
            chosen = [mine[part] for part in parts if part in mine]
            if len(chosen) == len(parts):
                found += [System.of(chosen, join, views=False, name=name) for join in ("unit", "raw", "pca")]
                found += [System.of(chosen, "unit", views=True, name=name)] if all(m.seen for m in chosen) else []
    return found


def _ensembles(nets: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The paper's ensembles; the last network replaces DenseNet121, the one before it ResNet50."""
    best, other = nets[-1], nets[-2]
    return {
        "best_two_advanced": [(best, "advanced"), (other, "advanced")],
        "best_two_metric": [(best, "metric"), (other, "metric")],
        "mixed_best": [(best, "advanced"), (best, "metric"), (best, "frozen")],
        "mega_all": [(net, how) for how in ("advanced", "metric", "frozen") for net in (best, other)],
    }


def _members(profile: Profile, data: Collection, asked: argparse.Namespace) -> Iterator[Member]:
    """The networks, frozen and trained, with the vectors of every image; frozen ones first."""
    nets = {name: NETS[name] for name in profile.nets}
    for name, net in nets.items():
        weights, recipe = _weights(net, asked), Recipe(size=SIDE, pad="square")
        folder = network(f"{name}-frozen", net.architecture, weights, recipe, asked.scratch, net.mean, net.std)
        yield Member(name, "frozen", 0, _encoded(folder, data, asked, "frozen" in profile.views), data, {})
    for seed in profile.seeds:
        for name, net in nets.items():
            for how in CONFIGS:
                one = experiment(name, net, how, _weights(net, asked), profile.epochs, seed)
                out = asked.scratch / f"{one.name}-{one.epochs}-{seed}-{digest(one.digest, data)}"
                if asked.ready and not (out / "metrics.json").exists():
                    continue
                cost = _trained(one, out, asked)
                yield Member(name, how, seed, _encoded(out / "model", data, asked, how in profile.views), data, cost)


def experiment(name: str, net: Net, how: str, weights: str, epochs: int, seed: int) -> Experiment:
    """The recommended preset with the network's own weights and the given number of epochs."""
    one = experiment_of(f"{CONFIGS[how]}:{net.architecture}", "recommended")
    method: Any = one.method
    method = replace(method, weights=weights, freeze_norm=net.folded, mean=net.mean, std=net.std)
    # images have 64 pixels, so storing them larger than the input would not sharpen crops
    data = Named(name=SET, side=SIDE)
    return replace(one, name=f"{name}-{how}", data=data, side=SIDE, method=method, epochs=epochs, seed=seed)


def _trained(one: Experiment, out: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the training unless its metrics exist; return its cost and best score."""
    if not (out / "metrics.json").exists():
        began = time.process_time()
        train(one, asked.data, out, threads=asked.threads)
        print(f"{out.name}: {time.process_time() - began:.0f} s of processor time", flush=True)
    said = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    keys = ("best_epoch", "best_score", "seconds", "digest")
    return {key: said[key] for key in keys} | {"epochs": len(said["history"])}


def _weights(net: Net, asked: argparse.Namespace) -> str:
    return converted(net.weights, asked.data / "weights", asked.scratch)


def _encoded(model: Path, data: Collection, asked: argparse.Namespace, seen: bool) -> Vectors:
    """(views, n, dim): vectors of every image in one view, or in five if `seen`; cached beside the model."""
    kept = model.with_name(f"{model.name}-{VIEWS if seen else 1}-{digest(data)}.npz")
    if not kept.exists():
        encoder = load_encoder(model, "onnx", asked.threads)
        views = Views(SIDE) if seen else torch.nn.Identity()
        made = []
        for start in range(0, len(data), 16):
            pixels = torch.from_numpy(data.images[start : start + 16]).float() / 255
            vectors = encoder.encode(views(pixels).numpy()).embeddings
            made.append(vectors.reshape(-1, len(pixels), vectors.shape[1]))
        keep(kept, vectors=np.concatenate(made, axis=1))
    with np.load(kept) as held:
        found: Vectors = held["vectors"]
    return found


if __name__ == "__main__":
    main()
