import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import priority

SCRIPT = """
import os
from shared.priority import AUTOGROUP, step_back
os.setsid()
step_back()
print(os.nice(0))
print(AUTOGROUP.read_text().split()[-1] if AUTOGROUP.exists() else 15)
"""


def test_a_process_that_steps_back_does_so_in_its_session_too() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["15", "15"]


class Grudging:
    """The session's autogroup file for a user other than root: right after a write the kernel refuses the next one."""

    def __init__(self) -> None:
        self.refusals = 2
        self.said = ""

    def write_text(self, text: str, **_: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError
        self.said = text


def test_a_word_to_the_session_that_is_not_taken_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Grudging()
    monkeypatch.setattr(priority, "AUTOGROUP", file)
    priority._tell_session(15)
    assert file.said == "15"


def test_a_module_can_be_run_that_yields_from_its_first_line_on(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import os, sys; print(os.nice(0), __name__, *sys.argv[1:])")
    command = [sys.executable, "-m", "shared.priority", "15", "told", "a", "b c"]
    path = os.pathsep.join((str(tmp_path), *sys.path))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    assert done.stdout.split() == ["15", "__main__", "a", "b", "c"]
