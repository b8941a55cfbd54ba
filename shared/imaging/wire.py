"""The messages between the sandbox child and its parent: a small JSON reply, and raw arrays in shared memory.

The parent does not trust the reply: a hostile file may have taken over the child. Every field is checked for type
and range, and every array against the size that the recipe fixes. The database accepts every reply that passes, so
that no file can fail the inserts of the others in its batch.
"""

import json
import math
import mmap
from dataclasses import asdict, fields
from datetime import date
from typing import Any

import numpy as np

from shared.errors import Gate, Outcome, Rejected
from shared.imaging.answers import MOST, THUMBNAIL_SIDE, Inspected
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe
from shared.types import Decoded, Header, PixelStats

REPLY_LIMIT = 64 * 1024
READY = bytes(4)  #: an answer of length 0: the child has started and is confined
_KINDS = ("dicom", "png", "jpeg")
_VOI = ("none", "lut", "window")


class Garbled(Exception):
    """The child's answer is malformed."""


def pack_job(recipe: Recipe | None) -> bytes:
    """Return the message that goes with a file's descriptor, and that of the memory for the answer's arrays.

    Without a recipe the file is only inspected, and there is no such memory.
    """
    return json.dumps(None if recipe is None else recipe.to_json()).encode()


def unpack_job(message: bytes) -> Recipe | None:
    data = json.loads(message)
    return None if data is None else Recipe.from_json(data)


def room_for(recipe: Recipe) -> int:
    """Return the bytes of shared memory that the largest answer needs."""
    return 4 * recipe.frames * recipe.size**2 + THUMBNAIL_SIDE**2


def pack_rejected(rejected: Rejected) -> bytes:
    gate = None if rejected.gate is None else rejected.gate.value
    return json.dumps({"rejected": [rejected.outcome.value, rejected.reason, gate]}).encode()


def pack_inspected(found: Inspected) -> bytes:
    return json.dumps({"inspected": [_header_json(found.header), found.digest.hex(), found.kind]}).encode()


def pack_decoded(decoded: Decoded, memory: mmap.mmap) -> bytes:
    """Copy the arrays into shared memory and return the rest."""
    pixels, thumbnail = decoded.pixels.tobytes(), decoded.thumbnail.tobytes()
    memory[: len(pixels)] = pixels
    memory[len(pixels) : len(pixels) + len(thumbnail)] = thumbnail
    reply = {
        "header": _header_json(decoded.header),
        "frames": decoded.frames,
        "thumbnail": decoded.thumbnail.shape,
        "stats": asdict(decoded.stats),
        "voi": decoded.voi,
        "reduced": decoded.reduced,
        "flipped": decoded.flipped,
    }
    return json.dumps({"decoded": reply}).encode()


def unpack(reply: bytes, recipe: Recipe | None, memory: mmap.mmap | None) -> Decoded | Inspected | Rejected:
    """Raises: `Garbled` for anything but a well-formed answer to the job."""
    try:
        data = json.loads(reply)
        if "rejected" in data:
            outcome, reason, gate = data["rejected"]
            return Rejected(Outcome(outcome), Reason(reason).value, None if gate is None else Gate(gate))
        if recipe is None:
            header, digest, kind = data["inspected"]
            return Inspected(header=_header(header), digest=_digest(digest), kind=_one_of(kind, _KINDS))
        return _decoded(data["decoded"], recipe, memory)
    except (Garbled, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise Garbled from None


def _decoded(data: dict[str, Any], recipe: Recipe, memory: mmap.mmap | None) -> Decoded:
    frames = tuple(_whole(number, MOST) for number in data["frames"])
    rows, columns = (_whole(side, THUMBNAIL_SIDE) for side in data["thumbnail"])
    if memory is None or not 1 <= len(frames) <= recipe.frames or min(rows, columns) < 1:
        raise Garbled
    count = len(frames) * recipe.size**2
    pixels = np.frombuffer(memory, dtype=np.float32, count=count).reshape(len(frames), recipe.size, recipe.size).copy()
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails too
        raise Garbled
    thumbnail = np.frombuffer(memory, dtype=np.uint8, count=rows * columns, offset=4 * count)
    stats = data["stats"]
    return Decoded(
        header=_header(data["header"]),
        frames=frames,
        pixels=pixels,
        thumbnail=thumbnail.reshape(rows, columns).copy(),
        stats=PixelStats(
            spread=_share(stats["spread"]),
            distinct=_whole(stats["distinct"], 65536),
            content=_share(stats["content"]),
            noise=_share(stats["noise"]),
        ),
        voi=_one_of(data["voi"], _VOI),
        reduced=_whole(data["reduced"], 1 << 14),
        flipped=_truth(data["flipped"]),
    )


def _header_json(header: Header) -> dict[str, Any]:
    data = asdict(header)
    data["study_date"] = None if header.study_date is None else header.study_date.isoformat()
    return data


_OPTIONAL = frozenset(("laterality", "view"))
_NUMBERS = frozenset(("rows", "columns", "frames", "bits_stored"))
_WORDS = frozenset(("view_modifiers", "image_type"))
_TRUTHS = frozenset(("implant", "burned_in"))


def _header(data: object) -> Header:
    if not isinstance(data, dict) or data.keys() != {field.name for field in fields(Header)}:
        raise Garbled
    return Header(**{name: _field(name, value) for name, value in data.items()})


def _field(name: str, value: Any) -> Any:  # noqa: ANN401 - one of the types of Header's fields
    if name == "study_date":
        return None if value is None else date.fromisoformat(value)
    if name in _WORDS:
        if len(value) > 64:
            raise Garbled
        return tuple(_text(word) for word in value)
    if name in _NUMBERS:
        return _whole(value, MOST)
    if name in _TRUTHS:
        return None if value is None else _truth(value)
    return None if value is None and name in _OPTIONAL else _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 128 or not value.isprintable():
        raise Garbled
    return value


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise Garbled
    return str(value)


def _whole(value: object, top: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
        raise Garbled
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise Garbled
    return value


def _share(value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value <= 1
    ):
        raise Garbled
    return float(value)


def _digest(value: object) -> bytes:
    digest = bytes.fromhex(_text(value))
    if len(digest) != 32:
        raise Garbled
    return digest
