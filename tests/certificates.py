"""Keys and certificates, made on the spot."""

import shutil
import subprocess
from pathlib import Path

import pytest


def openssl(folder: Path, words: str) -> None:
    """A command of OpenSSL was run in the folder; a visible skip where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
