"""The common form of all published mammography sets, and its conversion to a label table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from shared.datasets.folder import LabelTable, Row
from shared.datasets.tables import listing
from shared.types import Labels

Modality = Literal["FFDM", "DM_low_energy", "CESM_subtracted", "synth2D", "SFM"]
#: what a label refers to: the image, the breast, the exam, or the worst of the image's lesions
Level = Literal["image", "breast", "exam", "lesion-max"]
FINDINGS_LENGTH = 400  #: characters; findings are free text in some sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a published set with the set's facts about it. None means that the set does not state it."""

    dataset: str
    patient_id: str  #: as the set groups its images; the file's header may differ
    exam_id: str
    image_id: str
    path: Path  #: relative to the root of the download
    laterality: str | None  #: L or R
    view: str | None  #: CC, MLO ...
    modality: Modality
    birads: int | None = None  #: 0 to 6
    birads_raw: str = ""  #: as the set writes it: 4a, 3$2 ...
    level: Level = "image"
    density: str | None = None  #: A to D
    pathology: str | None = None  #: normal, benign or malignant
    age: int | None = None  #: years
    manufacturer: str | None = None
    split: str | None = None  #: train, val or test, as published
    licence_tag: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Imported:
    """The contents of a download: its images, its irregularities, and the files that are not images of the set."""

    records: tuple[Record, ...]
    warnings: Counter[str] = field(default_factory=Counter)  #: number of irregularities by kind
    others: frozenset[Path] = frozenset()  #: absolute


def imported(root: Path, records: Iterable[Record], warnings: Counter[str]) -> Imported:
    """Return the records sorted by path, and every other file under `root` as `others`."""
    ordered = tuple(sorted(records, key=lambda record: record.path))
    images = {record.path for record in ordered}
    return Imported(ordered, warnings, frozenset(root / path for path in listing(root) if path not in images))


def breast_level(records: Iterable[Record]) -> list[Record]:
    """Return the same records, each with the most severe BI-RADS category of its breast in its exam."""
    records = list(records)
    worst: dict[tuple[str, str | None], int] = {}
    for record in records:
        if record.birads is not None:
            key = record.exam_id, record.laterality
            worst[key] = max(worst.get(key, 0), record.birads)
    return [replace(r, birads=worst.get((r.exam_id, r.laterality)), level="breast") for r in records]


def categories(records: Iterable[Record]) -> Counter[str]:
    """Return the number of images by category and kind, which no paper states for CDD-CESM."""
    said = ((f"BI-RADS {r.birads}" if r.birads is not None else "no BI-RADS", r.modality) for r in records)
    return Counter(f"{category}, {kind}" for category, kind in said)


def label_table(read: Imported) -> LabelTable:
    """Return the label table that the platform's intake reads, by path; its identities also apply to DICOM files.

    A record's age is dropped: the platform keeps no more personal data than it needs.
    """
    rows = {record.path.as_posix(): _row(record) for record in read.records}
    compound = sum("$" in record.birads_raw for record in read.records)
    return LabelTable(len(rows), compound, (), files=rows, stems={}, instances={}, studies={})


def _row(record: Record) -> Row:
    return Row(
        labels=Labels(birads=record.birads, density=record.density, pathology=record.pathology, extra=_extra(record)),
        # prefixed with the set: patient 1 of two sets is not the same person
        study=f"{record.dataset}/{record.exam_id}",
        patient=f"{record.dataset}/{record.patient_id}",
        laterality=record.laterality,
        view=record.view,
        modality="MG",
        identity=True,
    )


def _extra(record: Record) -> Mapping[str, str]:
    said = {
        "dataset": record.dataset,
        "kind": record.modality,
        "scheme": "BI-RADS",
        "level": record.level,
        "birads_raw": record.birads_raw if record.birads_raw != str(record.birads) else "",
        "split": record.split or "",
        "findings": "; ".join(record.findings)[:FINDINGS_LENGTH],
    }
    return {name: value for name, value in said.items() if value}
