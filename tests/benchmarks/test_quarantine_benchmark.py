"""The quarantine benchmark: real files through the real decoder and gates, and figures that add up."""

from itertools import islice

import pytest

from benchmarks.quarantine import Picture, Seen, count, look, pictures, report, thresholds
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import Invalid
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from tests.strange import Measuring


@pytest.fixture
def encoder(tmp_path):
    build(tmp_path / "null", "null", "null", "random:0", Recipe(size=64))
    return Measuring(load(tmp_path / "null"))


def test_real_files_go_through_the_real_gates(data_dir, encoder):
    chosen = {one.of: one for one in pictures(data_dir, most=1)}
    assert {"calibrating", "known", "synthetic: blank", "ultrasound (BUSI)", "Hand (MedNIST)"} <= set(chosen)
    asked = [chosen["known"], chosen["synthetic: blank"], chosen["natural_cifar10"], chosen["Hand (MedNIST)"]]
    with Sandbox() as sandbox:
        seen = look(sandbox, encoder, [*asked, Picture("text", b"no picture at all")])
        with pytest.raises(Invalid, match="no decoder"):
            look(sandbox, encoder.inner, asked[:1])
    assert [one.gate for one in seen] == [None, "pixels", None, None, "failed"]
    assert all((one.score is None) == (one.gate is not None) for one in seen)


def test_the_same_pictures_are_chosen_every_time(data_dir):
    first, again = (list(islice(pictures(data_dir, most=3), 400)) for _ in range(2))
    assert first == again
    assert sum(one.of == "natural_photos" for one in first) == 3
    assert sum(one.of in ("calibrating", "known") for one in first) == 322


def test_the_women_who_calibrate_show_no_false_alarms(data_dir):
    sides = {of: set() for of in ("calibrating", "known")}
    for one in pictures(data_dir, most=0):
        if one.of in sides:
            sides[one.of].add((int(one.source.stem.removeprefix("mdb")) + 1) // 2)
    assert sides["calibrating"].isdisjoint(sides["known"])


def test_what_is_counted_adds_up(encoder):
    seen = [Seen("calibrating", None, 0.5 + n / 1000) for n in range(40)]
    seen += [Seen("known", None, 0.51), Seen("known", None, 0.9)]
    seen += [Seen("dog", None, 0.9), Seen("dog", None, 0.52), Seen("dog", "pixels", None)]
    made = thresholds(seen, {})
    assert 0.5 < made["mean+3sd"].threshold < 0.6
    assert count(seen, 0.6)["dog"] == {"features": 1, "passed": 1, "pixels": 1}
    body, figures = report(encoder, seen, made)
    assert "Of 3 pictures that do not belong, 2 were stopped and 1 missed." in "\n".join(body)
    assert figures["counts"]["mean+3sd"]["known"] == {"passed": 1, "features": 1}
    brought = thresholds(seen, {"MG": made["log"], "CT": made["quantile"]})
    assert brought["card"] == made["log"]
    assert report(encoder, seen, brought)[1]["shipped"] == "card"
