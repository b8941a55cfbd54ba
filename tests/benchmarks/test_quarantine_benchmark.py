"""The quarantine benchmark: real files through the real decoder and gates, and consistent figures."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from benchmarks.quarantine import (
    ARCHIVES,
    ELSEWHERE,
    MIAS,
    RULES,
    Picture,
    Seen,
    count,
    look,
    pictures,
    report,
    shares,
    standards,
)
from shared.encoder.build import build
from shared.encoder.ood import calibrate
from shared.encoder.runtime import load
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.store import encodings
from tests.strange import Measuring


@pytest.fixture
def encoder(tmp_path):
    build(tmp_path / "null", "null", "null", "random:0", Recipe(size=64))
    return Measuring(load(tmp_path / "null"))


def one(of, patient, score, lean=4.0):
    vector = np.random.default_rng(patient).standard_normal(16) + np.where(np.arange(16) == 0, lean, 0)
    return Seen(of, patient, None, score, (encodings.pack(vector.astype(np.float32)),))


@pytest.fixture
def seen():
    """Eighty mammograms, forty of which calibrate; strangers stopped by one vote, both, none, or an earlier gate."""
    found = [one(MIAS, n, 0.5 + n / 1000) for n in range(80)]
    found += [
        one("dog", 100, 0.9),
        one("dog", 101, 0.52, lean=-9),
        one("dog", 102, 0.9, lean=-9),
        one("dog", 103, 0.52),
    ]
    return [*found, Seen("dog", 104, "pixels")]


def test_real_files_go_through_the_real_gates(data_dir, encoder):
    chosen = {picture.of: picture for picture in pictures(data_dir, most=1)}
    assert {MIAS, "synthetic: blank", "ultrasound (BUSI)", "Hand (MedNIST)"} <= set(chosen)
    asked = [chosen[MIAS], chosen["synthetic: blank"], chosen["natural_cifar10"], chosen["Hand (MedNIST)"]]
    with Sandbox() as sandbox:
        found = look(sandbox, encoder, [*asked, Picture("text", b"no picture at all", 0)])
        blind = look(sandbox, encoder.inner, asked[:1])
    assert [picture.gate for picture in found] == [None, "pixels", None, None, "failed"]
    assert all((picture.score is None) == (picture.gate is not None) == (not picture.packed) for picture in found)
    assert (blind[0].score, len(blind[0].packed)) == (None, 1)  # a model without a decoder has no score


def test_the_same_pictures_are_chosen_every_time(data_dir):
    first, again = (list(islice(pictures(data_dir, most=3), 400)) for _ in range(2))
    assert first == again
    assert sum(picture.of == "natural_photos" for picture in first) == 3
    assert sum(picture.of == MIAS for picture in first) == 322


def test_the_women_who_calibrate_show_no_false_alarms(data_dir):
    sides = {True: set(), False: set()}
    for picture in pictures(data_dir, most=0):
        sides[Seen(picture.of, picture.patient).calibrates].add((int(picture.source.stem.removeprefix("mdb")) + 1) // 2)
    assert sides[True].isdisjoint(sides[False])
    assert min(map(len, sides.values())) >= 80


def test_what_is_counted_adds_up(encoder, seen):
    made = standards(seen, ARCHIVES[0], encoder)
    assert tuple(made) == RULES
    counts = count(seen, ARCHIVES[0], made["mean+3sd"])
    assert counts["known"]["pictures"] == 40  # those that do not calibrate
    assert counts["dog"] == {"pictures": 5, "before": 1, "error": 2, "distance": 2, "both": 3}
    assert [shares(counts, ARCHIVES[0], vote)[1] for vote in ("error", "distance", "both")] == [0.6, 0.6, 0.8]
    body, figures = report(ARCHIVES[0], encoder, seen)
    assert "| dog | 5 | 1 | 2 | 2 | 3 | 1 |" in body
    assert figures["counts"]["mean+3sd"]["dog"]["both"] == 3


def test_what_belongs_but_calibrated_nothing_counts_as_no_stranger(encoder, seen):
    made = standards(seen, ARCHIVES[0], encoder)["mean+3sd"]
    counts = count([*seen, one(ELSEWHERE, 101, 0.9, lean=-9)], ARCHIVES[0], made)
    assert counts[ELSEWHERE]["both"] == 1
    assert shares(counts, ARCHIVES[0], "both")[1] == 0.8
    assert shares(counts, ARCHIVES[1], "both")[1] > 0.8


def test_a_model_without_a_decoder_has_the_second_vote_only(encoder, seen):
    blind = [Seen(s.of, s.patient, s.gate, None, s.packed) for s in seen]
    counts = count(blind, ARCHIVES[0], standards(blind, ARCHIVES[0], encoder)["mean+3sd"])
    assert (counts["dog"]["error"], counts["dog"]["distance"], counts["dog"]["both"]) == (0, 2, 2)


def test_what_a_card_brings_is_told_beside_the_rules(encoder, seen):
    brought = calibrate([0.5 + n / 1000 for n in range(40)], "", "log")
    encoder.card = replace(encoder.card, calibrations={"MG": brought, "CT": brought})
    made = standards(seen, ARCHIVES[0], encoder)
    assert (made["card"].threshold, made["card"].distance) == (brought.threshold, None)
    assert count(seen, ARCHIVES[0], made["card"])["dog"]["both"] == 2
