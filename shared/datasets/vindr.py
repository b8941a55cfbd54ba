"""VinDr-Mammo: 5,000 screening exams of four views, BI-RADS and density by breast.

ROOT/images/<study_id>/<image_id>.dicom
ROOT/breast-level_annotations.csv
ROOT/finding_annotations.csv, ROOT/metadata.csv     optional

The set names no patients, so the exam stands for the patient: two exams of one woman cannot be recognised.

Source: Nguyen et al., Scientific Data 10:277 (2023); physionet.org/content/vindr-mammo/1.0.0.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.datasets import cells
from shared.datasets.folder import DICOM_SUFFIXES
from shared.datasets.record import Imported, Record, imported
from shared.datasets.tables import Line, find, listing, read_csv, require
from shared.errors import Invalid

DATASET, LICENCE = "vindr-mammo", "PhysioNet-Restricted-1.5.0"
BREASTS, FINDINGS, METADATA = "breast-level_annotations.csv", "finding_annotations.csv", "metadata.csv"
COLUMNS = ("studyid", "imageid", "laterality", "viewposition", "breastbirads", "breastdensity", "split")
_SPLITS = {"training": "train", "train": "train", "test": "test"}
MAX_LITERAL = 4096  #: characters of a list of findings


@dataclass(frozen=True, slots=True)
class _Findings:
    categories: tuple[str, ...] = ()
    birads: int | None = None


def read(root: Path) -> Imported:
    """Return every image with its breast's category, in the official split.

    Raises:
        Invalid: no image, no table of breasts, a missing column, or an invalid BI-RADS category or split.
    """
    warnings: Counter[str] = Counter()
    files = listing(root)
    found = [path for path in files if path.suffix.lower() in DICOM_SUFFIXES]
    images = {path.stem: path for path in found}
    warnings["duplicate-image"] += len(found) - len(images)
    if not images:
        raise Invalid("the folder holds no image of VinDr-Mammo: images/<study>/<image>.dicom")
    findings, about = _read_findings(root, files, warnings), _metadata(root, files)
    records: dict[str, Record] = {}
    for line in read_csv(require(root, files, BREASTS), COLUMNS):
        image = line["imageid"]
        if image not in images:
            warnings["row-without-image"] += 1
        elif image in records:
            warnings["duplicate-row"] += 1
        else:
            records[image] = _record(line, images[image], findings.get(image, _Findings()), about.get(image), warnings)
    for image in images.keys() - records.keys():  # its folder still names the exam
        warnings["image-without-row"] += 1
        records[image] = _unlabelled(image, images[image])
    return imported(root, records.values(), +warnings)


def last_token(cell: str) -> str:
    """Return the last word: A of `DENSITY A`, 1 of `BI-RADS 1`."""
    return next(iter(cell.rsplit(maxsplit=1)[-1:]), "")


def _record(line: Line, path: Path, found: _Findings, about: Line | None, warnings: Counter[str]) -> Record:
    birads = line.parse("breastbirads", lambda cell: cells.birads(last_token(cell)))
    warnings["finding-above-breast"] += found.birads is not None and (birads or 0) < found.birads
    study = line["studyid"] or path.parent.name  # otherwise all rows without a study would be one patient
    warnings["study-differs"] += path.parent.name != study
    return Record(
        dataset=DATASET,
        patient_id=study,
        exam_id=study,
        image_id=line["imageid"],
        path=path,
        laterality=line.parse("laterality", cells.laterality),
        view=line.parse("viewposition", cells.view),
        modality="FFDM",
        birads=birads,
        birads_raw=line["breastbirads"],
        level="breast",
        density=line.parse("breastdensity", lambda cell: cells.density(last_token(cell))),
        age=_age(about),
        manufacturer=cells.name(about["manufacturer"]) if about else None,
        split=line.parse("split", _split),
        licence_tag=LICENCE,
        findings=found.categories,
    )


def _unlabelled(image: str, path: Path) -> Record:
    return Record(
        dataset=DATASET,
        patient_id=path.parent.name,
        exam_id=path.parent.name,
        image_id=image,
        path=path,
        laterality=None,
        view=None,
        modality="FFDM",
        level="breast",
        licence_tag=LICENCE,
    )


def _split(cell: str) -> str | None:
    if cells.missing(cell):
        return None
    if cell.lower() not in _SPLITS:
        raise ValueError("not a split: training or test")
    return _SPLITS[cell.lower()]


def _read_findings(root: Path, files: Sequence[Path], warnings: Counter[str]) -> Mapping[str, _Findings]:
    """Return each image's findings and their worst category; `No Finding` is not a finding."""
    path = find(root, files, FINDINGS)
    if path is None:
        return {}
    found: dict[str, _Findings] = {}
    for line in read_csv(path, ("imageid", "findingcategories", "findingbirads")):
        before = found.get(line["imageid"], _Findings())
        try:
            categories = [c for c in parse_list(line["findingcategories"]) if c != "No Finding"]
        except ValueError:
            warnings["findings-not-understood"] += 1
            continue
        birads = line.parse("findingbirads", lambda cell: cells.birads(last_token(cell)))
        known = [value for value in (before.birads, birads) if value is not None]
        merged = tuple(dict.fromkeys((*before.categories, *categories)))
        found[line["imageid"]] = _Findings(merged, max(known, default=None))
    return found


def parse_list(cell: str) -> list[str]:
    """Parse the literal of a Python list of strings: `['Mass', 'Architectural Distortion']`. Evaluates no code.

    Raises: `ValueError` for anything else.
    """
    if len(cell) > MAX_LITERAL:
        raise ValueError("not a list of findings")
    try:
        value = ast.literal_eval(cell)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError("not a list of findings") from None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("not a list of findings")
    return value


def _metadata(root: Path, files: Sequence[Path]) -> Mapping[str, Line]:
    path = find(root, files, METADATA)
    return {} if path is None else {line["sopinstanceuid"]: line for line in read_csv(path, ("sopinstanceuid",))}


def _age(about: Line | None) -> int | None:
    """Parse a DICOM age string in years: 049Y."""
    match = re.fullmatch(r"0*(\d{1,3})Y?", about["patientsage"]) if about else None
    return int(match[1]) if match else None
