"""What the receiver negotiates: images only, and only in encodings that the sandbox decodes.

A sender that has another encoding must then transcode, or say at once that it cannot; it is better told in the
negotiation than by a picture that nobody can read.
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
#: retired, and still sent by machines that are not
_RETIRED = tuple(_ROOT + tail for tail in ("3", "5", "6", "12.3", "77.1", "77.2"))
for _uid in _RETIRED:  # else a C-STORE of them would be told that it is no storage
    register_uid(_uid, f"RetiredImageStorage{_uid.removeprefix(_ROOT).replace('.', '_')}", StorageServiceClass)
_UNNAMED = (_ROOT + "6.2",)  #: Enhanced US Volume: an image whose name does not say so


def sop_classes() -> tuple[UID, ...]:
    """Storage SOP classes of images; no film, no report, no plan."""
    named = (
        uid
        for name, uid in _STORAGE_CLASSES.items()
        if "ImageStorage" in name and not name.startswith("Video") and not uid.startswith(_ROOT + "481.2")
    )
    return tuple(UID(uid) for uid in sorted({*named, *_UNNAMED}, key=_by_number))


def _by_number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def supported() -> list[PresentationContext]:
    """The presentation contexts that are accepted: storage of images, and Verification."""
    every: list[str | UID] = list(TRANSFER_SYNTAXES)
    storage = [build_context(uid, every) for uid in sop_classes()]
    plain: list[str | UID] = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    return [*storage, build_context(Verification, plain)]
