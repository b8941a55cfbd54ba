import subprocess
import sys

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
