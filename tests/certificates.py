"""Keys and certificates, made on the spot."""

import shutil
import subprocess
from pathlib import Path

import pytest


def openssl(folder: Path, words: str) -> None:
    """Run an OpenSSL command in the folder; skip the test visibly if OpenSSL is absent."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
