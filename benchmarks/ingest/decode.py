"""Decoding in the sandbox by transfer syntax, and JPEG 2000 at the resolution that the recipe needs.

`python -m benchmarks.ingest.decode` writes phantoms of 2294 x 1914 in each syntax, decodes them in turn, compares
reduced with full decoding of the same codestreams, and measures the effect of the reduction on embeddings.
"""

import argparse
import mmap
import statistics
import tempfile
import time
import zlib  # noqa: F401 - must precede gdcm, see shared/imaging/child.py
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import gdcm
import numpy as np
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from benchmarks import real, report
from benchmarks.report import Json, Spread
from shared.datasets.mammogram import PLUGINS, SCANNERS, Identity, dataset, save
from shared.datasets.phantom import render
from shared.datasets.women import exams
from shared.encoder.base import Encoder
from shared.encoder.runtime import load
from shared.imaging.codecs import decode_frame
from shared.imaging.fragments import Encapsulated
from shared.imaging.geometry import Geometry, geometry_of
from shared.imaging.limits import Limits
from shared.imaging.preprocess import reduction
from shared.imaging.read import open_dataset
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.types import Embeddings, Pixels

SEED = 30
ROWS, COLS = 2294, 1914
TARGET = 4.0
NEIGHBOURS = 10
SYNTAXES: dict[str, UID] = {
    "Explicit VR LE": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    **({"JPEG-LS lossless": JPEGLSLossless} if JPEGLSLossless in PLUGINS else {}),
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG 2000 lossless": JPEG2000Lossless,
}
J2K, RAW = "JPEG 2000 lossless", "Explicit VR LE"

Archive = dict[str, list[Path]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    about = report.facts("ingest.decode", {"phantoms": SEED, "weights": 0})
    with tempfile.TemporaryDirectory(prefix="similis-decode-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        timed = write(folder / "timed", options.files, options.rows, options.cols, SYNTAXES)
        figures: Json = {"files": options.files, "rounds": options.rounds, "size": [options.rows, options.cols]}
        figures["syntaxes"] = by_syntax(timed, options.rounds)
        figures["reduced"] = asdict(reduced_against_full(timed[J2K], options.rounds))
        both = {name: SYNTAXES[name] for name in (RAW, J2K)}
        compared = write(folder / "compared", options.images, options.rows, options.cols, both)
        encoder = load(real.model(options.encoder, folder))
        figures["embeddings"] = effect(compared, encoder) | {"encoder": f"{encoder.card.name}, {encoder.card.label}"}
    report.write("decode", about, figures, _text(figures), options.out)


def write(folder: Path, count: int, rows: int, cols: int, syntaxes: dict[str, UID]) -> Archive:
    """Write the same phantoms, four per patient, in every syntax; all are lossless, so the pixels are equal."""
    made: Archive = {name: [] for name in syntaxes}
    for woman, exam in enumerate(islice(exams(SEED), -(-count // 4))):
        for number, (breast, view) in enumerate((b, v) for b in exam.breasts for v in ("CC", "MLO")):
            if woman * 4 + number >= count:
                break
            who = Identity(
                study_name=f"{SEED}/decode/{woman}",
                patient=f"SYN-{SEED}-D{woman:04d}",
                side=breast.side,
                view=view,
                day=exam.day,
                birth_year=exam.birth_year,
                number=number + 1,
            )
            pixels = render(breast, view, rows, cols)
            for name, syntax in syntaxes.items():
                path = folder / syntax / f"{woman:03d}-{number}.dcm"
                plain = syntax == JPEGLosslessSV1
                scanner = replace(SCANNERS[0], syntax=ExplicitVRLittleEndian if plain else syntax)
                save(dataset(pixels, who, scanner), path)
                if plain:
                    _to_jpeg_lossless(path)
                made[name].append(path)
    return made


def _to_jpeg_lossless(path: Path) -> None:
    """Recompress with GDCM, because pydicom has no encoder for it. Raises: `RuntimeError`."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    read = reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    if not (read and change.Change()):
        raise RuntimeError("GDCM cannot compress the phantom")
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError("GDCM cannot write the phantom")


def by_syntax(archive: Archive, rounds: int) -> dict[str, Json]:
    """Milliseconds per file through one sandbox; each round decodes every file of every syntax once, in turn."""
    recipe, ms, reduced = Recipe(), {name: list[list[float]]() for name in archive}, dict[str, int]()
    with Sandbox() as sandbox:
        for name, paths in archive.items():  # warm up: the first call of a codec costs more
            reduced[name] = sandbox.decode(paths[0], recipe).reduced
        for _ in range(rounds):
            taken: dict[str, list[float]] = {name: [] for name in archive}
            for files in zip(*archive.values(), strict=True):
                for name, path in zip(archive, files, strict=True):
                    started = time.perf_counter()
                    sandbox.decode(path, recipe)
                    taken[name].append((time.perf_counter() - started) * 1000)
            for name, values in taken.items():
                ms[name].append(values)
    return {
        name: {
            "ms": asdict(Spread.of((statistics.median(values) for values in ms[name]), 1)),
            "megabytes": round(statistics.mean(path.stat().st_size for path in archive[name]) / 1e6, 2),
            "reduced_by_decoder": reduced[name],
        }
        for name in archive
    }


@dataclass(frozen=True, slots=True)
class Reduction:
    """Times of the codec alone, in this process, on the same codestreams."""

    factor: int
    full_ms: float
    reduced_ms: float
    ratio: Spread


def reduced_against_full(paths: Sequence[Path], rounds: int) -> Reduction:
    """Median times; the ratio is computed per file, and its spread is over the medians of the rounds."""
    streams = [_codestream(path) for path in paths]
    geometry = streams[0][1]
    factor = reduction(geometry.rows, geometry.columns, Recipe())
    for data, size in streams[:1]:
        decode_frame(data, JPEG2000Lossless, size, 1), decode_frame(data, JPEG2000Lossless, size, factor)
    full, small, ratios = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        pairs = [(_decode_ms(*stream, 1), _decode_ms(*stream, factor)) for stream in streams]
        full += [slow for slow, _ in pairs]
        small += [fast for _, fast in pairs]
        ratios.append(statistics.median(slow / fast for slow, fast in pairs))
    return Reduction(
        factor, round(statistics.median(full), 1), round(statistics.median(small), 1), Spread.of(ratios, 2)
    )


def _codestream(path: Path) -> tuple[bytes, Geometry]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    opened, limits = open_dataset(memoryview(mapped), Limits()), Limits()
    geometry = geometry_of(opened, limits)
    if opened.pixels is None:
        raise AssertionError("a phantom has pixels")
    stream = Encapsulated(opened.buffer, opened.pixels, opened.dataset, geometry.frames, limits)
    return bytes(stream.frame(1)), geometry


def _decode_ms(data: bytes, geometry: Geometry, factor: int) -> float:
    started = time.process_time()  # one thread, so other processes do not count
    decode_frame(data, JPEG2000Lossless, geometry, factor)
    return (time.process_time() - started) * 1000


def effect(archive: Archive, encoder: Encoder) -> Json:
    """Compare embeddings of fully decoded images (from the uncompressed files) with those of reduced ones."""
    with Sandbox() as sandbox:
        pixels: dict[str, list[Pixels]] = {
            name: [sandbox.decode(path, encoder.card.recipe).pixels for path in paths]
            for name, paths in archive.items()
        }
    difference = np.concatenate([np.abs(a - b).ravel() for a, b in zip(pixels[RAW], pixels[J2K], strict=True)])
    whole, reduced = (_unit(encoder.encode(np.concatenate(pixels[name])).embeddings) for name in (RAW, J2K))
    same = (whole * reduced).sum(1)
    between = (whole @ whole.T)[~np.eye(len(whole), dtype=bool)]
    return {
        "images": len(whole),
        "pixel_difference_mean": round(float(difference.mean()), 6),
        "pixel_difference_max": round(float(difference.max()), 4),
        "cosine_min": round(float(same.min()), 6),
        "cosine_p5": round(float(np.percentile(same, 5)), 6),
        "cosine_median": round(float(np.median(same)), 6),
        "cosine_between_images_median": round(float(np.median(between)), 4),
        "cosine_between_images_max": round(float(between.max()), 6),
        "same_top10": round(overlap(whole, reduced), 4),
        "nearest_is_itself": round(float(((reduced @ whole.T).argmax(1) == np.arange(len(whole))).mean()), 4),
    }


def _unit(vectors: Embeddings) -> Embeddings:
    unit: Embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def overlap(gallery: Embeddings, queries: Embeddings) -> float:
    """The share of each query's ten nearest that stay the same when it is reduced; the query itself does not count."""
    k = min(NEIGHBOURS, len(gallery) - 1)
    ranked = []
    for asked in (gallery, queries):
        scores = asked @ gallery.T
        np.fill_diagonal(scores, -np.inf)
        ranked.append(np.argsort(-scores, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*ranked, strict=True)]))


def _text(figures: Json) -> list[str]:
    one, found, (rows, cols) = figures["reduced"], figures["embeddings"], figures["size"]
    ratio = Spread(**one["ratio"])
    verdict = "reached" if ratio.median >= TARGET else "**not reached**"
    return [
        "# Decoding",
        "",
        f"{figures['files']} phantoms of {rows} x {cols}, 12 bits in 16, in each syntax; {figures['rounds']} rounds,",
        "all files in turn, one sandbox, to the 224 x 224 of the default recipe. Median of the rounds' medians (lowest",
        "to highest), ms per file.",
        "",
        *report.table(
            ["transfer syntax", "MB", "ms", "reduced by the decoder"],
            [
                [name, r["megabytes"], Spread(**r["ms"]), r["reduced_by_decoder"]]
                for name, r in figures["syntaxes"].items()
            ],
        ),
        "",
        f"JPEG 2000, the codec alone, processor time: full (OpenJPEG) {one['full_ms']} ms, reduced by",
        f"{one['factor']} (OpenJPEG in Pillow) {one['reduced_ms']} ms; ratio **{ratio}**,",
        f"target {TARGET:g}: {verdict}.",
        "",
        f"Effect on embeddings ({found['encoder']}; {found['images']} images, whole and reduced):",
        "",
        *report.table(["measure", "value"], [[k.replace("_", " "), v] for k, v in found.items() if k != "encoder"]),
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest.decode", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=8, help="timed files of each syntax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60, help="images whose embeddings are compared")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--cols", type=int, default=COLS)
    parser.add_argument("--encoder", default="densenet121", help="densenet121 (untrained) or a MobileNetV2 .pth file")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
