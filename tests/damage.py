"""Seeded damage to good DICOM files, and hostile files. The same seed gives the same bytes."""

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom.data

BUNDLED = Path(pydicom.data.__file__).parent / "test_files"
PIXEL_DATA = b"\xe0\x7f\x10\x00"
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
ROOT = "1.2.840.10008.1.2"
SYNTAXES = (
    "",
    ".1",
    ".2",
    ".1.99",
    ".4.50",
    ".4.51",
    ".4.57",
    ".4.70",
    ".4.80",
    ".4.81",
    ".4.90",
    ".4.91",
    ".4.203",
    ".5",
)


def seeds() -> list[Path]:
    """Return the small DICOM files of the pydicom package, also those without the extension .dcm."""
    found = sorted(path for path in BUNDLED.rglob("*") if path.is_file() and path.stat().st_size < 250_000)
    return [path for path in found if path.suffix == ".dcm" or b"DICM" in path.read_bytes()[:132]]


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield (description of the damage and the file, bytes)."""
    rng = random.Random(seed)
    originals = [(path.name, path.read_bytes()) for path in seeds()]
    for _ in range(count):
        name, data = rng.choice(originals)
        damage = rng.choice(DAMAGES)
        yield f"{damage.__name__} {name}", damage(rng, data)


def flip(rng: random.Random, data: bytes) -> bytes:
    """Overwrite some bytes anywhere."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 40)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def flip_header(rng: random.Random, data: bytes) -> bytes:
    """Overwrite some bytes before the pixel data."""
    end = max(data.find(PIXEL_DATA), 200)
    out = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        out[rng.randrange(132, max(133, min(end, len(out))))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def flip_codestream(rng: random.Random, data: bytes) -> bytes:
    """Overwrite bytes near the start of the pixel data, where codestreams have their headers."""
    start = max(data.rfind(PIXEL_DATA), 0) + 12
    out = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        out[min(len(out) - 1, start + int(rng.expovariate(1 / 60)))] = rng.randrange(256)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def lie_about_a_length(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    pos = rng.randrange(132, max(133, len(out) - 4))
    out[pos : pos + 4] = struct.pack("<I", rng.choice((0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFF0, 0x7FFFFFFF, 0x10000, 0)))
    return bytes(out)


def mislabel(rng: random.Random, data: bytes) -> bytes:
    """Put another transfer syntax into the file meta information."""
    at = data.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return data
    length = struct.unpack_from("<H", data, at + 6)[0]
    value = (ROOT + rng.choice(SYNTAXES)).encode()
    value += b"\0" * (len(value) % 2)
    return data[: at + 6] + struct.pack("<H", len(value)) + value + data[at + 8 + length :]


def inflate_geometry(rng: random.Random, data: bytes) -> bytes:
    """Claim another number of rows, columns, bits or samples."""
    out = bytearray(data)
    for tag in (
        b"\x28\x00\x10\x00",
        b"\x28\x00\x11\x00",
        b"\x28\x00\x00\x01",
        b"\x28\x00\x02\x00",
        b"\x28\x00\x03\x01",
    ):
        at = data.find(tag)
        if at > 0 and rng.random() < 0.5:
            value = rng.choice((0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 1000, 16384, 65535))
            out[at + 8 : at + 10] = struct.pack("<H", value)
    return bytes(out)


def duplicate(rng: random.Random, data: bytes) -> bytes:
    """Repeat a stretch of bytes, or swap two."""
    a, b = sorted(rng.randrange(132, max(133, len(data))) for _ in range(2))
    piece = data[a:b]
    return data[:b] + piece[:4096] + data[b:] if rng.random() < 0.5 else data[:a] + piece[::-1] + data[b:]


def insert_sequences(rng: random.Random, data: bytes) -> bytes:
    """Insert nested sequences of undefined length before the pixel data."""
    at = max(data.find(PIXEL_DATA), 0)
    return data[:at] + nested(rng.randint(1, 400)) + data[at:]


DAMAGES = (
    flip,
    flip_header,
    flip_codestream,
    cut,
    lie_about_a_length,
    mislabel,
    inflate_geometry,
    duplicate,
    insert_sequences,
)


def element(group: int, number: int, vr: bytes, value: bytes, claimed: int | None = None) -> bytes:
    """Return an explicit little endian element; `claimed` replaces the value's length in its header."""
    value += b"\0" * (len(value) % 2)
    length = len(value) if claimed is None else claimed
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sHI", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


def part10(body: bytes, syntax: str = f"{ROOT}.1", meta: bytes = b"") -> bytes:
    meta += element(2, 0x0010, b"UI", syntax.encode())
    return b"\0" * 128 + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


def identity(modality: bytes = b"CT") -> bytes:
    return (
        element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2")
        + element(8, 0x18, b"UI", b"1.2.3.4")
        + element(8, 0x60, b"CS", modality)
        + element(0x20, 0x0D, b"UI", b"1.2.3.5")
        + element(0x20, 0x0E, b"UI", b"1.2.3.6")
    )


def description(rows: int, columns: int, *, samples: int = 1, frames: int | None = None) -> bytes:
    def short(number: int, value: int) -> bytes:
        return element(0x28, number, b"US", struct.pack("<H", value))

    return (
        short(2, samples)
        + element(0x28, 4, b"CS", b"MONOCHROME2" if samples == 1 else b"RGB")
        + (short(6, 0) if samples > 1 else b"")
        + (element(0x28, 8, b"IS", str(frames).encode()) if frames is not None else b"")
        + short(0x10, rows)
        + short(0x11, columns)
        + short(0x100, 8)
        + short(0x101, 8)
        + short(0x102, 7)
        + short(0x103, 0)
    )


def fragments(*streams: bytes) -> bytes:
    padded = [stream + b"\0" * (len(stream) % 2) for stream in streams]
    items = b"".join(ITEM + struct.pack("<I", len(stream)) + stream for stream in (b"", *padded))
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items + SEQUENCE_END + b"\0\0\0\0"


def nested(levels: int) -> bytes:
    opening = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + ITEM + b"\xff\xff\xff\xff"
    closing = ITEM_END + b"\0\0\0\0" + SEQUENCE_END + b"\0\0\0\0"
    return opening * levels + closing * levels


def deep_file(levels: int) -> bytes:
    return part10(identity() + nested(levels) + description(8, 8) + element(0x7FE0, 0x10, b"OW", bytes(64)))


def crowded_file(elements: int) -> bytes:
    """A file with this many empty private elements."""
    crowd = b"".join(struct.pack("<HH2sH", 0x0009 + 2 * (i >> 16), i & 0xFFFF, b"LO", 0) for i in range(elements))
    return part10(identity() + crowd + description(8, 8) + element(0x7FE0, 0x10, b"OW", bytes(64)))


def deflate_bomb(size: int) -> bytes:
    """A deflated data set with `size` zeros in a private element; it inflates to more than 200 times its size."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = [packer.compress(identity() + struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, size))]
    chunk = bytes(1 << 20)
    out += [packer.compress(chunk) for _ in range(size >> 20)]
    out.append(packer.flush())
    return part10(b"".join(out), syntax=f"{ROOT}.1.99")


def rle_bomb() -> bytes:
    """A file of a kilobyte whose header describes a colour picture of 12 GiB."""
    header = struct.pack("<16I", 3, 64, 66, 68, *[0] * 12)
    stream = header + b"\x81\x00" * 3
    return part10(identity() + description(65535, 65535, samples=3) + fragments(stream), syntax=f"{ROOT}.5")


def j2k_bomb(rows: int, columns: int) -> bytes:
    """A file whose JPEG 2000 codestream header says 20,000 x 20,000, whatever its rows and columns."""
    side = 20_000
    siz = struct.pack(">HHIIIIIIIIH3B", 41, 0, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1)
    stream = b"\xff\x4f\xff\x51" + siz + b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01" + bytes(64)
    return part10(identity() + description(rows, columns) + fragments(stream), syntax=f"{ROOT}.4.90")


def lying_file(claimed: int) -> bytes:
    """A file with an element of a few bytes that claims a length of `claimed`."""
    return part10(identity() + element(9, 0x1001, b"OB", b"1234", claimed=claimed))


def picture_file(rows: int, columns: int, *, frames: int | None = None, data: bytes) -> bytes:
    body = identity() + description(rows, columns, frames=frames)
    return part10(body + element(0x7FE0, 0x10, b"OB", data))
