"""Turns the trained model into the shipped one: half-precision weights, and a card with figures and provenance."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from benchmarks.report import Json
from benchmarks.retrieval.base import OUT, calibrations, loaded
from shared.encoder import cards
from shared.encoder.build import build
from shared.encoder.cards import CARD, WEIGHTS, Card
from shared.errors import Conflict, Invalid

NAME = "similis-base"
LICENCE = "CC BY-SA 4.0 (the weights; MedNIST asks for it); the code is Apache-2.0"
RUN = "runs/similis-base-recommended-0/model"
COMMANDS = (
    "similis train similis_base:trunk",
    "similis train similis_base:decoder",
    f"python -m benchmarks.retrieval.base --model {RUN}",
    f"python -m benchmarks.retrieval.ship --model {RUN} --out NEW_FOLDER",
)
MEDNIST = (
    "MedNIST, train part of a subset: 6,000 images of 64 x 64 (B. J. Erickson, Mayo Clinic; CC BY-SA 4.0; from TCIA, "
    "the RSNA Bone Age Challenge and the NIH Chest X-ray data set)"
)
CHESTS = "PneumoniaMNIST, 1,500 images of 28 x 28 (MedMNIST, Yang et al. 2023; Kermany et al. 2018; CC BY 4.0)"
DRAWN = "drawn by this code: synthetic mammograms, sketches of breast ultrasound and of heads by MR, textures"
SELECTION = (
    "the recipe (descriptors, sketches, losses, spots) was chosen by retrieval within the train split of "
    "radiology_16class, classes that are called unseen included; its test split was asked twice: for an earlier model "
    "without spots, and for this one when its weights were final"
)
THRESHOLDS = (
    "thresholds of CT, MR, DX and CR come from MedNIST and PneumoniaMNIST; other modalities have none until an "
    "archive's own are calibrated"
)
ABOUT: Json = {
    "intended_use": "research use, not for diagnosis; it compares what images look like, not what they mean",
    "data": [MEDNIST, CHESTS, DRAWN],
    "not_trained_on": "MIAS, BUSI, real brain MRI, ImageNet, or weights made from them",
    "selection": SELECTION,
    "recipe": "shared/training/configs/similis_base.py",
    "command": list(COMMANDS),
    "limits": [
        "small images, 112 x 112: calcifications and thin fractures are not seen",
        "no clinical evaluation, no BI-RADS set; CT and MR of few body parts, paediatric chests",
        THRESHOLDS,
    ],
    "licence": LICENCE,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the shipped model.

    Raises: `Invalid` if the figures are of another model; `Conflict` if the folder already holds a card.
    """
    asked = _options(arguments)
    trained = cards.read(asked.model)
    measured = json.loads(asked.figures.read_text(encoding="utf-8"))
    if measured["fingerprint"] != trained.fingerprint:
        raise Invalid("the figures are of another model: measure this one first")
    if (asked.out / CARD).exists():
        raise Conflict("a model is shipped there already")
    card = made(trained, measured, asked)
    print(f"{asked.out}: {card.fingerprint}, {(asked.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")


def made(trained: Card, measured: Json, asked: argparse.Namespace) -> Card:
    """Write card and weights to the folder, beside its README and licence; each site makes the graph itself."""
    figures = [row for row in measured["rows"] if row["model"] == NAME and row["figure"] == "mAP"]
    about = ABOUT | {"figures": {"protocol": measured["command"], "commit": measured["commit"], "mAP": figures}}
    encoder = loaded(asked.model, asked.scratch)
    with TemporaryDirectory(dir=asked.out.parent if asked.out.parent.is_dir() else None) as folder:
        beside = Path(folder) / NAME
        card = build(
            beside, NAME, trained.architecture, str(asked.model / WEIGHTS), trained.recipe, trained.mean, trained.std,
            note=LICENCE, options=trained.options, about=about, calibrations=calibrations(encoder, asked.data),
            half=True, graph=False,
        )  # fmt: skip
        if card.fingerprint != trained.fingerprint:
            raise Invalid("the weights changed on their way")
        asked.out.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CARD):
            (asked.out / name).write_bytes((beside / name).read_bytes())
    return card


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--figures", type=Path, default=OUT / "base.json")
    parser.add_argument("--out", type=Path, default=Path("models") / NAME)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scratch", type=Path, default=Path(gettempdir()) / NAME)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
