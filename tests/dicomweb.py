"""Test data for DICOMweb: small real DICOM files, and multipart bodies with them."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pydicom
import uvicorn
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.543"
MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"
BOUNDARY = "a-boundary"
RELATED = {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'}


def study_uid(study: int) -> str:
    return f"{ROOT}.{study}"


def sop_uid(study: int, n: int) -> str:
    return f"{ROOT}.{study}.1.{n}"


def instance(study: int = 1, n: int = 1, *, side: int = 64, **more: Any) -> bytes:
    """A mammogram of `side` pixels a side, with waves that differ between instances."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MAMMOGRAM, sop_uid(study, n)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = MAMMOGRAM, sop_uid(study, n)
    image.StudyInstanceUID, image.SeriesInstanceUID = study_uid(study), f"{ROOT}.{study}.1"
    image.PatientName, image.PatientID, image.PatientBirthDate = f"Secret^Woman{study}", f"SECRET-{study}", "19600101"
    image.StudyDate, image.StudyTime, image.AccessionNumber = f"2024{1 + study % 12:02}15", "120000", f"ACC{study}"
    image.Modality, image.Manufacturer, image.BodyPartExamined = "MG", "ACME", "BREAST"
    image.ImageLaterality, image.ViewPosition = "L" if n % 2 else "R", "CC" if n < 3 else "MLO"
    image.PresentationIntentType, image.ImageType = "FOR PRESENTATION", ["ORIGINAL", "PRIMARY"]
    image.Rows, image.Columns = side, side
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation, image.SamplesPerPixel = 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in more.items():
        setattr(image, keyword, value)
    y, x = np.mgrid[0:side, 0:side]
    waves = 2000 + 1500 * np.sin(x / (5 + study)) * np.cos(y / (3 + n))
    image.PixelData = waves.astype("<u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, image, enforce_file_format=True)
    return out.getvalue()


def related(*files: bytes, kind: str = "application/dicom") -> bytes:
    """The files as one multipart body."""
    parts = [f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + file + b"\r\n" for file in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Yield the address of a real server with the app, on a free port of loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
