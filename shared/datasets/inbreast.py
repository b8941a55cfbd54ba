"""INbreast: 410 full-field digital mammograms, BI-RADS with 4a to 4c per image.

ROOT/**/<FileName>_<patient>_MG_<L|R>_<CC|ML>_ANON.dcm
ROOT/INbreast.csv                   semicolons

The table's patient is "removed"; the sixteen hexadecimal digits in the file name identify the patient.

Source: Moreira et al., Academic Radiology 19(2):236 (2012).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.datasets import cells
from shared.datasets.folder import DICOM_SUFFIXES
from shared.datasets.record import Imported, Record, imported
from shared.datasets.tables import Line, listing, read_csv, require
from shared.errors import Invalid

DATASET, LICENCE = "inbreast", "INbreast-research-agreement"
TABLE = "INbreast.csv"
COLUMNS = ("laterality", "view", "acquisitiondate", "filename", "acr", "birads")
_NAME = re.compile(r"(\d+)_([0-9a-f]{16})_MG_([LR])_(CC|ML|MLO|FB)_ANON", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Image:
    patient: str
    side: str
    view: str
    path: Path


def read(root: Path) -> Imported:
    """Return every image whose file name states the patient. An exam is a patient's month: the table has no day.

    Raises:
        Invalid: no image, no table, a missing column, or an invalid BI-RADS category or density.
    """
    warnings: Counter[str] = Counter()
    files = listing(root)
    images = _images(files, warnings)
    if not images:
        raise Invalid("the folder holds no image of INbreast: <number>_<patient>_MG_<L|R>_<CC|ML>_ANON.dcm")
    records: dict[str, Record] = {}
    for line in read_csv(require(root, files, TABLE), COLUMNS, ";"):
        number = line["filename"].removesuffix(".0")
        if number not in images:
            warnings["row-without-image"] += 1
        elif number in records:
            warnings["duplicate-row"] += 1
        else:
            records[number] = _record(number, images[number], line, warnings)
    for number in images.keys() - records.keys():
        warnings["image-without-row"] += 1
        records[number] = _record(number, images[number], None, warnings)
    return imported(root, records.values(), +warnings)


def _images(files: Iterable[Path], warnings: Counter[str]) -> dict[str, _Image]:
    found: dict[str, _Image] = {}
    for path in files:
        if path.suffix.lower() not in DICOM_SUFFIXES:
            continue
        match = _NAME.fullmatch(path.stem)
        if match is None:
            warnings["name-not-understood"] += 1
            continue
        view = match[4].upper()  # ML in a name is the oblique view: the table says MLO
        image = _Image(match[2].lower(), match[3].upper(), "MLO" if view == "ML" else view, path)
        warnings["duplicate-image"] += match[1] in found
        found.setdefault(match[1], image)
    return found


def _record(number: str, image: _Image, line: Line | None, warnings: Counter[str]) -> Record:
    if line is None:
        line = Line(0, {})
    side, view = line.parse("laterality", cells.laterality), line.parse("view", cells.view)
    warnings["side-differs"] += side not in {None, image.side}
    warnings["view-differs"] += view not in {None, image.view}
    month = line["acquisitiondate"]
    return Record(
        dataset=DATASET,
        patient_id=image.patient,
        exam_id=f"{image.patient}/{month}" if not cells.missing(month) else image.patient,
        image_id=number,
        path=image.path,
        laterality=image.side,
        view=view or image.view,
        modality="FFDM",
        birads=line.parse("birads", cells.birads),
        birads_raw=line["birads"],
        density=line.parse("acr", cells.density),
        age=cells.age(line["patientage"]),
        licence_tag=LICENCE,
    )
