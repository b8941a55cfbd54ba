"""Processes that take files in do not start with faulty admission rules, and name the rule."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.embedded import commands

STARTS = {
    "api": commands.api(),
    "dicom": [sys.executable, "-m", "services.dicom"],
    "worker": commands.worker("scan", "scan"),
    "up": [sys.executable, "-m", "services.cli.main", "up", "--port", "0", "--no-dicom"],
}


@pytest.mark.parametrize("argv", STARTS.values(), ids=STARTS)
def test_wrong_rules_stop_the_start(tmp_path: Path, argv: list[str]) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "no MR"\nthen = "drop"\n')
    ours = {
        "HOME": str(tmp_path),
        "SIMILIS_HOME": str(tmp_path / "home"),
        "SIMILIS_INTAKE__ADMISSION": str(rules),
        "SIMILIS_PSEUDONYM_KEY": "k" * 40,
        "SIMILIS_DATABASE__URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "SIMILIS_BROKER__URL": "redis://127.0.0.1:1/0",
        "SIMILIS_DICOM__PORT": "0",
    }
    ran = subprocess.run(
        argv, env=os.environ | ours, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode not in (0, -9)
    assert "'no MR'" in ran.stderr
    assert not (tmp_path / "home" / "pg").exists()
