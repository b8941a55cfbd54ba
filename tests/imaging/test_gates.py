import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes

from shared.errors import Gate, Outcome, Rejected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.preprocess import noise_share, pixel_stats
from shared.imaging.reasons import SENTENCES, Reason
from shared.imaging.recipe import Recipe
from shared.types import Decoded, Header, PixelStats

HEADER = Header(
    sop_instance_uid="1.2", study_instance_uid="1.3", series_instance_uid="1.4", modality="MG", rows=100, columns=80
)
STATS = PixelStats(spread=0.8, distinct=2000, content=0.6, noise=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"presentation_intent": "FOR PRESENTATION"}, None),
        ({"presentation_intent": "FOR PROCESSING"}, Reason.FOR_PROCESSING),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.2.1"}, Reason.FOR_PROCESSING),
        ({"burned_in": False}, None),
        ({"burned_in": True}, Reason.BURNED_IN),
        ({"modality": "CT"}, None),
        ({"modality": ""}, Reason.MODALITY),
        ({"modality": "XYZ"}, Reason.MODALITY),
        ({"rows": 16}, None),
        ({"columns": 15}, Reason.TOO_SMALL),
    ],
)
def test_gate_one_stops_by_the_header(changes, reason):
    stopped = metadata_gate(dataclasses.replace(HEADER, **changes), Recipe())
    assert (stopped and stopped.reason) == reason
    assert stopped is None or (stopped.outcome, stopped.gate) == (Outcome.QUARANTINED, Gate.METADATA)


#: Acquisition modalities (PS3.16 CID 29) whose objects hold curves, positions or numbers.
NO_PICTURES = {"ECG", "EEG", "EMG", "EOG", "EPS", "HD", "KER", "LEN", "POS", "RESP", "VA"}


def test_every_modality_under_which_pictures_are_made_passes_gate_one():
    acquired = {getattr(codes.cid29, name).value for name in codes.cid29.dir()}
    assert acquired > NO_PICTURES
    stopped = {each for each in acquired if metadata_gate(dataclasses.replace(HEADER, modality=each), Recipe())}
    assert stopped == NO_PICTURES


def test_a_recipe_may_allow_raw_data():
    raw = dataclasses.replace(HEADER, presentation_intent="FOR PROCESSING")
    assert metadata_gate(raw, Recipe(for_processing="allow")) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"distinct": 1}, Reason.BLANK),
        ({"spread": 0.0}, Reason.BLANK),
        ({"distinct": 2}, Reason.DEPTH_OF_VALUES),
        ({"distinct": 3}, None),
        ({"content": 0.009}, Reason.NO_CONTENT),
        ({"content": 0.011}, None),
        ({"noise": 0.95}, Reason.NOISE),
        ({"noise": 0.89}, None),
    ],
)
def test_gate_two_stops_by_the_pixels(changes, reason):
    stopped = pixel_gate(dataclasses.replace(STATS, **changes))
    assert (stopped and stopped.reason) == reason
    assert stopped is None or (stopped.outcome, stopped.gate) == (Outcome.QUARANTINED, Gate.PIXELS)


def test_noise_is_noise_and_a_gradient_is_not():
    rng = np.random.default_rng(0)
    assert noise_share(rng.random((200, 200), dtype=np.float32)) > 0.95
    assert noise_share(np.tile(np.linspace(0, 1, 200, dtype=np.float32), (200, 1))) < 0.01
    assert noise_share(np.full((50, 50), 0.5, dtype=np.float32)) == 0
    assert noise_share(np.zeros((1, 50), dtype=np.float32)) == 0


def test_stats_are_what_they_say():
    frame = np.zeros((100, 100), dtype=np.float32)
    frame[:, 50:] = 0.5
    stats = pixel_stats(frame, (frame * 1000).astype(np.int16) - 300)
    assert stats.distinct == 2
    assert stats.content == pytest.approx(0.5)
    assert stats.spread == pytest.approx(0.5, abs=1e-4)


def test_every_reason_has_a_sentence():
    assert set(SENTENCES) == set(Reason)
    assert all(sentence.endswith(".") for sentence in SENTENCES.values())


ORDINARY = ("mammography_mias/images_512", "mammography_nyu_exam", "ultrasound_busi/images", "cxr")


@pytest.mark.parametrize("folder", ORDINARY)
def test_no_ordinary_picture_is_stopped(sandbox, data_dir, folder):
    found = sorted(p for p in (data_dir / folder).rglob("*") if p.suffix.lower() in (".png", ".jpg"))
    paths = found[:: max(1, len(found) // 60)]
    assert paths
    assert stopped_of(sandbox, paths) == {}


@pytest.mark.parametrize(
    ("part", "reason"), [("noise_", "noise"), ("constant_", "blank"), ("checker_", "too-few-values")]
)
def test_what_is_no_picture_is_stopped(sandbox, data_dir, part, reason):
    paths = sorted((data_dir / "ood" / "synthetic").rglob(f"{part}*"))
    stopped = stopped_of(sandbox, paths)
    assert paths
    assert set(stopped.values()) == {reason}
    assert len(stopped) == len(paths)


def stopped_of(sandbox, paths: list[Path]):
    stopped = {}
    for path, answer in zip(paths, sandbox.decode_many(paths, Recipe()), strict=True):
        rejected = answer if isinstance(answer, Rejected) else None
        if isinstance(answer, Decoded):
            rejected = metadata_gate(answer.header, Recipe()) or pixel_gate(answer.stats)
        if rejected is not None:
            stopped[path.name] = rejected.reason
    return stopped
