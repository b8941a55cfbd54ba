"""The report on the shipped model: written from its figures, of the model in the repository, and its contact sheet."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval import base
from benchmarks.retrieval.base_tables import tables
from benchmarks.retrieval.contact_sheet import Image, draw, hits
from benchmarks.retrieval.ship import main as ship
from services.embedded.default_model import SHIPPED
from shared.encoder import cards
from shared.errors import Invalid

FIGURES = json.loads((base.OUT / "base.json").read_text())


def test_the_report_is_of_the_model_that_is_shipped_and_follows_from_its_figures():
    assert FIGURES["fingerprint"] == cards.read(SHIPPED).fingerprint
    written = (base.OUT / "base.md").read_text()
    assert "\n".join(tables(base.__doc__, FIGURES)) in written


def test_no_query_of_the_report_was_trained_on():
    assert FIGURES["leaks"]["queries"] == 0


def test_a_model_without_figures_of_its_own_is_not_shipped(tmp_path: Path):
    other = tmp_path / "base.json"
    other.write_text(json.dumps({"fingerprint": "0" * 64}))
    with pytest.raises(Invalid, match="another model"):
        ship(["--model", str(SHIPPED), "--figures", str(other), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    pixels = rng.random((6, 8, 8)).astype(np.float32)
    pixels[4] = pixels[3]  # the same picture, in another file
    patients = ("a", "a", "b", "c", "d", "e")
    return [Image(one, "kind", patient, patient) for one, patient in zip(pixels, patients, strict=True)]


def test_a_sheet_hides_the_querys_patient_and_copies(images):
    unit = np.eye(6, dtype=np.float32)
    unit[:, 0] = (1, 0.9, 0.5, 0.8, 0.7, 0.6)
    assert hits(images, unit, 0, most=3) == [3, 5, 2]


def test_a_sheet_is_a_picture_with_a_row_for_each_query(images, tmp_path: Path):
    draw(images, np.eye(6, dtype=np.float32), {0: [2, 3], 5: [1]}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
