"""Synthetic downloads of published sets in their real layouts."""

import csv
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from openpyxl import Workbook
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

COLUMNS = (
    "Image_name", "Patient_ID", "Side", "Type", "Age", "Breast density (ACR)", "BIRADS", "Findings", "View", "Tags",
    "Machine", "Pathology Classification/ Follow up",
)  # fmt: skip
LOW, SUBTRACTED = "Low energy images of CDD-CESM", "Subtracted images of CDD-CESM"
WORKBOOK = "Radiology-manual-annotations.xlsx"


def picture(path: Path, seed: int = 0) -> None:
    """Write a small grey picture; each seed gives a different one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:1:96j, 0:1:80j]
    rng = np.random.default_rng(seed)
    grey = np.exp(-((x - rng.uniform(0, 0.4)) ** 2 + (y - 0.5) ** 2) / rng.uniform(0.1, 0.4)) * 200
    grey += rng.uniform(0, 20, grey.shape)
    Image.fromarray(grey.astype(np.uint8)).save(path, "JPEG")


def row(name: str, birads: object = 1, **more: object) -> dict[str, object]:
    """A row of the sheet `all`; its other columns follow from the name."""
    patient, side, kind, view = name.strip().split("_")
    said = {
        "Image_name": name, "Patient_ID": int(patient[1:]), "Side": side, "Type": "DM" if kind == "DM" else "CESM",
        "Age": 50, "Breast density (ACR)": "C" if kind == "DM" else "_", "BIRADS": birads, "Findings": "Mass",
        "View": view, "Tags": "", "Machine": "A", "Pathology Classification/ Follow up": "Normal",
    }  # fmt: skip
    return said | more


def workbook(path: Path, rows: Sequence[Mapping[str, object]], sheet: str = "all") -> None:
    book = Workbook()
    first = book.active
    assert first is not None
    first.title = "mass_description"
    first.append(["Image_name", "Mass shape"])
    page = book.create_sheet(sheet)
    page.append(COLUMNS)
    for said in rows:
        page.append([said[column] for column in COLUMNS])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def spoil(path: Path, member: str) -> None:
    """Corrupt the deflated data of this member of the zip file."""
    with zipfile.ZipFile(path) as packed:
        start = packed.getinfo(member).header_offset + 30 + len(member)
    data = bytearray(path.read_bytes())
    data[start : start + 24] = b"\xff" * 24
    path.write_bytes(data)


def cdd_cesm(root: Path, names: Mapping[str, object] | None = None, **more: object) -> Path:
    """Write images and a workbook; `names` maps names to BI-RADS cells, by default two women with both breasts."""
    names = names or {
        f"P{p}_{side}_{kind}_{view}": birads
        for p, birads in ((1, 2), (2, 5))
        for side in "LR"
        for kind in ("DM", "CM")
        for view in ("CC", "MLO")
    }
    for seed, name in enumerate(names):
        picture(root / (LOW if "_DM_" in name else SUBTRACTED) / f"{name}.jpg", seed)
    workbook(root / WORKBOOK, [row(name, birads, **more) for name, birads in names.items()])
    return root


def docx(path: Path, lines: Iterable[str], head: str = "") -> None:
    """Write a Word document with one paragraph per line; `head` precedes its root element."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{escape(line)}</w:t></w:r></w:p>" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        xml = f'<?xml version="1.0"?>{head}<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>'
        packed.writestr("word/document.xml", xml)


def table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows])


def dicom(path: Path, pixels: np.ndarray, number: int = 1, **more: object) -> None:
    """A small mammogram of 8 bits."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", f"1.2.826.0.1.3680043.9.7.{number}"
    ds.StudyInstanceUID = ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.9.8.{number}"
    ds.Modality, ds.PatientID = "MG", "removed"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = pixels.astype(np.uint8).tobytes()
    for name, value in more.items():
        setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def noise(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side))
