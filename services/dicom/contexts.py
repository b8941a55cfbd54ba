"""The presentation contexts of the receiver: image storage only, in transfer syntaxes that the sandbox decodes.

A sender with another transfer syntax learns in the negotiation, before it sends a file that could not be read, that
it must transcode.
"""

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import build_context, register_uid
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import _STORAGE_CLASSES, Verification  # type: ignore[attr-defined] # built at import

TRANSFER_SYNTAXES: tuple[UID, ...] = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K, RLELossless,
)  # fmt: skip

_ROOT = "1.2.840.10008.5.1.4.1.1."
#: retired SOP classes that some devices still send
_RETIRED = tuple(_ROOT + tail for tail in ("3", "5", "6", "12.3", "77.1", "77.2"))
for _uid in _RETIRED:  # else pynetdicom would not serve a C-STORE of these classes
    register_uid(_uid, f"RetiredImageStorage{_uid.removeprefix(_ROOT).replace('.', '_')}", StorageServiceClass)
_UNNAMED = (_ROOT + "6.2",)  #: Enhanced US Volume Storage, whose name lacks "Image"


def sop_classes() -> tuple[UID, ...]:
    """Storage SOP classes of images; no video, report or plan."""
    named = (
        uid
        for name, uid in _STORAGE_CLASSES.items()
        if "ImageStorage" in name and not name.startswith("Video") and not uid.startswith(_ROOT + "481.2")
    )
    return tuple(UID(uid) for uid in sorted({*named, *_UNNAMED}, key=_by_number))


def _by_number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def supported() -> list[PresentationContext]:
    """The accepted presentation contexts: image storage and Verification."""
    every: list[str | UID] = list(TRANSFER_SYNTAXES)
    storage = [build_context(uid, every) for uid in sop_classes()]
    plain: list[str | UID] = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    return [*storage, build_context(Verification, plain)]
