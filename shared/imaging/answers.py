"""What the sandbox answers, for both of its sides. Imports no codec: the parent never loads one."""

from dataclasses import dataclass

from shared.types import Header

MOST = 2**31 - 1  #: the largest number of a header: the columns that hold them are of four bytes
THUMBNAIL_SIDE = 256  #: pixels, the longest side


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A file as a folder scan needs it: no pixels were decoded."""

    header: Header | None
    digest: bytes  #: BLAKE3 of the file
    size: int  #: bytes
    kind: str  #: dicom, png or jpeg
