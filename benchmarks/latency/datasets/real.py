"""`real:FOLDER@ENCODER`: images in the npz files of a folder, encoded by a model's folder or an architecture.

The modality of an image is the file that it comes from; its patient is unknown.
"""

import hashlib
import tempfile
from pathlib import Path

from benchmarks.latency.datasets.base import Made, held_out
from shared.errors import Invalid, NotFound


def make(text: str, queries: int, seed: int) -> Made:
    """The queries are images held out by `seed`."""
    from benchmarks.real import encode_radiographs

    folder, _, encoder = text.partition("@")
    if not encoder:
        raise Invalid("real data read real:FOLDER@ENCODER")
    if not Path(folder).is_dir():
        raise NotFound("there is no such folder of images")
    with tempfile.TemporaryDirectory() as scratch:
        rows, said = encode_radiographs(Path(folder), encoder, Path(scratch))
    kept, asked = held_out(rows, queries, seed)
    about = {"source": f"{said}; {len(asked)} held out by seed {seed}", "seed": seed}
    return Made(rows=rows[kept], queries=rows[asked], about=about)


def fingerprint(text: str) -> str:
    """The hash of every file of images and of the encoder."""
    folder, _, encoder = text.partition("@")
    files = [*Path(folder).rglob("*.npz"), *(path for path in Path(encoder).rglob("*") if path.is_file())]
    found = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
