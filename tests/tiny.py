"""Small but real DICOM files in large numbers."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SIDE = 128


def write(path: Path, study: int, image: int, *, version: int = 0) -> str:
    """A mammogram-like picture whose content depends on study, image and version; returns its SOP Instance UID."""
    rng = np.random.default_rng((study, image, version))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    cy, cx, spread = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.2)
    picture = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / spread) + 0.3 * np.sin(x * rng.uniform(5, 20))
    picture = (picture - picture.min()) / np.ptp(picture) * 4000
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    ds.SOPInstanceUID = f"1.2.826.0.1.3680043.9.{study + 1}.{image + 1}"
    ds.StudyInstanceUID = f"1.2.826.0.1.3680043.8.{study + 1}"
    ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.7.{study + 1}"
    ds.Modality, ds.PatientID, ds.StudyDate = "MG", f"TINY-{study // 2}", "20240506"
    ds.ImageLaterality, ds.ViewPosition = ("L", "R")[image % 2], ("CC", "MLO")[image // 2 % 2]
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.Rows = ds.Columns = SIDE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = picture.astype("<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return str(ds.SOPInstanceUID)


def archive(folder: Path, studies: int, *, first: int = 0) -> dict[str, Path]:
    """Many studies of two images in one folder, numbered from `first`; returns the files by SOP Instance UID."""
    folder.mkdir(parents=True, exist_ok=True)
    sent = {}
    for study in range(first, first + studies):
        for image in range(2):
            path = folder / f"{study:05}-{image}.dcm"
            sent[write(path, study, image)] = path
    return sent
