import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
from pathlib import Path
from shared.priority import step_back
os.setsid()
step_back()
print(os.nice(0))
print(Path("/proc/self/autogroup").read_text().split()[-1] if Path("/proc/self/autogroup").exists() else 15)
"""


def test_a_process_that_steps_back_does_so_in_its_session_too() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["15", "15"]


def test_a_module_can_be_run_that_yields_from_its_first_line_on(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import os, sys; print(os.nice(0), __name__, *sys.argv[1:])")
    command = [sys.executable, "-m", "shared.priority", "15", "told", "a", "b c"]
    path = os.pathsep.join((str(tmp_path), *sys.path))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    assert done.stdout.split() == ["15", "__main__", "a", "b", "c"]
