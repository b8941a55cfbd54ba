"""The 269 files of the zoo, each with the outcome that `tests/zoo_expected.csv` gives reasons for."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from shared.errors import Rejected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox

EXPECTED = Path(__file__).parent.parent / "zoo_expected.csv"
LIMITS_BY_DEATH = ()  # scans and checks stop every file of the zoo before a child would be killed


@pytest.fixture(scope="module")
def zoo(data_dir):
    return data_dir / "dicom_zoo"


def outcome(answer, recipe):
    rejected = answer if isinstance(answer, Rejected) else metadata_gate(answer.header, recipe)
    if rejected is None:
        rejected = pixel_gate(answer.stats)
    if rejected is None:
        return "encoded", "", ""
    return rejected.outcome.value, rejected.gate.value if rejected.gate else "", rejected.reason


def resident_mib():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def test_every_file_of_the_zoo_becomes_what_is_expected_and_no_child_dies(zoo):
    with EXPECTED.open(encoding="utf-8", newline="") as rows:
        expected = list(csv.DictReader(rows))
    with (zoo / "manifest.csv").open(encoding="utf-8", newline="") as rows:
        assert [row["file"] for row in csv.DictReader(rows)] == [row["file"] for row in expected]
    recipe = Recipe()
    paths = [zoo / row["file"] for row in expected]
    with Sandbox() as box:
        list(box.decode_many(paths[:100], recipe))
        before = resident_mib()
        answers = list(box.decode_many(paths, recipe))
        grown = resident_mib() - before
        wrong = {
            row["file"]: got
            for row, answer in zip(expected, answers, strict=True)
            if (got := outcome(answer, recipe)) != (row["outcome"], row["gate"], row["reason"])
        }
        assert wrong == {}
        assert box.deaths == len(LIMITS_BY_DEATH)
    del answers
    assert grown < 100  # 113 pictures of 224 x 224 float32 with thumbnails take 30 of it


def test_every_row_of_the_expectations_is_argued():
    with EXPECTED.open(encoding="utf-8", newline="") as rows:
        assert all(len(row["why"]) > 5 for row in csv.DictReader(rows))


def test_an_inspection_says_the_same_as_a_decode_as_far_as_headers_go(zoo):
    paths = sorted(p for p in zoo.rglob("*") if p.is_file() and p.name not in ("manifest.csv", "SOURCE.md"))
    with Sandbox() as box:
        inspected, decoded = box.inspect_many(paths), list(box.decode_many(paths, Recipe()))
    for path, seen, got in zip(paths, inspected, decoded, strict=True):
        if isinstance(seen, Rejected):
            assert isinstance(got, Rejected), path
            assert (got.outcome, got.reason) == (seen.outcome, seen.reason), path
        elif not isinstance(got, Rejected):
            assert got.header == seen.header, path


J2K, JLS = "compressed_j2k_lossless/dtf__", "compressed_jpegls_lossless/dtf__"
JPLL, RLE, RAW = "compressed_jpeg_lossless_sv1/dtf__", "compressed_rle/dtf__", "native_explicit_le/dtf__"
GROUPS = {
    "CT1": [f"{RAW}CT1_UNC", f"{J2K}CT1_J2KR", f"{JLS}CT1_JLSL"],
    "MR3": [f"{RAW}MR3_UNC", f"{J2K}MR3_J2KR", f"{JPLL}MR3_JPLL"],
    "NM1": [f"{RLE}NM1_RLE", f"{J2K}NM1_J2KR"],
    "MR1": [f"{RLE}MR1_RLE", f"{J2K}MR1_J2KR"],
    "MR4": [f"{JLS}MR4_JLSL", f"{J2K}MR4_J2KR"],
}


@pytest.mark.parametrize("picture", GROUPS)
def test_lossless_encodings_of_one_picture_give_equal_pixels(zoo, sandbox, picture):
    # as large as the picture, so that nothing is averaged and every decoder decodes at full resolution
    first, *others = [sandbox.decode(zoo / f"{name}.dcm", Recipe(size=512)) for name in GROUPS[picture]]
    assert np.ptp(first.pixels) > 0.1
    for other in others:
        assert np.array_equal(first.pixels, other.pixels)


def test_a_twelve_bit_jpeg_is_near_its_lossless_twin(zoo, sandbox):
    lossy = sandbox.decode(zoo / "compressed_jpeg_extended/dtf__MR3_JPLY.dcm", Recipe(size=512, voi="ignore"))
    exact = sandbox.decode(zoo / "native_explicit_le/dtf__MR3_UNC.dcm", Recipe(size=512, voi="ignore"))
    assert np.abs(lossy.pixels - exact.pixels).mean() < 0.005


def test_byte_orders_and_headers_make_no_difference(zoo, sandbox):
    names = (
        "native_explicit_le/pyd__MR_small",
        "native_explicit_be/pyd__MR_small_bigendian",
        "native_implicit_le/pyd__MR_small_implicit",
    )
    little, big, implicit = (sandbox.decode(zoo / f"{name}.dcm", Recipe()) for name in names)
    assert np.array_equal(little.pixels, big.pixels)
    assert np.array_equal(little.pixels, implicit.pixels)
