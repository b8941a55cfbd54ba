"""What the kernel says about a path without a look at it, and calls that a dead share never answers."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from shared import mounts
from shared.mounts import in_time, mount_of
from shared.process import until


def test_the_mount_of_a_path_need_not_be_looked_at() -> None:
    assert mount_of(Path("/proc/1/no such file")) == Path("/proc")
    assert mount_of(Path("/no such folder/file")) == Path("/")


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/archive/a/b", "/archive"),
        ("/archive/deep/b", "/archive/deep"),
        ("/archive2/b", "/"),
        ("/with space/b", "/with space"),
        ("/\udcff/b", "/\udcff"),
    ],
)
def test_the_longest_mount_point_above_a_path_holds_it(tmp_path: Path, path: str, mount: str) -> None:
    table = tmp_path / "mountinfo"
    points = [b"/", b"/archive", b"/archive/deep", rb"/with\040space", b"/\xff"]
    table.write_bytes(b"".join(b"36 35 98:0 / " + point + b" rw - nfs server rw\n" for point in points))
    assert mount_of(Path(path), table) == Path(mount)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "disk"}


def at(name: str) -> Callable[[], Path]:
    return lambda: Path(name)


def test_calls_that_come_back_share_a_thread() -> None:
    made = {in_time(threading.current_thread, 30, at("/archive")) for _ in range(50)}
    assert len(made) == 1
    assert made <= threads()


def test_what_a_call_raises_reaches_its_caller_and_is_no_stall() -> None:
    for error in (FileNotFoundError, TimeoutError):  # a soft mount itself gives up with the second
        with pytest.raises(error):
            in_time(partial(_raise, error), 30, at("/archive"))
    assert in_time(lambda: 1, 30, at("/archive")) == 1


def _raise(error: type[Exception]) -> None:
    raise error


def test_a_place_that_does_not_answer_is_not_asked_again_until_it_does(tmp_path: Path) -> None:
    """Opening a pipe waits for its writer, as a call waits for a share that does not answer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    asked: list[str] = []

    def late(descriptor: int) -> None:
        os.close(descriptor)
        asked.append("late")

    with pytest.raises(TimeoutError):
        in_time(partial(os.open, pipe, os.O_RDONLY), 0.1, at("/dead"), late)
    hung = len(threads())
    for _ in range(20):
        with pytest.raises(TimeoutError):
            in_time(lambda: asked.append("dead"), 0.1, at("/dead"))
        in_time(lambda: asked.append("good"), 30, at("/good"))
    assert asked == ["good"] * 20
    assert len(threads()) <= hung + 1, "one thread waits, one works"
    os.close(os.open(pipe, os.O_WRONLY))  # the share is back
    assert until(lambda: asked[-1] == "late", 10)
    in_time(lambda: asked.append("back"), 30, at("/dead"))
    assert asked[-1] == "back"
    assert not mounts._stalled
    assert len(threads()) <= hung + 1


def test_a_call_that_never_comes_back_does_not_keep_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from shared.mounts import in_time\n"
        "try:\n"
        "    in_time(lambda: os.open(sys.argv[1], os.O_RDONLY), 0.1, lambda: Path('/dead'))\n"
        "except TimeoutError:\n"
        "    print('stalled')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "stalled\n"
