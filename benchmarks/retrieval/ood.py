"""What share of foreign images, and of known ones, each OOD score stops.

ACIR's trunk of seed 0 is trained on all modalities of the 16 classes, then its decoder (stage 2). Thresholds come
from the validation part, of all modalities together and of each alone; figures are of the test part, the outliers of
the development data, and, for a single modality, the test images of the others.

    python -m benchmarks.retrieval.ood
"""

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.report import RESULTS, Json, facts, table, write
from benchmarks.retrieval.hashing import COLLECTION, SCRATCH, STORED
from benchmarks.retrieval.options import parser
from benchmarks.retrieval.scratch import digest, keep, keep_lines
from benchmarks.retrieval.trunk import WEIGHTS, Trunk, seen
from shared.datasets import development
from shared.datasets.collection import Collection
from shared.encoder.acir import relative_error, squared_error
from shared.encoder.ood import Mahalanobis, Scores, calibrate, data_digest, knn_distance
from shared.training.acir import rgb
from shared.training.checkpoint import METRICS, MODEL
from shared.training.configs import acir
from shared.training.data import encode
from shared.training.experiment import Optimiser
from shared.training.train import train

#: defined here, because hashing profiles may change and the committed figures are of `quick`
TRUNKS = {"quick": Trunk(widths="s", epochs=10), "full": Trunk(widths="s", epochs=40)}
RATE = 2e-3  #: learning rate of the decoder; higher than the recipe's 3e-4, for few epochs
MULTIPLIERS = (1.0, 2.0, 3.0, 4.0, 5.0)
SCORES = ("relative error", "squared error", "kNN distance", "Mahalanobis")
EVERYTHING = "all modalities"
OUT = RESULTS / "retrieval" / "ood"
INTRODUCTION = """# Out of distribution

Stored score: squared error of the reconstruction over the image's variance + 0.001. Detection: share of a kind above
the threshold; false alarms: share of the test images of the known modality above it. All images pass through 64
pixels, grey. A kind with few images has a coarse share; `n` says how many.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write figures and tables; scores are cached in the scratch folder."""
    chosen = _options(arguments)
    if chosen.tables:
        _again(chosen.out)
        return
    torch.set_num_threads(chosen.threads)
    about = facts("retrieval.ood", {"trunk and decoder": 0})
    trunk = TRUNKS[chosen.profile]
    known = development.load(COLLECTION, chosen.data, STORED)
    foreign = development.load("ood", chosen.data, STORED)
    looked = {one.name: _looked(trunk, one, chosen) for one in (known, foreign)}
    rows = list(_rows(known, foreign, looked))
    chosen.out.mkdir(parents=True, exist_ok=True)
    keep_lines(chosen.out / "runs.jsonl", rows)
    with (chosen.out / "figures.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    write(
        "ood", about, {"trunk": trunk.name, "decoder_epochs": chosen.epochs}, [INTRODUCTION, *_tables(rows)], chosen.out
    )


def _again(out: Path) -> None:
    """Write the tables again from the stored rows and facts."""
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    about = json.loads((out / "ood.json").read_text(encoding="utf-8"))
    write("ood", about, {}, [INTRODUCTION, *_tables(rows)], out)


def _looked(trunk: Trunk, collection: Collection, chosen: argparse.Namespace) -> Mapping[str, NDArray[np.float32]]:
    """Content and both errors of each image, by the network with its trained decoder; errors are NaN for training."""
    stage1 = trunk.folder(chosen.data, chosen.scratch) / MODEL / WEIGHTS
    experiment = acir.decoder(trunk.experiment, stage1, chosen.epochs)
    experiment = replace(experiment, optimiser=Optimiser(rates={"decoder": RATE}))
    out = chosen.scratch / "trunks" / f"{trunk.name}-decoder-{chosen.epochs}-{digest(experiment.digest)}"
    path = chosen.scratch / "features" / f"{out.name}-{collection.name}-{digest(collection)}.npz"
    if not path.exists():
        if not (out / METRICS).exists():
            trunk.trained(chosen.data, chosen.scratch)
            train(experiment, chosen.data, out)
        network = trunk.network(out / MODEL, decoder=True)

        def errors(pixels: Tensor) -> Tensor:
            x = rgb(pixels)
            painted = network.decoder(network.stem(x)[1])  # type: ignore[misc]  # built with a decoder
            return torch.stack([relative_error(x, painted), squared_error(x, painted)], 1)

        asked = collection.split != "train"
        found = np.full((len(collection), 2), np.nan, np.float32)
        found[asked] = encode(errors, collection.where(asked), trunk.experiment.side).numpy()
        keep(path, relative=found[:, 0], squared=found[:, 1])
    return {**np.load(path), "content": seen(trunk, collection, chosen.data, chosen.scratch).embeddings}


def _rows(known: Collection, foreign: Collection, looked: Mapping[str, Mapping[str, Any]]) -> Iterator[Json]:
    """One row per modality, score, rule and kind of image."""
    inside, outside = looked[known.name], looked[foreign.name]
    outliers = np.asarray(foreign.classes)[foreign.labels]
    for modality in (EVERYTHING, *np.unique(known.sources)):
        of = np.isin(known.sources, np.unique(known.sources) if modality == EVERYTHING else [modality])
        fit, held = of & (known.split == "train"), of & (known.split == "val")
        tested = np.where(of, "known", np.char.add("other: ", known.sources))
        for name in SCORES:
            score = _score(name, inside, fit, known.labels)
            own, test = score(inside), known.split == "test"
            found = {str(kind): own[test & (tested == kind)] for kind in dict.fromkeys(["known", *np.unique(tested)])}
            found |= {str(kind): score(outside)[outliers == kind] for kind in np.unique(outliers)}
            digest = data_digest(map(str, np.flatnonzero(held)))
            for rule, threshold in _thresholds(own[held], digest):
                yield from (
                    {
                        "modality": str(modality),
                        "score": name,
                        "rule": rule,
                        "threshold": float(threshold),
                        "calibrated_on": int(held.sum()),
                        "kind": kind,
                        "n": len(values),
                        "above": float((values > threshold).mean()),
                        "auroc": auroc(found["known"], values),
                    }
                    for kind, values in found.items()
                )


def _thresholds(values: Scores, digest: str) -> Iterator[tuple[str, float]]:
    for multiplier in MULTIPLIERS:
        yield f"mean + {multiplier:g} sd", float(values.mean() + multiplier * values.std(ddof=1))
    yield "log", calibrate(values, digest, "log").threshold
    yield "quantile", calibrate(values, digest, "quantile").threshold


def _score(name: str, inside: Mapping[str, Any], fit: NDArray[np.bool_], labels: NDArray[np.int64]) -> Any:  # noqa: ANN401
    """A function from scored images to (n,) scores; features are compared with those of the training part."""
    if name == "relative error":
        return lambda images: images["relative"]
    if name == "squared error":
        return lambda images: images["squared"]
    if name == "kNN distance":
        return lambda images: knn_distance(images["content"], inside["content"][fit])
    mahalanobis = Mahalanobis.fit(inside["content"][fit], labels[fit])
    return lambda images: mahalanobis.scores(images["content"])


def auroc(known: Scores, foreign: Scores) -> float:
    """The probability that a foreign image scores above a known one; a tie counts half."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, foreign, "left") + np.searchsorted(ordered, foreign, "right")
    return float(below.mean() / (2 * len(known)))


def _tables(rows: Sequence[Json]) -> list[str]:
    """Per modality: kinds by score at mean + 3 sd; then by multiplier."""
    body = []
    for modality in dict.fromkeys(row["modality"] for row in rows):
        mine = [row for row in rows if row["modality"] == modality]
        usual = [row for row in mine if row["rule"] == "mean + 3 sd"]
        body += [f"## {modality} (calibrated on {mine[0]['calibrated_on']} images)", ""]
        body += ["Share above mean + 3 sd, and AUROC against the known test images:", "", *_kinds(usual), ""]
        body += ["Relative error, threshold swept:", "", *_sweep(mine), ""]
        body += ["All scores, threshold swept: false alarms / outliers, mean of the kinds / other modalities:", ""]
        body += [*_scores(mine), ""]
    return body


def _kinds(rows: Sequence[Json]) -> list[str]:
    found = {(row["kind"], row["score"]): row for row in rows}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = [
        [
            f"**{kind}** (false alarms)" if kind == "known" else kind,
            found[kind, SCORES[0]]["n"],
            *(f"{found[kind, score]['above']:.2f} / {found[kind, score]['auroc']:.2f}" for score in SCORES),
        ]
        for kind in kinds
    ]
    return table(["kind", "n", *SCORES], lines)


def _sweep(rows: Sequence[Json]) -> list[str]:
    mine = [row for row in rows if row["score"] == SCORES[0]]
    rules = list(dict.fromkeys(row["rule"] for row in mine))
    kinds = dict.fromkeys(row["kind"] for row in mine)
    lines = [[kind, *(f"{row['above']:.2f}" for row in mine if row["kind"] == kind)] for kind in kinds]
    return table(["kind", *rules], lines)


def _scores(rows: Sequence[Json]) -> list[str]:
    """Each score under each rule; other modalities occur only where the modality is a single one."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    lines = []
    for score in SCORES:
        cells = []
        for rule in rules:
            above = {row["kind"]: row["above"] for row in rows if (row["score"], row["rule"]) == (score, rule)}
            others = [share for kind, share in above.items() if kind.startswith("other: ")]
            outliers = [share for kind, share in above.items() if kind != "known" and not kind.startswith("other: ")]
            foreign = [f"{np.mean(shares):.2f}" for shares in (outliers, others) if shares]
            cells.append(" / ".join([f"{above['known']:.3f}", *foreign]))
        lines.append([score, *cells])
    return table(["score", *rules], lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = parser(__doc__, OUT, SCRATCH)
    own.add_argument("--epochs", type=int, default=4, help="of the decoder")
    own.add_argument("--tables", action="store_true", help="write the tables of what was run so far; run nothing")
    return own.parse_args(arguments)


if __name__ == "__main__":
    main()
