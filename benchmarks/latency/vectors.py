"""The platform's own vectors process, started on a folder."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shared.errors import Unavailable
from shared.index.qdrant import QdrantStore

KEY = "a-key-of-the-benchmark"


class VectorsProcess:
    """Listens on a UNIX socket until `stop`."""

    def __init__(self, data: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()  # keeps the socket's path short
        key, socket = Path(self._folder.name) / "key", Path(self._folder.name) / "sock"
        key.write_text(KEY, encoding="utf-8")
        self.url = f"unix://{socket}"
        command = [sys.executable, "-m", "services.vectors", "--dir", str(data), "--listen", f"unix:{socket}"]
        self._process = subprocess.Popen([*command, "--api-key-file", str(key)])
        self.pid = self._process.pid
        try:
            wait_until_ready(self.url)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


@contextlib.contextmanager
def vectors_process() -> Iterator[str]:
    """Yield the address of a vectors process on a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        process = VectorsProcess(Path(folder) / "data")
        try:
            yield process.url
        finally:
            process.stop()


def wait_until_ready(url: str) -> None:
    store = QdrantStore(url, KEY)
    for attempt in range(20):
        with contextlib.suppress(Unavailable):
            return store.ping()
        time.sleep(0.1 * attempt)
    store.ping()
    return None
