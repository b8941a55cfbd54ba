"""What the three gates catch, miss and stop by mistake, by kind of picture, through a model's own folder.

The archive is MIAS mammograms. Half of its women calibrate, the other half shows false alarms; all other pictures do
not belong, and are taken as if somebody had said that they were mammograms: said to be of a modality without a
threshold, none of them would meet gate 3. So the same functions judge here as at intake.
"""

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Json, facts, table, write
from shared.encoder.base import Encoder
from shared.encoder.ood import Calibration, Rule, calibrate, data_digest
from shared.errors import Invalid, Rejected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.sandbox import Sandbox
from shared.pipeline.judge import judge, statistic
from shared.store.calibrations import Threshold

MODALITY = "MG"
RULES: tuple[Rule, ...] = ("mean+3sd", "quantile", "log")
SHIPPED = "card"
SEED, MOST = 0, 200  #: pictures of each kind that are looked at


@dataclass(frozen=True, slots=True)
class Picture:
    """One file; `of` is what calibrates, known pictures that did not, or a kind that does not belong."""

    of: str
    source: Path | bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it: the gate that stopped it before the model, or the model's score."""

    of: str
    gate: str | None
    score: float | None


def pictures(data: Path, most: int = MOST) -> Iterator[Picture]:
    """The archive, and at most so many of each other kind, the same ones every time."""
    with (data / "mammography_mias" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            known = int(row["patient_id"].removeprefix("MIAS")) % 2 == 0
            source = data / "mammography_mias" / row["file"]
            yield Picture("calibrating" if known else "known", source)
    others: dict[str, list[Path | bytes]] = {}
    with (data / "ood" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            kind = f"{row['group']}: {row['kind']}" if row["group"] == "synthetic" else row["group"]
            others.setdefault(kind, []).append(data / "ood" / row["file"])
    others["ultrasound (BUSI)"] = sorted((data / "ultrasound_busi" / "images").iterdir())
    others |= _arrays(data / "radiology_mednist" / "mednist_9k_64.npz", data / "radiology_mednist" / "labels.csv")
    chests = np.load(data / "cxr" / "pneumoniamnist_subset.npz")["test_images"]
    others["chest X-ray (PneumoniaMNIST)"] = [_png(one) for one in chests[:MOST]]
    for kind, sources in others.items():
        chosen = np.random.default_rng(SEED).permutation(len(sources))[:most]
        yield from (Picture(kind, sources[i]) for i in sorted(chosen))


def _arrays(arrays: Path, labels: Path) -> dict[str, list[Path | bytes]]:
    """The test pictures of MedNIST by class, as PNG files in memory."""
    images = np.load(arrays)["test_images"]
    found: dict[str, list[Path | bytes]] = {}
    with labels.open(newline="") as file:
        for row in csv.DictReader(file):
            kind = f"{row['class_name']} (MedNIST)"
            if row["split"] == "test" and len(found.setdefault(kind, [])) < MOST:
                found[kind].append(_png(images[int(row["index"])]))
    return found


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def look(sandbox: Sandbox, encoder: Encoder, all_of_them: Iterable[Picture]) -> list[Seen]:
    """Each picture through decoder, gates 1 and 2 and the model. Raises: `Invalid` for a model without a score."""
    recipe, seen = encoder.card.recipe, []
    for picture in all_of_them:
        try:
            decoded = sandbox.decode(picture.source, recipe)
        except Rejected as refusal:
            seen.append(Seen(picture.of, refusal.gate.value if refusal.gate else refusal.outcome.value, None))
            continue
        stop = metadata_gate(decoded.header, recipe) or pixel_gate(decoded.stats)
        if stop is not None:
            seen.append(Seen(picture.of, str(stop.gate), None))
            continue
        ood = encoder.encode(decoded.pixels).ood
        if ood is None:
            raise Invalid("this model has no decoder, and so no score: gate 3 lets everything pass")
        seen.append(Seen(picture.of, None, statistic([float(score) for score in ood])))
    return seen


def thresholds(seen: Sequence[Seen], brought: Mapping[str, Calibration]) -> dict[str, Calibration]:
    """What the card brings for the modality, and each rule on the calibrating pictures."""
    scores = [one.score for one in seen if one.of == "calibrating" and one.score is not None]
    own = {rule: calibrate(scores, data_digest(map(str, range(len(scores)))), rule) for rule in RULES}
    return own | ({SHIPPED: brought[MODALITY]} if MODALITY in brought else {})


def count(seen: Sequence[Seen], threshold: float) -> dict[str, Counter[str]]:
    """By kind: how many each gate stopped, and how many passed."""
    found: dict[str, Counter[str]] = {}
    for one in seen:
        own = judge(one.score, Threshold(0, threshold))
        found.setdefault(one.of, Counter())[one.gate or ("features" if own.stops else "passed")] += 1
    return found


def report(encoder: Encoder, seen: Sequence[Seen], made: Mapping[str, Calibration]) -> tuple[list[str], Json]:
    """Lines for people; figures by rule and kind."""
    shipped = SHIPPED if SHIPPED in made else "mean+3sd"
    counts = {rule: count(seen, one.threshold) for rule, one in made.items()}
    rows = []
    for kind, own in counts[shipped].items():
        total = own.total()
        alarm = kind in ("known", "calibrating")
        other = (f"{1 - counts[rule][kind]['passed'] / total:.1%}" for rule in made if rule != shipped)
        before = total - own["features"] - own["passed"]
        stopped = f"{1 - own['passed'] / total:.1%}"
        rows.append(
            (kind, total, before, own["features"], own["passed"], stopped, "false alarm" if alarm else "", *other)
        )
    strange = {kind: own for kind, own in counts[shipped].items() if kind not in ("known", "calibrating")}
    all_of_them = sum(own.total() for own in strange.values())
    missed = sum(own["passed"] for own in strange.values())
    said = (
        f"Threshold of {shipped}: {made[shipped].threshold:.6g}, from {made[shipped].n} pictures. "
        f"Of {all_of_them} pictures that do not belong, {all_of_them - missed} were stopped and {missed} missed."
    )
    head = ("kind", "pictures", "by gates 1, 2", "by gate 3", "passed", "stopped", "")
    body = [
        f"# What the gates stop: {encoder.card.name}, {encoder.card.label}",
        "",
        said,
        "",
        *table((*head, *(f"with {rule}" for rule in made if rule != shipped)), rows),
    ]
    figures = {
        "thresholds": {rule: {"threshold": one.threshold, "n": one.n} for rule, one in made.items()},
        "shipped": shipped,
        "counts": {rule: {kind: dict(own) for kind, own in of.items()} for rule, of in counts.items()},
    }
    return body, figures


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/similis-base"), help="a model's folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, default=MOST, help="pictures of each kind")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results")
    asked = parser.parse_args()
    from shared.encoder.runtime import load

    about = facts("quarantine", {"choice of pictures": SEED})
    encoder = load(asked.model)
    with Sandbox() as sandbox:
        seen = look(sandbox, encoder, pictures(asked.data, asked.most))
    made = thresholds(seen, encoder.card.calibrations)
    body, figures = report(encoder, seen, made)
    figures |= {"model": encoder.card.name, "fingerprint": encoder.card.fingerprint}
    write("quarantine", about, figures, body, **({"folder": asked.out} if asked.out else {}))


if __name__ == "__main__":
    main()
