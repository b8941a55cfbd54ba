"""A contact sheet of the shipped model: queries on the left, then the images most like each of them.

The archive consists of the synthetic mammograms of the sample archive and of every image in the installed pydicom
package, decoded and prepared as the platform does. A query's own patient is hidden, and so are copies: the same
picture in another transfer syntax.

    python -m benchmarks.retrieval.contact_sheet --model models/similis-base --out docs/contact-sheet.png
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from benchmarks.retrieval.base import loaded
from shared.datasets.archive import PACKAGE_FILES, write_archive
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.types import Decoded

HITS = 6
COPY = 0.995  #: correlation of pixels above which two images count as copies
SEED = 5
#: queries: kinds of phantoms (density, finding), and files of pydicom
QUERIES = (
    *("A none", "B spiculated", "C mass", "D none"),
    *("examples_overlay.dcm", "examples_rgb_color.dcm", "693_J2KI.dcm"),
)

Unit = NDArray[np.float32]  #: (n, dim)


@dataclass(frozen=True, slots=True)
class Image:
    pixels: NDArray[np.float32]  #: (side, side)
    kind: str  #: density and finding of a phantom, or a file name
    patient: str
    caption: str


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _options(arguments)
    encoder = loaded(asked.model, asked.scratch)
    with TemporaryDirectory() as folder:
        images = [*_phantoms(Path(folder) / "archive", asked.studies, encoder.card.recipe)]
    images += _carried(encoder.card.recipe)
    embeddings = encoder.encode(np.stack([image.pixels for image in images])).embeddings
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    queries = [n for kind in QUERIES for n, image in enumerate(images) if image.kind == kind]
    first = {images[n].kind: n for n in reversed(queries)}
    draw(images, unit, {first[kind]: hits(images, unit, first[kind]) for kind in QUERIES if kind in first}, asked.out)
    print(f"{asked.out}: {len(images)} images")


def hits(images: Sequence[Image], unit: Unit, query: int, most: int = HITS) -> list[int]:
    """The most similar images of other patients, one per patient, without copies of the query or of each other."""
    scores = unit @ unit[query]
    shown: list[int] = []
    for row in map(int, np.argsort(-scores, kind="stable")):
        before = [images[n] for n in (query, *shown)]
        if not any(other.patient == images[row].patient or _same(other, images[row]) for other in before):
            shown.append(row)
        if len(shown) == most:
            break
    return shown


def _same(one: Image, other: Image) -> bool:
    a, b = (image.pixels - image.pixels.mean() for image in (one, other))
    return bool((a * b).sum() > COPY * np.linalg.norm(a) * np.linalg.norm(b))


def draw(images: Sequence[Image], unit: Unit, found: dict[int, list[int]], out: Path) -> None:
    """Write a picture with one row per query; hits are labelled with their cosine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.55 * (HITS + 1), 1.85 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), HITS + 1, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (query, near) in zip(grid, found.items(), strict=True):
        for axes, row in zip(line, [query, *near], strict=False):
            axes.imshow(images[row].pixels, cmap="gray", vmin=0, vmax=1)
            score = "asked" if row == query else f"{unit[row] @ unit[query]:.2f}"
            axes.set_title(f"{score}\n{images[row].caption}", fontsize=6)
    out.parent.mkdir(parents=True, exist_ok=True)
    painted = BytesIO()
    FigureCanvasAgg(figure).print_figure(painted, dpi=100)
    Picture.open(painted).convert("L").quantize(64).save(out, optimize=True)


def _phantoms(archive: Path, studies: int, recipe: Recipe) -> Iterator[Image]:
    records = write_archive(archive, studies, SEED)
    for record, decoded in zip(records, _decoded([archive / record.file for record in records], recipe), strict=True):
        if decoded:
            kind = f"{record.density} {record.lesion}"
            caption = f"{record.laterality}-{record.view} {kind}"
            yield Image(decoded.pixels[0], kind, record.patient, caption)


def _carried(recipe: Recipe) -> Iterator[Image]:
    """The middle frame of each readable image of pydicom; each counts as a patient of its own."""
    paths = sorted(PACKAGE_FILES.rglob("*.dcm"))
    for path, decoded in zip(paths, _decoded(paths, recipe), strict=True):
        if decoded:
            caption = f"{decoded.header.modality} {path.name[:22]}"
            yield Image(decoded.pixels[len(decoded.pixels) // 2], path.name, str(path), caption)


def _decoded(paths: Sequence[Path], recipe: Recipe) -> Iterator[Decoded | None]:
    with Sandbox() as sandbox:
        for answer in sandbox.decode_many(paths, recipe):
            yield answer if isinstance(answer, Decoded) else None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/similis-base"))
    parser.add_argument("--out", type=Path, default=Path("docs/contact-sheet.png"))
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--scratch", type=Path, default=Path(gettempdir()) / "similis-base")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
