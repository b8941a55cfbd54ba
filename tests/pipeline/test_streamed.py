"""A body of many files keeps only the files of the current batch open, whatever else it sends."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.imaging.reasons import Reason
from shared.multipart import Begin, Data, End
from shared.pipeline.arrive import Arrived
from shared.pipeline.streamed import Streamed
from shared.store.blobs import Blobs, Part

GOOD = bytes(128) + b"DICM and more"


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path, reserve_bytes=0)


def taken(parts: Sequence[Part]) -> list[Arrived]:
    assert all(part.path.exists() for part in parts)
    return [Arrived(outcome="taken", kept=True) for _ in parts]


def send(files: Streamed, content: bytes) -> None:
    for event in (Begin({}), Data(content), End()):
        files.on(event)


def held(blobs: Blobs) -> int:
    """The number of part files on disk, all of which this process holds open."""
    open_ = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    on_disk = [path for path in blobs.root.rglob("*") if path.is_file()]
    assert sorted(path for path in open_ if path.startswith(str(blobs.root))) == sorted(map(str, on_disk))
    return len(on_disk)


def test_a_part_that_is_refused_is_let_go_at_once(blobs: Blobs) -> None:
    with Streamed(blobs, taken, most=1000) as files:
        send(files, GOOD)
        for _ in range(20):
            send(files, b"x")
            assert held(blobs) == 1
        send(files, GOOD)
        assert held(blobs) == 2
        assert [one.outcome for one in files.settle()] == ["failed"] * 20 + ["taken"] * 2
        assert files.answers[0].reason == Reason.NOT_A_STUDY_OBJECT
        assert held(blobs) == 0


def test_what_was_not_taken_in_is_gone_with_the_body(blobs: Blobs) -> None:
    with pytest.raises(KeyboardInterrupt), Streamed(blobs, taken, most=1000) as files:
        send(files, GOOD)
        files.on(Begin({}))
        assert held(blobs) == 2
        raise KeyboardInterrupt
    assert held(blobs) == 0
