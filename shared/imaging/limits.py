"""The resources that one file may use. A file over any limit is treated as hostile and quarantined at once."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    file_bytes: int = 512 * MIB
    meta_bytes: int = 64 * 1024
    elements: int = 200_000  #: multi-frame objects have up to a hundred for each frame
    depth: int = 32
    element_bytes: int = 16 * MIB  #: of one value outside the pixel data
    header_bytes: int = 64 * MIB  #: of all values outside the pixel data together
    deflated_bytes: int = 256 * MIB
    deflate_ratio: int = 200
    side: int = 16_384
    frame_pixels: int = 64 * MIB
    frames: int = 4_096
    decoded_bytes: int = 1024 * MIB  #: rows x cols x samples x bytes x frames, computed before anything is decoded
    fragments: int = 65_536
    cpu_s: int = 20  #: processor time of one file
    wall_s: float = 30.0  #: after this the child is killed; if it only waited, the share is to blame, not the file
    files: int = 500  #: a child is replaced after this many
    address_bytes: int = 2048 * MIB  #: hard limit of the child's address space
    working_bytes: int = 256 * MIB  #: address space beyond the idle child's, before the picture's own needs are added
