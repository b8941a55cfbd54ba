"""What the three gates stop, miss and stop by mistake, by kind of picture and by each vote of gate 3.

Two archives: MIAS mammograms, where half of the women calibrate and the other half show false alarms, and MedNIST, six
body parts under one modality. All other pictures do not belong, and are treated as if their header named the archive's
modality: under a modality without a threshold, gate 3 would not judge them. So the functions of intake judge here,
too. A network without a decoder is measured beside the model; it has the second vote only.
"""

import argparse
import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from PIL import Image

from benchmarks.report import Json, facts, table, write
from shared.encoder.base import Encoder
from shared.encoder.ood import Gaussian, Rule, calibrate, held_out
from shared.errors import Rejected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.pipeline.judge import Standard, judge, statistic
from shared.store import encodings

RULES: tuple[Rule, ...] = ("mean+3sd", "quantile", "log")
SHIPPED = "card"
VOTES = ("error", "distance", "both")
SEED, MOST = 0, 200  #: pictures of each kind
MIAS, MEDNIST = "mammogram (MIAS)", " (MedNIST)"
ELSEWHERE = "mammogram of other scanners (NYU)"  #: digital, where MIAS is digitised film


@dataclass(frozen=True, slots=True)
class Archive:
    """Which pictures belong to the archive, and the modality assigned to those that do not."""

    name: str
    modality: str
    knows: Callable[[str], bool]  #: by kind of picture
    owes: frozenset[str] = frozenset()  #: kinds that belong although none of them calibrates


ARCHIVES = (
    Archive("MIAS mammograms", "MG", lambda kind: kind == MIAS, frozenset({ELSEWHERE})),
    Archive("MedNIST, six body parts", "CT", lambda kind: kind.endswith(MEDNIST)),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One file and its kind; `patient` is the number of its patient, or of the picture if no patient is named."""

    of: str
    source: Path | bytes
    patient: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The result for a picture: the gate that stopped it before the model, or the model's scores and embeddings."""

    of: str
    patient: int
    gate: str | None = None
    score: float | None = None
    packed: tuple[bytes, ...] = ()  #: embeddings in stored form

    @property
    def calibrates(self) -> bool:
        return self.patient % 2 == 0 and self.gate is None


def pictures(data: Path, most: int = MOST) -> Iterator[Picture]:
    """All mammograms, and at most `most` of each other kind, chosen by a fixed seed."""
    with (data / "mammography_mias" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            woman = int(row["patient_id"].removeprefix("MIAS"))
            yield Picture(MIAS, data / "mammography_mias" / row["file"], woman)
    others: dict[str, list[Path | bytes]] = {}
    with (data / "ood" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            kind = f"{row['group']}: {row['kind']}" if row["group"] == "synthetic" else row["group"]
            others.setdefault(kind, []).append(data / "ood" / row["file"])
    others[ELSEWHERE] = sorted((data / "mammography_nyu_exam").glob("*.png"))
    others["ultrasound (BUSI)"] = sorted((data / "ultrasound_busi" / "images").iterdir())
    others |= _arrays(data / "radiology_mednist" / "mednist_9k_64.npz", data / "radiology_mednist" / "labels.csv")
    chests = np.load(data / "cxr" / "pneumoniamnist_subset.npz")["test_images"]
    others["chest X-ray (PneumoniaMNIST)"] = [_png(one) for one in chests[:MOST]]
    for kind, sources in others.items():
        chosen = np.random.default_rng(SEED).permutation(len(sources))[:most]
        yield from (Picture(kind, sources[i], int(i)) for i in sorted(chosen))


def _arrays(arrays: Path, labels: Path) -> dict[str, list[Path | bytes]]:
    """The test pictures of MedNIST by class, as PNG files in memory."""
    images = np.load(arrays)["test_images"]
    found: dict[str, list[Path | bytes]] = {}
    with labels.open(newline="") as file:
        for row in csv.DictReader(file):
            kind = f"{row['class_name']}{MEDNIST}"
            if row["split"] == "test" and len(found.setdefault(kind, [])) < MOST:
                found[kind].append(_png(images[int(row["index"])]))
    return found


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def look(sandbox: Sandbox, encoder: Encoder, all_of_them: Iterable[Picture]) -> list[Seen]:
    """Each picture through decoder, gates 1 and 2 and the model."""
    recipe, seen = encoder.card.recipe, []
    for picture in all_of_them:
        one = Seen(picture.of, picture.patient)
        try:
            decoded = sandbox.decode(picture.source, recipe)
        except Rejected as refusal:
            seen.append(replace(one, gate=refusal.gate.value if refusal.gate else refusal.outcome.value))
            continue
        stop = metadata_gate(decoded.header, recipe) or pixel_gate(decoded.stats)
        if stop is not None:
            seen.append(replace(one, gate=str(stop.gate)))
            continue
        encoded = encoder.encode(decoded.pixels)
        score = None if encoded.ood is None else statistic([float(value) for value in encoded.ood])
        packed = tuple(encodings.pack(row) for row in encoded.embeddings)
        seen.append(replace(one, score=score, packed=packed))
    return seen


def standards(seen: Sequence[Seen], archive: Archive, encoder: Encoder) -> dict[str, Standard]:
    """Thresholds per rule from the calibrating half; and, if the card has them for the modality, the card's."""
    known = [one for one in seen if archive.knows(one.of) and one.calibrates]
    scores = [one.score for one in known if one.score is not None]
    vectors = encodings.stack([one.packed[0] for one in known])
    apart = held_out(vectors, [f"{one.of} {one.patient}" for one in known])
    gaussian = Gaussian.fit(vectors)
    made = {
        rule: Standard(
            0,
            calibrate(scores, "", rule).threshold if scores else None,
            calibrate(apart, "", rule).threshold,
            gaussian,
        )
        for rule in RULES
    }
    brought = encoder.card.calibrations.get(archive.modality)
    return made | ({SHIPPED: Standard(0, brought.threshold)} if brought else {})


def count(seen: Sequence[Seen], archive: Archive, standard: Standard) -> dict[str, Counter[str]]:
    """Counts by kind: pictures, those stopped by gates 1 and 2, and those that each vote or both stop after them."""
    found = {"known": Counter(pictures=0, before=0)}
    for one in seen:
        if archive.knows(one.of) and one.calibrates:
            continue
        own = found.setdefault("known" if archive.knows(one.of) else one.of, Counter(pictures=0, before=0))
        own["pictures"] += 1
        if one.gate is not None:
            own["before"] += 1
            continue
        distance = standard.measure(one.packed)
        own["error"] += judge(one.score, None, standard).stops
        own["distance"] += judge(None, distance, standard).stops
        own["both"] += judge(one.score, distance, standard).stops
    return found


def shares(counts: Mapping[str, Counter[str]], archive: Archive, vote: str) -> tuple[float, float]:
    """(share of known pictures stopped, share of strange pictures stopped), gates 1 and 2 included."""
    strange = sum((own for kind, own in counts.items() if kind not in {"known", *archive.owes}), Counter[str]())
    return tuple((own["before"] + own[vote]) / own["pictures"] for own in (counts["known"], strange))  # type: ignore[return-value]


def report(archive: Archive, encoder: Encoder, seen: Sequence[Seen]) -> tuple[list[str], Json]:
    """(Markdown lines, figures by rule and kind)."""
    made = standards(seen, archive, encoder)
    counts = {rule: count(seen, archive, standard) for rule, standard in made.items()}
    overall = [
        (rule, *(f"{a:.1%} / {b:.1%}" for a, b in (shares(counts[rule], archive, vote) for vote in VOTES)))
        for rule in made
    ]
    known = sum(archive.knows(one.of) and one.calibrates for one in seen)
    body = [
        f"## {encoder.card.name}, {archive.name}",
        "",
        f"Calibrated on {known} pictures. Share of the known that is stopped / of what does not belong, by all gates:",
        "",
        *table(("rule", "gate 3 by the error", "by the distance", "by both"), overall),
        "",
        *(line for rule in (RULES[0], SHIPPED) if rule in counts for line in by_kind(rule, counts[rule], archive)),
    ]
    figures = {
        "thresholds": {rule: {"error": one.threshold, "distance": one.distance} for rule, one in made.items()},
        "calibrating": known,
        "counts": {rule: {kind: dict(own) for kind, own in of.items()} for rule, of in counts.items()},
    }
    return body, figures


def by_kind(rule: str, counts: Mapping[str, Counter[str]], archive: Archive) -> list[str]:
    """A table with the number stopped by each gate and vote, one row per kind."""
    rows = []
    for kind, own in counts.items():
        missed = own["pictures"] - own["before"] - own["both"]
        cells = (own["before"], *(own[vote] for vote in VOTES), missed)
        belongs = kind in {"known", *archive.owes}
        rows.append((f"**{kind}**: false alarms" if belongs else kind, own["pictures"], *cells))
    shipped = " (the threshold that the model brings: of errors alone)" if rule == SHIPPED else ""
    return [
        f"By kind, `{rule}`{shipped}: how many gates 1 and 2 stopped, how many more gate 3, and how many passed all:",
        "",
        *table(("kind", "pictures", "gates 1, 2", "error", "distance", "both", "passed"), rows),
        "",
    ]


def cost_ms(seen: Sequence[Seen], encoder: Encoder) -> float:
    """Milliseconds to compute one distance from the stored embeddings."""
    standard = standards(seen, ARCHIVES[0], encoder)[RULES[0]]
    asked = [one.packed for one in seen if one.packed]
    began = time.perf_counter()
    for packed in asked:
        standard.measure(packed)
    return (time.perf_counter() - began) * 1000 / len(asked)


def plain(data: Path, scratch: Path) -> Path:
    """The card's folder of MobileNetV2 with ImageNet weights: a network without a decoder."""
    from benchmarks.retrieval.scratch import HALF, converted, network

    weights = converted("mobilenet_v2_imagenet_fp16.pth", data / "weights", scratch)
    return network("mobilenet-imagenet", "mobilenet_v2", weights, Recipe(pad="square"), scratch, HALF, HALF)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/similis-base"), help="a model's folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, default=MOST, help="pictures of each kind")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results")
    parser.add_argument("--scratch", type=Path, default=Path(gettempdir()) / "similis-quarantine")
    asked = parser.parse_args()
    from benchmarks.retrieval.base import loaded

    about = facts("quarantine", {"choice of pictures": SEED})
    body, figures = ["# What the gates stop", ""], {}
    for folder in (asked.model, plain(asked.data, asked.scratch)):
        encoder = loaded(folder, asked.scratch)
        with Sandbox() as sandbox:
            seen = look(sandbox, encoder, pictures(asked.data, asked.most))
        told: Json = {"fingerprint": encoder.card.fingerprint, "distance_ms": round(cost_ms(seen, encoder), 4)}
        for archive in ARCHIVES:
            lines, told[archive.name] = report(archive, encoder, seen)
            body += lines
        body += [f"One distance takes {told['distance_ms']} ms ({encoder.card.dim} dimensions).", ""]
        figures[encoder.card.name] = told
    write("quarantine", about, figures, body, **({"folder": asked.out} if asked.out else {}))


if __name__ == "__main__":
    main()
