"""The shipped model against small ImageNet networks, on kinds of images that it was trained on, and on others.

Protocol: `radiology_16class`, gallery = its train split, queries = its test split, mAP over the whole gallery by
cosine, for codes by the Hamming distance with ties in expectation. Six classes are MedNIST's: the model was trained
on all images of their gallery, and saw none of their queries, nor of the queries' blocks of neighbouring slices. Of
the ten others (brain MRI, breast ultrasound, mammography) it saw no real image.

    python -m benchmarks.retrieval.base --model models/similis-base
"""

import argparse
import csv
import hashlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import RESULTS, Json, facts, write
from benchmarks.retrieval.base_tables import tables
from benchmarks.retrieval.scratch import HALF, converted, network
from shared.datasets import development
from shared.datasets.collection import Collection
from shared.encoder import runtime
from shared.encoder.base import Encoder
from shared.encoder.cards import GRAPH
from shared.encoder.derive import with_graph
from shared.encoder.ood import Calibration, calibrate, data_digest
from shared.encoder.samples import samples
from shared.imaging.recipe import Recipe
from shared.metrics.baselines import random_figures
from shared.metrics.bootstrap import compare, intervals
from shared.metrics.hashing import unique_codes
from shared.metrics.ranking import Metric, Side
from shared.metrics.retrieval import PerQuery, measure
from shared.training.blend import Blend

OUT = RESULTS / "retrieval"
SEEN = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
FIGURES = ("mAP", "P@10")
#: name, architecture, weights file of the development data, mean and deviation (None: ImageNet's)
RIVALS = (
    ("SqueezeNet, ImageNet", "squeezenet1_0", "weights/squeezenet1_0_imagenet_fp16.pth", None),
    ("MobileNetV2, ImageNet", "mobilenet_v2", "weights/mobilenet_v2_imagenet_fp16.pth", HALF),
)
#: by DICOM modality, the classes on which its threshold is calibrated
MODALITIES = {
    "CT": ("radiology_mednist/AbdomenCT", "radiology_mednist/ChestCT", "radiology_mednist/HeadCT"),
    "MR": ("radiology_mednist/BreastMRI",),
    "DX": ("radiology_mednist/CXR", "radiology_mednist/Hand", "cxr/normal", "cxr/pneumonia"),
    "CR": ("radiology_mednist/CXR", "radiology_mednist/Hand", "cxr/normal", "cxr/pneumonia"),
}


def main() -> None:
    asked = _options()
    about = facts("retrieval.base", {"bootstrap": 0})
    base = loaded(asked.model, asked.scratch)
    encoders = {"similis-base": base} | {
        name: _rival(architecture, weights, half, asked) for name, architecture, weights, half in RIVALS
    }
    found = _spaces(encoders, asked)
    rows = list(_rows(found))
    foreign = list(_foreign(base, asked))
    data: Json = {
        "fingerprint": base.card.fingerprint, "rows": rows, "differences": list(_differences(found)),
        "per_class": _per_class(found), "leaks": leaks(asked.data), "ood": foreign,
        "unique_codes": found["similis-base", "hamming"][1], "speed": speed(asked.model, asked.scratch),
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "base.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    write("base", about, data, tables(__doc__ or "", data), asked.out)


def loaded(folder: Path, scratch: Path) -> Encoder:
    """The model on ONNX Runtime; if it has no graph, one is made in the scratch folder."""
    if not (folder / GRAPH).exists():
        beside = scratch / "graphs" / hashlib.sha256((folder / "card.json").read_bytes()).hexdigest()[:12]
        if not beside.exists():
            with_graph(beside, folder)
        folder = beside
    return runtime.load(folder)


def speed(model: Path, scratch: Path, rounds: int = 15) -> list[Json]:
    """Milliseconds of processor time an image takes on one thread, ONNX Runtime and eager torch in turn."""
    runtimes: dict[str, Encoder] = {"onnx": loaded(model, scratch), "torch": runtime.load(model, "torch", 1)}
    side = runtimes["onnx"].card.recipe.size
    rows: list[Json] = []
    for batch in (1, runtime.BATCH):
        frames = samples(batch, side, 0)
        took: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(rounds + 1):
            for name, encoder in runtimes.items():
                began = time.process_time()
                encoder.encode(frames)
                took[name].append((time.process_time() - began) * 1000 / batch)
        medians = {f"{name}_ms": round(statistics.median(values[1:]), 2) for name, values in took.items()}
        rows.append({"batch": batch, **medians, "ratio": round(medians["torch_ms"] / medians["onnx_ms"], 2)})
    return rows


def calibrations(encoder: Encoder, data: Path) -> dict[str, Calibration]:
    """By modality, calibrated on the validation parts of the training data."""
    held = Blend(side=encoder.card.recipe.size, drawn=False).load(data).part("val")
    scores = encoded(encoder, held.images)[2]
    names = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in held.images])
    of_class = np.array(held.classes)[held.labels]
    found = {}
    for modality, classes in MODALITIES.items():
        rows = np.isin(of_class, classes)
        found[modality] = calibrate(scores[rows], data_digest(names[rows]))
    return found


def leaks(data: Path) -> Json:
    """How many queries and gallery images of the 16 classes are byte for byte in MedNIST's training part."""
    known = development.load("radiology_mednist", data).part("train")
    trained = {image.tobytes() for image in known.images}
    asked = development.load("radiology_16class", data)
    shared = np.array([image.tobytes() in trained for image in asked.images])
    test = asked.split == "test"
    return {"queries": int(shared[test].sum()), "gallery": int(shared[~test].sum())}


def encoded(
    encoder: Encoder, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.float32]]:
    """Embeddings, codes (None if the model has none) and OOD scores (empty if it has none)."""
    parts = [encoder.encode(np.divide(images[at : at + 64], 255, dtype=np.float32)) for at in range(0, len(images), 64)]
    codes = [part.codes for part in parts if part.codes is not None]
    scores = [part.ood for part in parts if part.ood is not None]
    return (
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate(codes) if codes else None,
        np.concatenate(scores) if scores else np.empty(0, np.float32),
    )


Found = Mapping[tuple[str, str], tuple[PerQuery, int, Collection]]


def _spaces(encoders: Mapping[str, Encoder], asked: argparse.Namespace) -> Found:
    """By model and distance: figures per query, number of distinct codes, and the queries."""
    found: dict[tuple[str, str], tuple[PerQuery, int, Collection]] = {}
    for name, encoder in encoders.items():
        data = development.load("radiology_16class", asked.data, encoder.card.recipe.size)
        embeddings, codes, _ = encoded(encoder, data.images)
        print(f"{name}: {len(data)} images encoded", flush=True)
        spaces: list[tuple[Metric, NDArray[Any] | None]] = [("cosine", embeddings), ("hamming", codes)]
        test = data.split == "test"
        for metric, vectors in spaces:
            if vectors is None:
                continue
            queries, gallery = (_side(data, vectors, rows) for rows in (test, ~test))
            unique = unique_codes(vectors) if metric == "hamming" else 0
            found[name, metric] = (measure(queries, gallery, metric=metric, ks=(10,)), unique, data.where(test))
            found.setdefault(("chance", "-"), (random_figures(queries, gallery, ks=(10,)), 0, data.where(test)))
    return found


def _side(data: Collection, vectors: NDArray[Any], rows: NDArray[np.bool_]) -> Side:
    return Side(vectors=vectors[rows], labels=data.labels[rows], clusters=data.groups[rows])


def _kinds(queries: Collection) -> dict[str, NDArray[np.bool_]]:
    seen = np.isin(np.array(queries.classes)[queries.labels], SEEN)
    return {"seen in training (6)": seen, "unseen (10)": ~seen}


def _rows(found: Found) -> Iterator[Json]:
    for (name, metric), (figures, _, queries) in found.items():
        for kind, rows in _kinds(queries).items():
            values = {figure: figures.values[figure][rows] for figure in FIGURES}
            micro = intervals(values, queries.groups[rows])
            macro = intervals(values, queries.groups[rows], labels=queries.labels[rows])
            for figure in FIGURES:
                yield {
                    "model": name, "distance": metric, "classes": kind, "figure": figure, "queries": int(rows.sum()),
                    **{
                        f"{mean}{end}": round(getattr(one[figure], end.strip("_") or "mean"), 4)
                        for mean, one in (("micro", micro), ("macro", macro)) for end in ("", "_low", "_high")
                    },
                }  # fmt: skip


def _differences(found: Found) -> Iterator[Json]:
    """similis-base minus each rival, paired over groups."""
    ours, _, queries = found["similis-base", "cosine"]
    for kind, rows in _kinds(queries).items():
        for name, *_ in RIVALS:
            theirs = found[name, "cosine"][0]
            for mean, labels in (("micro", None), ("macro", queries.labels[rows])):
                one, two = ours.values["mAP"][rows], theirs.values["mAP"][rows]
                result = compare(one, two, queries.groups[rows], labels=labels)
                yield {
                    "rival": name, "classes": kind, "mean": mean, "difference": round(result.difference.mean, 4),
                    "low": round(result.difference.low, 4), "high": round(result.difference.high, 4),
                    "p": round(result.p, 4),
                }  # fmt: skip


def _per_class(found: Found) -> Json:
    """The mAP of each class, by model and distance."""
    return {
        f"{name}, {metric}": {
            one: round(float(figures.values["mAP"][queries.labels == label].mean()), 4)
            for label, one in enumerate(queries.classes)
        }
        for (name, metric), (figures, _, queries) in found.items()
    }


def _foreign(encoder: Encoder, asked: argparse.Namespace) -> Iterator[Json]:
    """The share above each modality's threshold: of the test images of that modality, and of each kind of outlier."""
    side = encoder.card.recipe.size
    held = Blend(side=side, drawn=False).load(asked.data)
    names = np.array(held.classes)[held.labels]
    odd = development.load("ood", asked.data, side)
    scores = {
        True: encoded(encoder, held.where(held.split == "test").images)[2],
        False: encoded(encoder, odd.images)[2],
    }
    own = names[held.split == "test"]
    for modality, calibration in calibrations(encoder, asked.data).items():
        mine = np.isin(own, MODALITIES[modality])
        kinds = {"known": scores[True][mine]}
        kinds |= {kind: scores[False][odd.labels == label] for label, kind in enumerate(odd.classes)}
        for kind, values in kinds.items():
            above = float(calibration.exceeded(values).mean())
            yield {"modality": modality, "kind": kind, "n": len(values), "above": round(above, 4)}


def _rival(architecture: str, weights: str, half: tuple[float, ...] | None, asked: argparse.Namespace) -> Encoder:
    """The network as the platform loads it, at 224 pixels."""
    weights = converted(weights, asked.data, asked.scratch)
    return runtime.load(network(architecture, architecture, weights, Recipe(pad="square"), asked.scratch, half, half))


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=Path("models/similis-base"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--scratch", type=Path, default=Path(gettempdir()) / "similis-base")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
