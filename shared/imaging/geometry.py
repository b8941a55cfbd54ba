"""The attributes that describe the pixels, checked for consistency and against the limits before they are used."""

from dataclasses import dataclass

from shared.imaging.limits import Limits
from shared.imaging.read import Opened, number, text
from shared.imaging.reasons import Reason, hostile, undecodable

PHOTOMETRIC = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int  #: bits
    stored: int  #: bits
    below: int = 0  #: unused bits below the stored ones, in old files whose values occupy the top of the word
    signed: bool
    planar: bool  #: colour samples are stored plane by plane
    photometric: str
    floating: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame in the file (PS3.5 8.1.1; 1-bit frames are rounded up here)."""
        samples = 2 if self.subsampled else self.samples
        return -(-self.rows * self.columns * samples * self.allocated // 8)

    @property
    def subsampled(self) -> bool:
        return self.photometric == "YBR_FULL_422"

    @property
    def span(self) -> tuple[int, int]:
        """The least and the greatest value that the stored bits can represent."""
        half = 1 << (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def geometry_of(opened: Opened, limits: Limits) -> Geometry:
    """Return the checked description. Raises: `Rejected`: hostile if over a limit, undecodable if inconsistent."""
    ds = opened.dataset
    rows, columns = number(ds, "Rows") or 0, number(ds, "Columns") or 0
    frames = number(ds, "NumberOfFrames")
    frames = 1 if frames is None or frames == 0 else frames
    samples, allocated = number(ds, "SamplesPerPixel") or 1, number(ds, "BitsAllocated") or 0
    stored = number(ds, "BitsStored") or allocated
    photometric = text(ds, "PhotometricInterpretation", 16).upper()
    floating = opened.pixels is not None and opened.pixels.keyword != "PixelData"
    if rows < 1 or columns < 1 or frames < 1 or samples not in (1, 3):
        raise undecodable(Reason.GEOMETRY)
    if allocated not in ((32, 64) if floating else (1, 8, 16, 32)) or not 1 <= stored <= allocated:
        raise undecodable(Reason.GEOMETRY)
    below = (number(ds, "HighBit") or 0) + 1 - stored
    if photometric not in PHOTOMETRIC:
        raise undecodable(Reason.PHOTOMETRIC)
    if PHOTOMETRIC[photometric] != samples:
        raise undecodable(Reason.GEOMETRY)
    geometry = Geometry(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        allocated=allocated,
        stored=stored,
        below=below if 0 < below <= allocated - stored else 0,
        signed=(number(ds, "PixelRepresentation") or 0) == 1,
        planar=samples == 3 and (number(ds, "PlanarConfiguration") or 0) == 1,
        photometric=photometric,
        floating=floating,
    )
    _check(geometry, limits)
    return geometry


def _check(geometry: Geometry, limits: Limits) -> None:
    if max(geometry.rows, geometry.columns) > limits.side or geometry.pixels > limits.frame_pixels:
        raise hostile(Reason.SIDE)
    if geometry.frames > limits.frames:
        raise hostile(Reason.FRAMES)
    decoded = geometry.pixels * geometry.samples * -(-geometry.allocated // 8) * geometry.frames
    if decoded > limits.decoded_bytes:
        raise hostile(Reason.DECODED_SIZE)
