"""The progress output of a training: one updated line on a terminal, one line per epoch in a file."""

import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from shared.training.checkpoint import Checkpoint
from shared.training.progress import Progress

STATE = Checkpoint(epoch=1, best_epoch=0, best_score=0.5, history=[{"loss": 1.25, "figure": 0.5}])


def test_a_file_gets_a_line_per_epoch_and_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "err").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with Progress("small", 0, 3, "figure") as progress:
            progress.images(40, 8, "3 files without a label")
            progress.batch(16, 0.5)
            progress.batch(16, 1.0)
            progress.epoch(STATE)
    written = (tmp_path / "err").read_text()
    assert written.count("\n") == 2
    assert "small  40 images to train on, 8 for validation; 3 files without a label\n" in written
    assert "small  epoch 1/3  loss 1.2500  figure 0.5000 (best 0.5000, epoch 1)" in written
    assert "left" in written
    assert "\x1b" not in written


def test_a_terminal_gets_a_moving_line_with_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("small", 2, 4, "figure") as progress:
            progress.batch(16, 0.5)
            progress._status._live.refresh()  # as its timer does twelve times a second
    shown = b""
    with suppress(OSError):  # EOF: the other side was closed; output arrives in pieces
        while part := os.read(master, 1 << 16):
            shown += part
    os.close(master)
    assert b"50% of this epoch" in shown
    assert b"images/s, at most 0 min" in shown
