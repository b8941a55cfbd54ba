"""Small and large synthetic DICOM files in every transfer syntax that Similis reads."""

import io
import struct
from pathlib import Path

import gdcm
import numpy as np
import openjpeg.utils
import pydicom.data
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from rle.utils import encode_pixel_data

ROOT = "1.2.840.10008.1.2"
EXPLICIT, IMPLICIT, BIG, DEFLATED = f"{ROOT}.1", ROOT, f"{ROOT}.2", f"{ROOT}.1.99"
JPEG, LOSSLESS, JPEG_LS, J2K, J2K_LOSSY, RLE = (
    f"{ROOT}.4.50",
    f"{ROOT}.4.70",
    f"{ROOT}.4.80",
    f"{ROOT}.4.90",
    f"{ROOT}.4.91",
    f"{ROOT}.5",
)
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
BUNDLED = Path(pydicom.data.__file__).parent / "test_files"


def breast(rows=2294, columns=1914, bits=12, seed=0, right=False):
    """A half-disc with texture and noise on a dark background, chest wall on the left unless `right`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    inside = ((y - rows / 2) / (rows * 0.42)) ** 2 + (x / (columns * 0.7)) ** 2
    coarse = rng.normal(size=(rows // 32 + 2, columns // 32 + 2)).astype(np.float32)
    texture = np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))
    picture = np.where(inside < 1, 0.35 + 0.4 * (1 - inside) + 0.08 * texture, 0.02)
    picture = picture + rng.normal(scale=0.004, size=picture.shape)
    values = (np.clip(picture, 0, 1) * ((1 << bits) - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    return values[:, ::-1].copy() if right else values


def dataset(values, **attributes):
    """A mammogram around (rows, cols[, 3]) or (frames, rows, cols) integers; attributes replace or add, None drops."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = MAMMOGRAPHY, "MG"
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    ds.PatientID, ds.StudyDate = "CANARY-4711", "20240102"
    colour = values.ndim == 3 and values.shape[-1] == 3
    if values.ndim == 3 and not colour:
        ds.NumberOfFrames = values.shape[0]
    ds.Rows, ds.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = values.dtype.itemsize * 8
    ds.BitsStored = ds.BitsAllocated
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.HighBit = ds.BitsStored - 1
    return ds


def file_of(ds, values, syntax=EXPLICIT):
    """Return the bytes of a Part 10 file that holds `values` in a transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", MAMMOGRAPHY)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3.1")
    if values is not None:
        frames = values if values.ndim - (ds.SamplesPerPixel == 3) == 3 else values[None]
        if syntax in (EXPLICIT, IMPLICIT, DEFLATED, BIG):
            order = frames.dtype.newbyteorder(">") if syntax == BIG else frames.dtype
            data = frames.astype(order).tobytes()
            ds.PixelData = data + b"\0" * (len(data) % 2)
        else:
            ds.PixelData = encapsulate([encoded(frame, ds, syntax) for frame in frames])
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def encoded(frame, ds, syntax):
    if syntax in (J2K, J2K_LOSSY):
        lossy = {"compression_ratios": [20]} if syntax == J2K_LOSSY else {}
        kind = 1 if ds.SamplesPerPixel == 3 else 2
        return openjpeg.utils.encode_array(frame, bits_stored=ds.BitsStored, photometric_interpretation=kind, **lossy)
    if syntax == JPEG_LS:
        return jpeg_ls(frame)
    if syntax == RLE:
        return encode_pixel_data(np.ascontiguousarray(frame).tobytes(), ds, "<")
    if syntax == JPEG:
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "JPEG", quality=92)
        return out.getvalue()
    if syntax == LOSSLESS:
        return jpeg_lossless(frame, ds.BitsStored)
    raise ValueError(syntax)


def jpeg_ls(frame):
    """Encode (rows, cols) of 8 or 16 bits by GDCM, without loss."""
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(frame.tobytes())
    image, bits = gdcm.Image(), 8 * frame.itemsize
    image.SetNumberOfDimensions(2)
    image.SetDimensions((*frame.shape[::-1], 1))
    image.SetPixelFormat(gdcm.PixelFormat(1, bits, bits, bits - 1, 0))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSLossless))
    change.SetInput(image)
    image.thisown = False  # `change` deletes it
    assert change.Change()
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    return fragment.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


def jpeg_lossless(frame, bits):
    """Encode by ITU-T T.81 process 14, selection value 1: each pixel as its difference from its left neighbour.

    One Huffman table gives each of the 17 difference sizes a code of five bits.
    """
    wide = frame.astype(np.int32)
    predicted = np.empty_like(wide)
    predicted[:, 1:] = wide[:, :-1]
    predicted[1:, 0] = wide[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    out = []
    for difference in (wide - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        extra = difference if difference >= 0 else difference + (1 << size) - 1
        out.append(f"{size:05b}" + (f"{extra:0{size}b}" if size else ""))
    stream = "".join(out)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = frame.shape
    return (
        b"\xff\xd8"
        + struct.pack(">HHBHHBBBB", 0xFFC3, 11, bits, rows, columns, 1, 1, 0x11, 0)
        + struct.pack(">HHB16B17B", 0xFFC4, 36, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17))
        + struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
        + scan
        + b"\xff\xd9"
    )
