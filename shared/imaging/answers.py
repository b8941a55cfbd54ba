"""The sandbox's answers, for child and parent. Imports no codec: the parent never loads one."""

from dataclasses import dataclass

from shared.types import Header

MOST = 2**31 - 1  #: the largest number of a header: the database columns have four bytes
THUMBNAIL_SIDE = 256  #: pixels, the longest side


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What intake needs of a file, without decoded pixels."""

    header: Header
    digest: bytes  #: BLAKE3 of the file
    kind: str  #: dicom, png or jpeg
