"""Readers of the development sets: the contents of their files, before images are made square and split."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.datasets.phantom import render
from shared.datasets.women import exams
from shared.errors import Invalid

Grey = NDArray[np.uint8]

PHANTOM_SIZE = (512, 400)  #: rows, cols
#: a square around a lesion reaches this many radii to each side, and at least 24 pixels
AROUND, LEAST = 1.5, 24
MIAS = "MIAS licence agreement: research only"
MEDNIST = "CC-BY-SA-4.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A set as read from its files; each list has one entry per image."""

    images: Sequence[Grey] | Grey  #: (rows, cols) or (rows, cols, 3) each
    labels: Sequence[int]
    classes: tuple[str, ...]
    groups: Sequence[str]
    split: Sequence[str]  #: empty if the set does not state it
    sources: Sequence[str]
    licence: str
    views: Sequence[str] | None = None
    note: str = ""  #: as in `Collection`


def _rows(folder: Path, name: str = "labels.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _picture(path: Path) -> Grey:
    with Image.open(path) as image:
        return np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB"))


def _arrays(path: Path, parts: Sequence[str]) -> tuple[Grey, list[int], list[str]]:
    """Return images, labels and split of an archive in the MedMNIST layout, part after part."""
    with np.load(path) as held:
        images = np.concatenate([held[f"{part}_images"] for part in parts])
        labels = [int(label) for part in parts for label in held[f"{part}_labels"].ravel()]
        split = [part for part in parts for _ in range(len(held[f"{part}_labels"]))]
    return images, labels, split


def _radiology16(folder: Path) -> Table:
    images, labels, split = _arrays(folder / "radiology16_64.npz", ("train", "test"))
    rows = _in_order(_rows(folder), split)
    with np.load(folder / "radiology16_64.npz") as held:
        classes = tuple(str(name) for name in held["class_names"])
    return Table(
        images=images,
        labels=labels,
        classes=classes,
        groups=[row["group_id"] for row in rows],
        split=split,
        sources=[row["source_set"] for row in rows],
        licence="composite (MedNIST, brain MRI, BUSI, MIAS): research only",
    )


def _mednist(folder: Path) -> Table:
    images, labels, split = _arrays(folder / "mednist_9k_64.npz", ("train", "val", "test"))
    rows = _in_order(_rows(folder), split)
    named = {label: row["class_name"] for label, row in zip(labels, rows, strict=True)}
    return Table(
        images=images,
        labels=labels,
        classes=tuple(named[label] for label in sorted(named)),
        groups=[f"{row['class_name']}/{row['block_id']}" for row in rows],
        split=split,
        sources=["mednist"] * len(rows),
        licence=MEDNIST,
    )


def _in_order(rows: list[dict[str, str]], split: Sequence[str]) -> list[dict[str, str]]:
    """Return the table's rows in the order of the arrays."""
    parts = list(dict.fromkeys(split))
    return sorted(rows, key=lambda row: (parts.index(row["split"]), int(row["index"])))


def _cxr(folder: Path) -> Table:
    images, labels, split = _arrays(folder / "pneumoniamnist_subset.npz", ("train", "val", "test"))
    return _distinct(
        Table(
            images=images,
            labels=labels,
            classes=("normal", "pneumonia"),
            groups=[f"{n:05d}" for n in range(len(labels))],  # the patients are unknown
            split=split,
            sources=["pneumoniamnist"] * len(labels),
            licence="CC-BY-4.0",
        )
    )


def _distinct(table: Table) -> Table:
    """Keep one of equal images, first of test, then of val; keep none if equal images have different labels."""
    order = sorted(range(len(table.labels)), key=lambda n: ("test", "val", "train", "").index(table.split[n]))
    first: dict[bytes, int] = {}
    disputed: set[int] = set()
    for n in order:
        kept = first.setdefault(table.images[n].tobytes(), n)
        if table.labels[kept] != table.labels[n]:
            disputed.add(kept)
    chosen = sorted(set(first.values()) - disputed)
    return replace(
        table,
        images=np.stack([table.images[n] for n in chosen]),
        **{  # type: ignore[arg-type]  # the names are fields of Table
            name: [getattr(table, name)[n] for n in chosen] for name in ("labels", "groups", "split", "sources")
        },
    )


def _mias(folder: Path, column: str, classes: tuple[str, ...]) -> Table:
    rows = _rows(folder)
    return Table(
        images=[_picture(folder / row["file"]) for row in rows],
        labels=[classes.index(row[column]) for row in rows],
        classes=classes,
        groups=[row["patient_id"] for row in rows],
        split=[""] * len(rows),
        sources=["mammography_mias"] * len(rows),
        licence=MIAS,
    )


def _mias_severity(folder: Path) -> Table:
    """Read severity, which MIAS states; it has no BI-RADS, which would only rename the same three classes."""
    return _mias(folder, "severity", ("normal", "benign", "malignant"))


def _mias_density(folder: Path) -> Table:
    return _mias(folder, "tissue", ("fatty", "fatty-glandular", "dense-glandular"))


def _mias_lesions(folder: Path) -> Table:
    classes = ("B", "M")
    images = {row["image_id"]: row for row in _rows(folder)}
    lesions = [row for row in _rows(folder, "lesions.csv") if row["radius_512"]]
    return Table(
        images=[_crop(_picture(folder / images[row["image_id"]]["file"]), row) for row in lesions],
        labels=[classes.index(row["severity_code"]) for row in lesions],
        classes=("benign", "malignant"),
        groups=[images[row["image_id"]]["patient_id"] for row in lesions],
        split=[""] * len(lesions),
        sources=["mammography_mias"] * len(lesions),
        licence=MIAS,
    )


def _crop(image: Grey, lesion: Mapping[str, str]) -> Grey:
    """Return the square around a lesion, zero outside the image."""
    reach = max(round(AROUND * float(lesion["radius_512"])), LEAST)
    x, y = round(float(lesion["x_512"])), round(float(lesion["y_512_from_top"]))
    return np.pad(image, reach)[y : y + 2 * reach, x : x + 2 * reach]


def _busi(folder: Path) -> Table:
    rows = _rows(folder)
    classes = ("normal", "benign", "malignant")
    return _distinct(
        Table(
            images=[_picture(folder / row["file"]) for row in rows],
            labels=[classes.index(row["class_name"]) for row in rows],
            classes=classes,
            groups=[row["file"] for row in rows],  # the patients are unknown
            split=[""] * len(rows),
            sources=["ultrasound_busi"] * len(rows),
            licence="not stated by its authors: research only",
        )
    )


def _ood(folder: Path) -> Table:
    """Read all images as test: nothing may be fitted to outliers. Photographs and charts are one class each."""
    rows = _rows(folder)
    one_off = {"natural_photos", "charts_and_logos"}
    kinds = [row["group"] if row["group"] in one_off else row["kind"] for row in rows]
    classes = tuple(dict.fromkeys(kinds))
    return Table(
        images=[_picture(folder / row["file"]) for row in rows],
        labels=[classes.index(kind) for kind in kinds],
        classes=classes,
        groups=[row["file"] for row in rows],
        split=["test"] * len(rows),
        sources=[row["group"] for row in rows],
        licence="mixed, partly made from MIAS: research only",
    )


def phantoms(arguments: str) -> Table:
    studies, _, seed = arguments.partition(":")
    if not (studies.isdecimal() and seed.isdecimal() and int(studies) > 0):
        raise Invalid("name phantoms by the number of studies and a seed, such as phantoms:200:1")
    drawn = list(_drawn(int(studies), int(seed)))
    birads = sorted({found for _, found, _ in drawn})
    return Table(
        images=np.stack([image for image, _, _ in drawn]),
        labels=[birads.index(found) for _, found, _ in drawn],
        classes=tuple(f"BI-RADS {found}" for found in birads),
        groups=[f"{woman:06d}" for _, _, woman in drawn],
        split=[""] * len(drawn),
        sources=["phantoms"] * len(drawn),
        licence="Apache-2.0",
    )


def _drawn(studies: int, seed: int) -> Iterator[tuple[Grey, int, int]]:
    """Yield image, BI-RADS category and woman, four views per study."""
    for exam in islice(exams(seed), studies):
        for breast, finding in zip(exam.breasts, exam.findings, strict=True):
            for view in ("CC", "MLO"):
                yield (render(breast, view, *PHANTOM_SIZE) >> 4).astype(np.uint8), finding.birads, exam.woman


#: folder under the root, and reader, by name
SETS: Mapping[str, tuple[str, Callable[[Path], Table]]] = {
    "radiology_16class": ("radiology_16class", _radiology16),
    "radiology_mednist": ("radiology_mednist", _mednist),
    "cxr": ("cxr", _cxr),
    "mias": ("mammography_mias", _mias_severity),
    "mias-density": ("mammography_mias", _mias_density),
    "mias-lesions": ("mammography_mias", _mias_lesions),
    "busi": ("ultrasound_busi", _busi),
    "ood": ("ood", _ood),
}
