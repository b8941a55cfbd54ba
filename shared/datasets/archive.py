"""A sample archive on disk: synthetic mammography studies, files of the pydicom package, and a few broken ones.

DIR/labels.csv                          one row per mammogram
DIR/mammography/woman-0001/exam-1/      R-CC.dcm R-MLO.dcm L-CC.dcm L-MLO.dcm
DIR/other/                              CT, MR, colour, a report: real files from the pydicom package
DIR/broken/                             unreadable files, so that a summary has failures to list
"""

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from shared.datasets.mammogram import SCANNERS, Identity, Scanner, dataset, save, save_plain
from shared.datasets.phantom import Stored, render
from shared.datasets.women import Exam, exams
from shared.errors import Conflict, Invalid

VIEWS = ("CC", "MLO")
SIZES = {"small": (1024, 800), "full": (2294, 1914)}  #: rows, cols
LABELS = "labels.csv"

PACKAGE_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
#: thirteen images with different SOP Instance UIDs, in eight transfer syntaxes, and a report
CARRIED = (
    "CT_small.dcm",
    "693_J2KI.dcm",
    "MR_small_RLE.dcm",
    "examples_overlay.dcm",
    "JPEG2000.dcm",
    "ExplVR_BigEnd.dcm",
    "examples_jpeg2k.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "examples_palette.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "image_dfl.dcm",
    "test-SR.dcm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of the archive with its ground truth: a row of labels.csv."""

    file: str  #: relative to the archive
    sop_instance_uid: str
    study: str
    patient: str
    laterality: str
    view: str
    modality: str
    study_date: date
    birads: int
    density: str
    pathology: str
    lesion: str


def write_archive(
    folder: Path,
    studies: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    size: str = "small",
    plain: bool = False,
) -> list[Record]:
    """Write the archive to `folder`, byte for byte the same for the same arguments and libraries.

    Args:
        progress: called after each study with the number of written studies and the total.
        size: a key of SIZES.
        plain: Explicit VR Little Endian only, for measuring throughput.

    Raises:
        Invalid: fewer than one study, a negative seed, an unknown size.
        Conflict: the folder is not empty.
    """
    if studies < 1 or seed < 0 or size not in SIZES:
        raise Invalid(f"an archive needs at least one study, a seed of at least 0, and a size of {' or '.join(SIZES)}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Conflict("the folder is not empty: name a new or empty one for the sample archive")
    records: list[Record] = []
    for done, exam in enumerate(islice(exams(seed), studies), start=1):
        records += _write_exam(folder, exam, seed, size, plain=plain)
        if progress:
            progress(done, studies)
    write_labels(folder, records)
    write_carried(folder / "other")
    write_broken(folder / "broken", seed)
    return records


def write_labels(folder: Path, records: Iterable[Record]) -> None:
    with (folder / LABELS).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Record)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(record) for record in records)


def write_carried(folder: Path) -> list[Path]:
    """Copy files of the installed pydicom package and return the copies; a file that its version lacks is skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [PACKAGE_FILES / name for name in CARRIED if (PACKAGE_FILES / name).is_file()]
    return [Path(shutil.copyfile(path, folder / path.name)) for path in found]


def write_broken(folder: Path, seed: int) -> None:
    """Write three unreadable files: one is not DICOM, one is truncated in its pixels, one in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.dcm").write_text("These are notes, and no image, whatever the name says.\n" * 20, encoding="utf-8")
    exam = next(exams(seed))
    pixels = render(exam.breasts[0], "CC", 256, 200)
    for number, (name, keep) in enumerate((("cut-pixels.dcm", 0.5), ("cut-header.dcm", 0.008)), start=1):
        who = Identity(
            study_name=f"{seed}/broken/{number}",
            patient=f"SYN-{seed}-BROKEN{number}",
            side="R",
            view="CC",
            day=exam.day,
            birth_year=exam.birth_year,
            number=1,
        )
        save(dataset(pixels, who, SCANNERS[0]), folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * keep)])


def _write_exam(folder: Path, exam: Exam, seed: int, size: str, *, plain: bool) -> Iterator[Record]:
    scanner = SCANNERS[(exam.woman + exam.number) % len(SCANNERS)]
    if plain:
        scanner = replace(scanner, syntax=ExplicitVRLittleEndian)
    for record, who, pixels in images(exam, f"{seed}/{size}/{'plain' if plain else 'mixed'}", size):
        save(dataset(pixels, who, scanner), folder / record.file)
        yield record


def images(exam: Exam, flavour: str, size: str) -> Iterator[tuple[Record, Identity, Stored]]:
    """Yield the four views; `flavour` names the archive variant, so that different bytes get different UIDs."""
    seed = flavour.partition("/")[0]
    number = 0
    for breast, finding in zip(exam.breasts, exam.findings, strict=True):
        for view in VIEWS:
            number += 1
            who = Identity(
                study_name=f"{flavour}/{exam.woman}/{exam.number}",
                patient=f"SYN-{seed}-{exam.woman + 1:04d}",
                side=breast.side,
                view=view,
                day=exam.day,
                birth_year=exam.birth_year,
                number=number,
            )
            record = Record(
                file=f"mammography/woman-{exam.woman + 1:04d}/exam-{exam.number + 1}/{breast.side}-{view}.dcm",
                sop_instance_uid=who.instance,
                study=who.study,
                patient=who.patient,
                laterality=breast.side,
                view=view,
                modality="MG",
                study_date=exam.day,
                birads=finding.birads,
                density=breast.density,
                pathology=finding.pathology,
                lesion=finding.lesion,
            )
            yield record, who, render(breast, view, *SIZES[size])


def variants(folder: Path, files: int, seed: int, *, size: str = "full", women: int = 2) -> Iterator[Record]:
    """Write many distinct files quickly: the images of a few women, shifted and with other noise, under new UIDs.

    Explicit VR Little Endian, four images per study, one study per patient; files are written as the iterator
    advances. The caller writes the label table (`write_labels`) at the end.
    """
    scanner: Scanner = SCANNERS[0]
    templates = [image for exam in islice(exams(seed), women) for image in images(exam, f"{seed}/{size}", size)]
    rows, cols = SIZES[size]
    rng = np.random.default_rng([seed, 200])
    noise = rng.integers(0, 8, (2 * rows, cols), dtype=np.uint16)
    for n in range(files):
        record, who, pixels = templates[n % len(templates)]
        study = n // len(VIEWS) // 2
        who = replace(who, study_name=f"{seed}/{size}/variant/{study}", patient=f"SYN-{seed}-V{study:06d}")
        up, start = (int(v) for v in rng.integers(0, (rows // 32, rows)))
        moved = np.concatenate([pixels[up:], pixels[:up]])
        # noise in the three lowest of twelve bits, so that it cannot overflow, and not in the air
        moved ^= noise[start : start + rows] * (moved > 7)
        made = replace(
            record,
            file=f"mammography/{study // 250:04d}/{study:06d}/{who.side}-{who.view}.dcm",
            sop_instance_uid=who.instance,
            study=who.study,
            patient=who.patient,
        )
        save_plain(moved, who, scanner, folder / made.file)
        yield made


def count_by(records: Sequence[Record], field: str) -> dict[str, int]:
    """Return the number of records by value of a field, sorted by value."""
    values = sorted(str(getattr(record, field)) for record in records)
    return {value: values.count(value) for value in dict.fromkeys(values)}
