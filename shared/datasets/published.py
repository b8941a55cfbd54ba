"""A published mammography set as a table of pictures with BI-RADS categories, for training and evaluation.

The platform's sandbox and recipe decode the pictures, so DICOM's windows and polarity are applied.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.datasets import importers
from shared.datasets.record import Record, breast_level
from shared.datasets.sets import Table
from shared.datasets.splits import complete
from shared.errors import Invalid, Rejected
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox

#: categories that an image can show; 0 is an incomplete exam and 6 a proven cancer: neither is an appearance
CATEGORIES = (1, 2, 3, 4, 5)
PROVEN = 6  #: cancer that was proven before; it looks like category 5


def published(
    dataset: str, root: Path, recipe: Recipe, kind: str = "", *, folded: bool = False, breast: bool = False
) -> Table:
    """Return the images of category 1 to 5, grouped by patient, with a complete split.

    The split is the published one, with a patient of both its sides in train only; missing parts are held out. It does
    not depend on the other arguments: a model that was trained on all kinds has not seen the test patients of one kind.
    The source of an image is set and kind, as in cdd-cesm/DM_low_energy. Images that cannot be decoded are left out,
    and the note has their number.

    Args:
        recipe: how an image becomes a square; the middle one of several frames is taken.
        kind: take only records of this modality; empty takes all.
        folded: count images of category 6 as 5; otherwise they are left out.
        breast: give each image the worst category of its breast in its exam over all kinds; otherwise its own.

    Raises:
        Invalid: not a download of that set, or no image is left.
    """
    found: Sequence[Record] = importers.read(dataset, root).records
    part = _parts(found)
    if breast:
        found = breast_level(found)
    if folded:
        found = [replace(record, birads=5) if record.birads == PROVEN else record for record in found]
    records = [record for record in found if record.birads in CATEGORIES and kind in {"", record.modality}]
    pictures = dict(_decode(root, records, replace(recipe, frames=1)))
    kept = [record for n, record in enumerate(records) if n in pictures]
    if not kept:
        raise Invalid("no image with a BI-RADS category of 1 to 5 could be read from the data set")
    lost = len(records) - len(kept)
    present = sorted({record.birads for record in kept if record.birads is not None})
    return Table(
        images=np.stack(list(pictures.values())),
        labels=[present.index(record.birads) for record in kept if record.birads is not None],
        classes=tuple(f"BI-RADS {category}" for category in present),
        groups=[record.patient_id for record in kept],
        split=[part[record.patient_id] for record in kept],
        sources=[f"{dataset}/{record.modality}" for record in kept],
        licence=kept[0].licence_tag,
        views=[record.view or "" for record in kept],
        note=f"{lost} files not decoded" if lost else "",
    )


def _parts(records: Sequence[Record]) -> dict[str, str]:
    """Return the part of each patient with an image of category 1 to 6."""
    known = [record for record in records if record.birads]
    patients, groups = np.unique([record.patient_id for record in known], return_inverse=True)
    trained = {record.patient_id for record in known if record.split == "train"}
    split = ["train" if record.patient_id in trained else record.split or "" for record in known]
    labels = np.array([record.birads for record in known], np.int64)
    whole = complete(np.array(split, "<U5"), labels, groups.astype(np.int64))
    return dict(zip(patients[groups].tolist(), whole.tolist(), strict=True))


def _decode(root: Path, records: Sequence[Record], recipe: Recipe) -> list[tuple[int, np.ndarray]]:
    with Sandbox() as sandbox:
        answers = sandbox.decode_many([root / record.path for record in records], recipe)
        return [
            (n, np.rint(a.pixels[0] * 255).astype(np.uint8))
            for n, a in enumerate(answers)
            if not isinstance(a, Rejected)
        ]
