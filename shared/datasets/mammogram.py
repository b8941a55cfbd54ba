"""A phantom as a DICOM file: Digital Mammography X-Ray Image, for presentation, with the attributes that readers use.

Source: DICOM PS3.3 A.26 (IOD), C.8.11.1 to C.8.11.7 (DX and mammography modules), PS3.16 CID 4014 (views).
"""

import struct
import uuid
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from shared.datasets.phantom import FIELD_MM, TOP, Stored

NAMES = uuid.UUID("5f1d7c1e-52f6-5c39-9f0a-0d5c1a0b6d11")
#: pydicom's encoder for each compressed transfer syntax
PLUGINS = {RLELossless: "pylibjpeg", JPEG2000Lossless: "pylibjpeg"}
if find_spec("jpeg_ls"):  # pyjpegls has no wheels for Python 3.14
    PLUGINS[JPEGLSLossless] = "pyjpegls"
VIEWS = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
#: directions of rows and columns; chest wall to the left for L, to the right for R
ORIENTATIONS = {("L", "CC"): "A\\R", ("R", "CC"): "P\\L", ("L", "MLO"): "A\\FR", ("R", "MLO"): "P\\FL"}


@dataclass(frozen=True, slots=True)
class Scanner:
    """The properties that differ between scanners and must not change a search result."""

    name: str
    syntax: UID
    inverted: bool  #: MONOCHROME1
    voi: str  #: window, windows (two of them), sigmoid or lut


SCANNERS = (
    Scanner("phantom-1", ExplicitVRLittleEndian, inverted=False, voi="window"),
    Scanner("phantom-2", JPEG2000Lossless, inverted=True, voi="window"),
    Scanner("phantom-3", RLELossless, inverted=False, voi="lut"),
    Scanner("phantom-4", JPEGLSLossless if JPEGLSLossless in PLUGINS else RLELossless, inverted=True, voi="sigmoid"),
    Scanner("phantom-5", ImplicitVRLittleEndian, inverted=False, voi="windows"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Patient, study and view of an image; every UID is derived from `study_name`, side, view and number."""

    study_name: str
    patient: str
    side: str
    view: str
    day: date
    birth_year: int
    number: int

    @property
    def study(self) -> str:
        return uid(self.study_name)

    @property
    def instance(self) -> str:
        return uid(f"{self.study_name}/{self.side}{self.view}/{self.number}")


def uid(name: str) -> str:
    """Return the UID of a name, always the same, under the root 2.25, which needs no registration."""
    return f"2.25.{uuid.uuid5(NAMES, name).int}"


def dataset(pixels: Stored, identity: Identity, scanner: Scanner) -> Dataset:
    """Return a complete data set, compressed in the scanner's transfer syntax.

    Args:
        pixels: as `phantom.render` returns them; stored inverted if the scanner stores MONOCHROME1.
    """
    ds = _header(identity, scanner)
    stored = _describe_pixels(ds, pixels, scanner)
    ds.add_new("PixelData", "OW", stored.tobytes())
    if scanner.syntax in PLUGINS:
        ds.compress(scanner.syntax, encoding_plugin=PLUGINS[scanner.syntax], generate_instance_uid=False)
    return ds


def save(ds: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def save_plain(pixels: Stored, identity: Identity, scanner: Scanner, path: Path) -> None:
    """Write the same file as `save`, for Explicit VR Little Endian only, without copying the pixels."""
    ds = _header(identity, scanner)
    stored = _describe_pixels(ds, pixels, scanner)
    before = BytesIO()
    ds.save_as(before, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        file.write(before.getvalue() + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, stored.nbytes))
        file.write(np.ascontiguousarray(stored).data)


def _header(identity: Identity, scanner: Scanner) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = scanner.syntax if scanner.syntax not in PLUGINS else ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = UID(identity.instance)
    _describe_exam(ds, identity, scanner)
    _describe_image(ds, identity)
    return ds


def _describe_exam(ds: Dataset, identity: Identity, scanner: Scanner) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    ds.SOPInstanceUID = identity.instance
    ds.StudyInstanceUID = identity.study
    ds.SeriesInstanceUID = uid(f"{identity.study_name}/series")
    ds.PatientName = f"SYNTHETIC^{identity.patient}"
    ds.PatientID = identity.patient
    ds.PatientBirthDate = f"{identity.birth_year}0101"
    ds.PatientSex = "F"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = identity.day.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"0900{identity.number % 60:02d}"
    ds.StudyID = "1"
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Synthetic screening mammography"
    ds.SeriesNumber = 1
    ds.InstanceNumber = identity.number
    ds.Modality = "MG"
    ds.Manufacturer = "Similis"
    ds.ManufacturerModelName = scanner.name
    ds.SoftwareVersions = "1"
    ds.DeviceSerialNumber = scanner.name


def _describe_image(ds: Dataset, identity: Identity) -> None:
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageLaterality = identity.side
    ds.ViewPosition = identity.view
    ds.PatientOrientation = ORIENTATIONS[identity.side, identity.view].split("\\")
    view = _code(*VIEWS[identity.view])
    view.ViewModifierCodeSequence = Sequence()
    ds.ViewCodeSequence = Sequence([view])
    ds.AnatomicRegionSequence = Sequence([_code("76752008", "Breast")])
    ds.BodyPartExamined = ds.OrganExposed = "BREAST"
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.PositionerPrimaryAngle = {"CC": 0, "MLO": 45 if identity.side == "R" else -45}[identity.view]
    ds.BreastImplantPresent = "NO"
    ds.PartialView = "NO"
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.AcquisitionContextSequence = Sequence()
    ds.DetectorType = "DIRECT"
    ds.KVP = "29"
    ds.EstimatedRadiographicMagnificationFactor = "1"


def _describe_pixels(ds: Dataset, pixels: Stored, scanner: Scanner) -> Stored:
    """Set all attributes of `ds` except the pixels, and return the pixels as they will be stored."""
    stored = (TOP - pixels).astype("<u2") if scanner.inverted else pixels.astype("<u2", copy=False)
    ds.Rows, ds.Columns = stored.shape
    spacing = f"{FIELD_MM / stored.shape[0]:.4f}"
    ds.PixelSpacing = ds.ImagerPixelSpacing = [spacing, spacing]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if scanner.inverted else "IDENTITY"  # PS3.3 C.8.11.3: required to match
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if scanner.inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    _describe_voi(ds, scanner)
    return stored


def _describe_voi(ds: Dataset, scanner: Scanner) -> None:
    if scanner.voi == "lut":
        ds.VOILUTSequence = Sequence([_lut()])
        return
    middle, width = ("2047", "4096") if scanner.voi != "sigmoid" else ("2047", "3600")
    several = scanner.voi == "windows"
    ds.WindowCenter = [middle, "1600"] if several else middle
    ds.WindowWidth = [width, "2600"] if several else width
    ds.VOILUTFunction = "SIGMOID" if scanner.voi == "sigmoid" else "LINEAR"
    ds.WindowCenterWidthExplanation = ["NORMAL", "HARDER"] if several else "NORMAL"


def _lut() -> Dataset:
    """Return a slight S curve, 4096 entries of 12 bits."""
    x = np.linspace(0, 1, TOP + 1)
    curve: NDArray[np.uint16] = ((0.6 * x + 0.4 * x * x * (3 - 2 * x)) * TOP).astype("<u2")
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [TOP + 1, 0, 12])
    item.LUTExplanation = "NORMAL"
    item.add_new("LUTData", "OW", curve.tobytes())
    return item


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "SCT"
    item.CodeMeaning = meaning
    return item
