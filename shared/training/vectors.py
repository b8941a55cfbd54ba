"""Labelled images and what a model makes of them: from a collection in memory, or from a folder with a table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.collection import Collection
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
    codes: Codes | None  #: (n, bits / 8) of a model with a hash head

    def spaces(self, metrics: Iterable[str]) -> dict[str, Space]:
        """The embeddings under each of cosine and l2 that is asked for, and the codes where there are any."""
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
    """What the model makes of (n, side, side) grey images of the side that its recipe asks for."""
    scaled = (np.asarray(images[at : at + BATCH], np.float32) / np.float32(255) for at in range(0, len(images), BATCH))
    return _joined(encoder, scaled)


def of_collection(
    encoder: Encoder, data: Collection, grades: NDArray[np.int64] | None = None
) -> tuple[Subjects, Vectors]:
    return Subjects.of(data, grades), encode(encoder, data.images)


def of_folder(encoder: Encoder, folder: Path, labels: Path, label: Label) -> tuple[Subjects, Vectors]:
    """The files below the folder that the table has a label for, through the platform's own decoding and recipe.

    Of a file with several frames each chosen one is an image. Where a file's patient is not known its study stands for
    one, and BI-RADS 0, which is no point of the scale, counts as no label; the subjects' note says how many.

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
    """Every image below the folder: file and frame of each row, the vectors, and what was left out, in words.

    Raises: `NotFound` where there is no such folder, `Invalid` where it holds no image.
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
    """Raises: `Invalid` where there is no image."""
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
        grades = np.array(["ABCD".index(value) for value in classes])  # from 0: 1 to 6 are categories of BI-RADS
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
