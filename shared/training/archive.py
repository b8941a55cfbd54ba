"""The user's own archive: a folder of DICOM, PNG or JPEG files with a label table, decoded as the platform does."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from shared.datasets.collection import Collection
from shared.datasets.folder import LabelTable, Row, read_labels
from shared.datasets.splits import VAL, hold_out
from shared.errors import Invalid, NotFound, Rejected
from shared.imaging.gates import stops_raw
from shared.imaging.recipe import Pad, Recipe
from shared.imaging.sandbox import Sandbox
from shared.types import Decoded

Label = Literal["birads", "density", "pathology"]
_BATCH = 64  #: files decoded at a time


class Labelled(NamedTuple):
    """A decoded file with a label from the table. It contains the patient as the table has it: never log it."""

    row: Row
    decoded: Decoded
    value: str
    patient: str  #: from the table, else from the file; if unknown, the study stands for the patient


def labelled(
    folder: Path, table: LabelTable, label: Label, recipe: Recipe, counted: Counter[str]
) -> Iterator[Labelled]:
    """Yield the labelled files below the folder, sorted by path; `counted` counts the others by reason.

    BI-RADS 0, which is not a point of the scale, counts as no label. A row whose file name matches files in several
    folders labels none of them, unless the table has their UIDs.

    Raises: `NotFound` if there is no such folder.
    """
    paths = files_of(folder)
    table = table.told_apart(folder, paths)
    for path, decoded in images_of(paths, recipe, counted):
        header = decoded.header
        uids = {"sop_instance_uid": header.sop_instance_uid, "study_uid": header.study_instance_uid}
        row = table.find(folder, path, **uids)
        if row is None and table.shares(folder, path):
            counted["whose name in the table matches files in several folders"] += 1
            continue
        labels = None if row is None else row.labels
        value = None if labels is None else getattr(labels, label)
        if row is None or labels is None or value is None or (label == "birads" and value == 0):
            counted["without a label"] += 1
            continue
        patient = row.patient or header.patient_id
        counted["without a patient"] += not patient
        counted["with a split in the table, which is not used"] += any(name.lower() == "split" for name in labels.extra)
        study = row.study or header.study_instance_uid
        yield Labelled(row, decoded, str(value), patient or study or str(path))


def files_of(folder: Path) -> list[Path]:
    """Return every file below the folder, whatever its name, as in the intake: media have images without an extension.

    Raises: `NotFound` if there is no such folder.
    """
    if not folder.is_dir():
        raise NotFound("there is no such folder of images")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def images_of(paths: Sequence[Path], recipe: Recipe, counted: Counter[str]) -> Iterator[tuple[Path, Decoded]]:
    """Yield the images among the files, in order, without raw detector data unless the recipe takes it.

    `counted` counts the other files by reason. The other gates of the intake ask for a person's review: here a person
    has chosen the files.
    """
    with Sandbox() as sandbox:
        for at in range(0, len(paths), _BATCH):
            part = paths[at : at + _BATCH]
            for path, answer in zip(part, sandbox.decode_many(part, recipe), strict=True):
                if isinstance(answer, Rejected):
                    counted["not decoded"] += 1
                elif stops_raw(answer.header, recipe):
                    counted["of raw detector data"] += 1
                else:
                    yield path, answer


def told(counted: Counter[str]) -> str:
    """Return a text with the counts of the files that were left out or lack something."""
    return "; ".join(f"{count} files {what}" for what, count in sorted(counted.items()) if count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Labelled files for training; 15 % of the images, by whole patients and always the same, are for validation.

    There is no test part: evaluate on other files.
    """

    folder: str
    labels: str  #: the table; columns as `shared.datasets.folder.COLUMNS` names them
    label: Label
    side: int
    pad: Pad = "square"
    limit: int | None = None  #: train only on this many images, the first by path

    def load(self, root: Path) -> Collection:  # noqa: ARG002 - the archive has its own folder
        """Raises: `NotFound`; `Invalid` for a malformed table, fewer than two different labels, or too few patients."""
        counted: Counter[str] = Counter()
        recipe = Recipe(size=self.side, pad=self.pad)
        images, values, patients, modalities = [], [], [], []
        for one in labelled(Path(self.folder), read_labels(Path(self.labels)), self.label, recipe, counted):
            for pixels in one.decoded.pixels:
                images.append(np.rint(pixels * 255).astype(np.uint8))
                values.append(one.value)
                patients.append(one.patient)
                modalities.append(one.row.modality or one.decoded.header.modality)
        classes, labels = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            note = told(counted)
            raise Invalid(f"a training needs images with at least two different labels{': ' * bool(note)}{note}")
        groups = np.unique(patients, return_inverse=True)[1].astype(np.int64)
        held = hold_out(np.ones(len(images), np.bool_), labels.astype(np.int64), groups, VAL)
        if not held.any():
            raise Invalid(f"too few patients ({len(np.unique(groups))}): none can be held out for validation")
        return Collection(
            name=f"folder, {self.label}",
            images=np.stack(images),
            labels=labels.astype(np.int64),
            classes=tuple(str(name) for name in classes),
            groups=groups,
            split=np.where(held, "val", "train"),
            sources=np.array(modalities),
            licence="the archive's own",
            note=told(counted),
        ).limited(self.limit)
