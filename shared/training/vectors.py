"""A model's vectors of labelled images, from a collection in memory or from a folder with a label table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.folder import LabelTable, Row, read_labels
from shared.encoder.base import Encoder
from shared.errors import Invalid
from shared.training.archive import Label, files_of, images_of, labelled, told
from shared.training.evaluate import Space
from shared.training.protocols import Subjects
from shared.types import Codes, Decoded, Embeddings, Pixels

BATCH = 64  #: images encoded at a time


@dataclass(frozen=True, slots=True)
class Vectors:
    embeddings: Embeddings
    codes: Codes | None  #: (n, bits / 8) if the model has a hash head

    def spaces(self, metrics: Iterable[str]) -> dict[str, Space]:
        """Return the embeddings under each requested metric (cosine, l2), and the codes if there are any."""
        wanted = set(metrics)
        found: dict[str, Space] = {}
        if "cosine" in wanted:
            found["cosine"] = Space("cosine", self.embeddings)
        if "l2" in wanted:
            found["l2"] = Space("l2", self.embeddings)
        if self.codes is not None:
            found["hamming"] = Space("hamming", self.codes)
        return found


def encode(encoder: Encoder, images: NDArray[np.uint8]) -> Vectors:
    """Return the model's vectors of (n, side, side) grey images, at the side that its recipe requires."""
    scaled = (np.asarray(images[at : at + BATCH], np.float32) / np.float32(255) for at in range(0, len(images), BATCH))
    return _joined(encoder, scaled)


def of_folder(encoder: Encoder, folder: Path, labels: Path, label: Label) -> tuple[Subjects, Vectors]:
    """Return the folder's labelled images and their vectors, by the platform's own decoding and the model's recipe.

    Each chosen frame of a file is an image. A file of an unknown patient has its study as the patient, and BI-RADS 0,
    which is not a point of the scale, counts as no label; the subjects' note has the numbers of both.

    Raises:
        NotFound: there is no such folder.
        Invalid: the table is malformed, or no file has a label.
    """
    table = read_labels(labels)
    counted: Counter[str] = Counter()
    kept: list[tuple[str, str, dict[str, str]]] = []

    def pixels() -> Iterator[Pixels]:
        for one in labelled(folder, table, label, encoder.card.recipe, counted):
            facts = (one.value, one.patient, _columns(one.row, one.decoded))
            kept.extend([facts] * len(one.decoded.pixels))
            yield one.decoded.pixels
        if not kept:
            raise Invalid(f"there is no image with a label: {told(counted) or 'no file in the folder is an image'}")

    vectors = _joined(encoder, pixels())
    return _subjects(kept, label, counted, table), vectors


def of_files(encoder: Encoder, folder: Path) -> tuple[list[tuple[Path, int]], Vectors, str]:
    """Return file and frame of every image below the folder, the vectors, and a text on the files left out.

    Raises: `NotFound` if there is no such folder, `Invalid` if it holds no image.
    """
    counted: Counter[str] = Counter()
    rows: list[tuple[Path, int]] = []

    def pixels() -> Iterator[Pixels]:
        for path, decoded in images_of(files_of(folder), encoder.card.recipe, counted):
            rows.extend((path, frame) for frame in decoded.frames)
            yield decoded.pixels

    vectors = _joined(encoder, pixels())
    return rows, vectors, told(counted)


def _joined(encoder: Encoder, batches: Iterable[Pixels]) -> Vectors:
    """Encode and concatenate the batches. Raises: `Invalid` if there is no image."""
    embeddings, codes = [], []
    for batch in batches:
        found = encoder.encode(batch)
        embeddings.append(found.embeddings)
        if found.codes is not None:
            codes.append(found.codes)
    if not embeddings:
        raise Invalid("there is no image")
    return Vectors(np.concatenate(embeddings), np.concatenate(codes) if codes else None)


def _columns(row: Row, decoded: Decoded) -> dict[str, str]:
    header = decoded.header
    return {
        "modality": row.modality or header.modality,
        "view": row.view or header.view or "",
        "laterality": row.laterality or header.laterality or "",
    }


def _subjects(
    kept: Sequence[tuple[str, str, dict[str, str]]], label: Label, counted: Counter[str], table: LabelTable
) -> Subjects:
    classes = tuple(sorted({value for value, _, _ in kept}))
    _, groups = np.unique([patient for _, patient, _ in kept], return_inverse=True)
    grades = None
    if label == "birads":
        grades = np.array([int(value) for value in classes])
    elif label == "density":
        grades = np.array(["ABCD".index(value) for value in classes])  # from 0, because 1 to 6 mean BI-RADS
    note = told(counted)
    return Subjects(
        name=f"folder, {label}",
        labels=np.array([classes.index(value) for value, _, _ in kept]),
        classes=classes,
        groups=groups,
        grades=grades,
        columns={name: np.array([columns[name] for _, _, columns in kept]) for name in kept[0][2]},
        note=f"{len(table)} rows in the table{'; ' * bool(note)}{note}",
    )
