"""CDD-CESM: low-energy and contrast-subtracted mammograms with one BI-RADS category per image.

ROOT/**/P12_L_DM_CC.jpg            low energy (DM) or subtracted (CM), in two folders or a flat one
ROOT/Radiology-manual-annotations.xlsx
ROOT/**/P12.docx                   optional: reports, compared with the sheet

Patient, side, view and kind are taken from the file name, which stays with the pixels; all else from the sheet.

Source: Khaled et al., Scientific Data 9:122 (2022), doi 10.1038/s41597-022-01238-0; data doi 10.7937/29kw-ae92.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shared.datasets import cells
from shared.datasets.record import Imported, Modality, Record, imported
from shared.datasets.reports import Opinion, read_opinions
from shared.datasets.tables import Line, listing, read_sheet, require
from shared.errors import Invalid

DATASET, LICENCE = "cdd-cesm", "CC-BY-4.0"
WORKBOOK, SHEET = "Radiology-manual-annotations.xlsx", "all"
COLUMNS = ("imagename", "patientid", "side", "type", "breastdensityacr", "birads", "view")
PATHOLOGY = "pathologyclassificationfollowup"
_NAME = re.compile(r"P(\d{1,18})_([LR])_(DM|CM|CESM)_(CC|MLO)", re.IGNORECASE)
_KINDS: Mapping[str, Modality] = {"DM": "DM_low_energy", "CM": "CESM_subtracted", "CESM": "CESM_subtracted"}
_PATHOLOGIES = {"normal", "benign", "malignant"}


@dataclass(frozen=True, slots=True)
class Name:
    """The facts in an image's name."""

    patient: str
    side: str
    kind: Modality
    view: str

    @property
    def image(self) -> str:
        """The name in the spelling of the files: P12_L_CM_CC."""
        return f"P{self.patient}_{self.side}_{'DM' if self.kind == 'DM_low_energy' else 'CM'}_{self.view}"


def parse_name(text: str) -> Name | None:
    """Parse the name of an image, ignoring spaces around it; None for any other text."""
    match = _NAME.fullmatch(text.strip())
    if match is None:
        return None
    return Name(str(int(match[1])), match[2].upper(), _KINDS[match[3].upper()], match[4].upper())


def read(root: Path) -> Imported:
    """Return every image under `root` with its labels from the workbook.

    `3$2` is 3, the most severe; 4a is 4. A subtracted image gets the density of the low-energy images of its breast.
    An image with two contradictory rows has no labels.

    Raises:
        Invalid: no image, no workbook, no sheet `all` in it, a missing column, or an invalid BI-RADS category.
    """
    warnings: Counter[str] = Counter()
    files = listing(root)
    images = _images(files, warnings)
    if not images:
        raise Invalid("the folder holds no image of CDD-CESM: P<number>_<L|R>_<DM|CM>_<CC|MLO>.jpg")
    real = [path for path in files if not path.name.startswith("~")]
    rows = _rows(require(root, real, WORKBOOK), warnings)
    records = []
    for name, path in images.items():
        if name not in rows:
            warnings["image-without-row"] += 1
        records.append(_record(name, path, rows.get(name), warnings))
    warnings["row-without-image"] += len(rows.keys() - images.keys())
    records = _with_densities(records, warnings)
    _compare(records, read_opinions(root, files, warnings), warnings)
    return imported(root, records, +warnings)


def _images(files: Iterable[Path], warnings: Counter[str]) -> dict[Name, Path]:
    found: dict[Name, Path] = {}
    for path in files:
        name = parse_name(path.stem) if path.suffix.strip().lower() in {".jpg", ".jpeg"} else None
        if name is None:
            continue
        if name in found:
            warnings["duplicate-image"] += 1
        found.setdefault(name, path)
    return found


def _rows(workbook: Path, warnings: Counter[str]) -> dict[Name, Line | None]:
    """Return the sheet's rows by image; None for an image whose rows differ."""
    rows: dict[Name, Line | None] = {}
    for line in read_sheet(workbook, SHEET, COLUMNS):
        name = parse_name(re.sub(r"\.jpe?g$", "", line["imagename"], flags=re.IGNORECASE))
        if name is None:
            warnings["row-without-name"] += 1
            continue
        before = rows.get(name)
        if before is not None and before.cells != line.cells:
            warnings["rows-differ"] += 1
            rows[name] = None
        elif name in rows:
            warnings["duplicate-row"] += 1
        else:
            rows[name] = line
    return rows


def _record(name: Name, path: Path, row: Line | None, warnings: Counter[str]) -> Record:
    record = Record(
        dataset=DATASET,
        patient_id=name.patient,
        exam_id=name.patient,  # one exam per patient
        image_id=name.image,
        path=path,
        laterality=name.side,
        view=name.view,
        modality=name.kind,
        licence_tag=LICENCE,
    )
    if row is None:
        return record
    _check(name, row, warnings)
    raw = row["birads"]
    warnings["compound-birads"] += "$" in raw
    return replace(
        record,
        birads=row.parse("birads", cells.birads),
        birads_raw=raw,
        density=cells.known_density(row["breastdensityacr"], warnings),
        pathology=_pathology(row[PATHOLOGY], warnings),
        age=cells.age(row["age"]),
        manufacturer=cells.name(row["machine"]),
        findings=tuple(part.strip() for part in row["findings"].split("$") if not cells.missing(part)),
    )


def _check(name: Name, row: Line, warnings: Counter[str]) -> None:
    told = {
        "patient-differs": (row["patientid"], name.patient),
        "side-differs": (row["side"].upper(), name.side),
        "view-differs": (row["view"].upper(), name.view),
        "kind-differs": (_KINDS.get(row["type"].upper(), ""), name.kind),
    }
    for kind, (said, true) in told.items():
        warnings[kind] += said not in {"", true}


def _pathology(cell: str, warnings: Counter[str]) -> str | None:
    """Return the worst pathology of a cell: malignant for a breast with a benign and a malignant finding."""
    found = [part.strip().lower() for part in cell.split("$") if not cells.missing(part)]
    warnings["pathology-unknown"] += sum(one not in _PATHOLOGIES for one in found)
    return next((one for one in ("malignant", "benign", "normal") if one in found), None)


def _with_densities(records: list[Record], warnings: Counter[str]) -> list[Record]:
    """Copy the density, which only low-energy images have, to the subtracted images of the same breast."""
    said: dict[tuple[str, str | None], set[str]] = {}
    for record in records:
        if record.density:
            said.setdefault((record.patient_id, record.laterality), set()).add(record.density)
    warnings["density-differs"] += sum(len(found) > 1 for found in said.values())
    one = {breast: next(iter(found)) for breast, found in said.items() if len(found) == 1}
    return [r if r.density else replace(r, density=one.get((r.patient_id, r.laterality))) for r in records]


def _compare(records: Iterable[Record], opinions: Mapping[str, tuple[Opinion, ...]], warnings: Counter[str]) -> None:
    """Count the breasts whose category differs between report and sheet."""
    sheet: dict[tuple[str, str | None, str], int] = {}
    for r in records:
        if r.birads is not None:
            key = r.patient_id, r.laterality, r.modality
            sheet[key] = max(sheet.get(key, 0), r.birads)
    for patient, found in opinions.items():
        for opinion in found:
            said = sheet.get((patient, opinion.laterality, opinion.modality))
            warnings["report-differs"] += said is not None and said != opinion.birads
