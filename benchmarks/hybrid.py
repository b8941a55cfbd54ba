"""Recall of hybrid search: of the ten nearest images by cosine, how many lie in the Hamming ball of codes.

`python -m benchmarks.hybrid [--real FOLDER]`. A hybrid search asks the index for `shared.pipeline.hashes.WIDE` times as
many codes as a dense search asks for images, and ranks them by embedding; it cannot find an image outside the ball.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.clustered import clustered
from benchmarks.real import enlarged
from shared.encoder.hashing import codes, fit_hash
from shared.encoder.runtime import load
from shared.index.codes import ball, padded
from shared.pipeline.ask import LEAST_DEPTH
from shared.pipeline.hashes import WIDE
from shared.types import Codes, Embeddings

SEED, COUNT, DIM, FITTED, ASKED, K = 7, 100_000, 1024, 4000, 200, 10
BITS = (64, 128, 256)
BASE = Path(__file__).parent.parent / "models" / "similis-base"


class Coded(NamedTuple):
    name: str
    rows: Embeddings  #: unit vectors
    codes: Codes


def drawn() -> Iterator[Coded]:
    """Clustered vectors with codes fitted on other vectors of the mixture, as `similis models hash` does."""
    made = clustered(COUNT + FITTED, DIM, SEED)
    rows, others = made[:COUNT], made[COUNT:]
    for bits in BITS:
        yield Coded(f"clustered, {bits} fitted bits", rows, codes(fit_hash(others, bits).logits(rows)))


def real(folder: Path) -> Iterator[Coded]:
    """The images of the folder, encoded by the shipped model: with the model's own code, and with fitted codes."""
    encoder = load(BASE, "torch")
    embeddings, own = [], []
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as data:
            images = np.concatenate([data[name] for name in sorted(data.files) if name.endswith("_images")])
        for start in range(0, len(images), 64):
            found = encoder.encode(enlarged(images[start : start + 64], encoder.card.recipe.size))
            embeddings.append(found.embeddings)
            own.append(found.codes)
    rows = np.concatenate(embeddings)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.random.default_rng(SEED).permutation(len(rows))
    fitted, rest = order[:1000], order[1000:]
    yield Coded(f"similis-base, its own {encoder.card.bits} bits", rows[rest], np.concatenate(own)[rest])  # type: ignore[arg-type]
    for bits in BITS:
        yield Coded(
            f"similis-base, {bits} fitted bits", rows[rest], codes(fit_hash(rows[fitted], bits).logits(rows[rest]))
        )


def recall(coded: Coded, wide: int) -> tuple[float, float]:
    """(recall@10, median share of the archive in the ball) for a ball of `wide` times the images of a search."""
    asked = np.random.default_rng(SEED).choice(len(coded.rows), ASKED, replace=False)
    table, found, sizes = padded(coded.codes), [], []
    every = np.ones(len(table), bool)
    for row in asked:
        scores = coded.rows @ coded.rows[row]
        scores[row] = -np.inf  # the query itself
        nearest = np.argpartition(-scores, K)[:K]
        scan = ball(
            table, table[row], lambda rows: every if rows is None else every[rows], k=wide * LEAST_DEPTH, radius=None
        )
        found.append(len(np.intersect1d(nearest, scan.rows)) / K)
        sizes.append(len(scan.rows) / len(table))
    return float(np.mean(found)), float(np.median(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of npz files with images")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    about = report.facts("hybrid", {"vectors, queries": SEED})
    wides = (1, WIDE, 5 * WIDE)
    rows = []
    for coded in (*drawn(), *(real(args.real) if args.real else ())):
        cells = [f"{share:.3f} ({part:.1%})" for share, part in (recall(coded, wide) for wide in wides)]
        rows.append([coded.name, f"{len(coded.rows):,}", *cells])
    head = ["vectors and codes", "archive", *(f"{wide * LEAST_DEPTH:,} codes" for wide in wides)]
    said = (
        f"Recall@{K} against exact cosine search of the archive's own images ({ASKED} of them asked, each without "
        f"itself), and the share of the archive that the ball holds. `mode=hybrid` looks at {WIDE * LEAST_DEPTH:,}."
    )
    body = ["# Hybrid search", "", said, "", *report.table(head, rows)]
    report.write("hybrid", about, {"rows": rows}, body, args.out)


if __name__ == "__main__":
    main()
