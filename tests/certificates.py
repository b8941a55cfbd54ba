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


def authority(folder: Path, *names: str) -> None:
    """Make `ca.pem`, as OpenSSL does by default, and keys with certificates of it for 127.0.0.1 under these names."""
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca")
    (folder / "names.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in names:
        openssl(folder, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        signed = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2"
        openssl(folder, f"{signed} -extfile names.ext")
