"""CBIS-DDSM: scanned films with a label per lesion; an image has the label of its worst lesion.

ROOT/**/Mass-Training_P_00001_LEFT_CC/**/*.dcm       the whole film
ROOT/**/Mass-Training_P_00001_LEFT_CC_1/**/*.dcm     crop and mask of its first lesion
ROOT/**/{mass,calc}_case_description_{train,test}_set.csv

The tables' `patient_id` groups the images; PatientID in the headers is the name of the folder and differs between
views. File names differ between downloads, so images are found by their folder.

Assessment 0 means incomplete: any category of another lesion overrides it, and an image without another category
stays 0.

Source: Lee et al., Scientific Data 4:170177 (2017); doi 10.7937/K9/TCIA.2016.7O02S9CY.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.datasets import cells
from shared.datasets.folder import DICOM_SUFFIXES
from shared.datasets.record import Imported, Record, imported
from shared.datasets.tables import Line, find, listing, read_csv
from shared.errors import Invalid

DATASET, LICENCE = "cbis-ddsm", "CC-BY-3.0"
TABLES = {
    f"{kind}_case_description_{part}_set.csv": split
    for kind in ("mass", "calc")
    for part, split in (("train", "train"), ("test", "test"))
}
COLUMNS = (
    "patientid", "leftorrightbreast", "imageview", "breastdensity", "abnormalityid", "abnormalitytype", "assessment",
    "pathology", "imagefilepath", "croppedimagefilepath", "roimaskfilepath",
)  # fmt: skip
FOLDER = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?", re.IGNORECASE)
DESCRIPTIONS = ("massshape", "massmargins", "calctype", "calcdistribution")
_PATHOLOGIES = {"malignant": "malignant", "benign": "benign", "benign_without_callback": "benign", "normal": "normal"}


def read(root: Path) -> Imported:
    """Return every whole film that a table names, without the crops and masks.

    Raises:
        Invalid: none of the four tables, no image, a missing column, or an invalid value.
    """
    warnings: Counter[str] = Counter()
    files = listing(root)
    folders = _folders(files)
    sides: dict[str, set[str]] = {}
    records = []
    for image, (split, lines) in _by_image(root, files).items():
        path = _film(folders.get(image, ()), lines[0], warnings)
        if path is not None:
            records.append(_record(image, path, split, lines, warnings))
            sides.setdefault(lines[0]["patientid"], set()).add(split)
    if not records:
        raise Invalid("no image of CBIS-DDSM that its tables name is in the folder")
    named = {record.path for record in records}
    films = [found for name, found in folders.items() if not _lesion_folder(name)]
    warnings["image-without-row"] += sum(not named & set(found) for found in films)
    # masses and calcifications were split into train and test independently
    warnings["patient-in-train-and-test"] += sum(len(found) > 1 for found in sides.values())
    return imported(root, records, +warnings)


def parse_pathology(cell: str) -> str | None:
    """Return the pathology; BENIGN_WITHOUT_CALLBACK counts as benign, judged without a biopsy.

    Raises: `ValueError` for an unknown value.
    """
    if cells.missing(cell):
        return None
    if cell.lower() not in _PATHOLOGIES:
        raise ValueError("not a pathology: malignant, benign or benign_without_callback")
    return _PATHOLOGIES[cell.lower()]


def _said(cell: str) -> str:
    """Return the path of a cell without the quotes and line ends that some cells contain."""
    return re.sub(r"[\"'\s]", "", cell)


def _folder(cell: str) -> str:
    return _said(cell).partition("/")[0]


def _lesion_folder(name: str) -> bool:
    match = FOLDER.fullmatch(name)
    return match is not None and match[5] is not None


def _folders(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the DICOM files by the folder that names the film or lesion."""
    found: dict[str, list[Path]] = {}
    for path in files:
        name = next((part for part in path.parts[:-1] if FOLDER.fullmatch(part)), None)
        if name is not None and path.suffix.lower() in DICOM_SUFFIXES:
            found.setdefault(name, []).append(path)
    return found


def _by_image(root: Path, files: Sequence[Path]) -> dict[str, tuple[str, list[Line]]]:
    """Return the rows by the folder of their film, with the split of their table."""
    found: dict[str, tuple[str, list[Line]]] = {}
    tables = [(path, split) for name, split in TABLES.items() if (path := find(root, files, name))]
    if not tables:
        raise Invalid(f"the data set has none of its tables: {', '.join(TABLES)}")
    for path, split in tables:
        for line in read_csv(path, COLUMNS):
            found.setdefault(_folder(line["imagefilepath"]), (split, []))[1].append(line)
    return found


def _film(found: Sequence[Path], line: Line, warnings: Counter[str]) -> Path | None:
    """Return the only file of the folder, or of several the one that the row names; None if there is none."""
    exact = [path for path in found if path.as_posix().endswith(_said(line["imagefilepath"]))]
    if len(found) > 1 and len(exact) != 1:
        warnings["several-images"] += 1
        return None
    warnings["row-without-image"] += not found
    return next(iter(exact or found), None)


def _record(image: str, path: Path, split: str, lines: Sequence[Line], warnings: Counter[str]) -> Record:
    first = lines[0]
    birads = [value for line in lines if (value := line.parse("assessment", cells.birads)) is not None]
    warnings["incomplete-beside-others"] += 0 in birads and any(birads)
    pathologies = {line.parse("pathology", parse_pathology) for line in lines}
    return Record(
        dataset=DATASET,
        patient_id=first["patientid"],
        exam_id=first["patientid"],  # the tables have no dates; the collection has one exam per patient
        image_id=image,
        path=path,
        laterality=first.parse("leftorrightbreast", cells.laterality),
        view=first.parse("imageview", cells.view),
        modality="SFM",
        birads=max(birads, default=None),
        birads_raw="$".join(line["assessment"] for line in lines),
        level="lesion-max",
        density=cells.known_density(first["breastdensity"], warnings),  # the tables also contain 0, which is no class
        pathology=next((one for one in ("malignant", "benign", "normal") if one in pathologies), None),
        split=split,
        licence_tag=LICENCE,
        findings=_described(lines),
    )


def _described(lines: Sequence[Line]) -> tuple[str, ...]:
    said = (" ".join([line["abnormalitytype"], *(line[name] for name in DESCRIPTIONS if line[name])]) for line in lines)
    return tuple(dict.fromkeys(one.lower() for one in said))
