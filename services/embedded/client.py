"""Starts and stops a stack from Python: `with Embedded(home) as stack: ask(stack.url, stack.api_key)`."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from services.embedded.home import Home
from shared import process
from shared.errors import Unavailable


class Embedded:
    """A stack whose supervisor runs in a process of its own.

    The supervisor ends with the thread that called `start`: call it from the main thread.

    Args:
        port: of the API; 0 for any free one.
        workers: ingest workers; 0 means one for each core.
        dicom_port: of the receiver; 0 for any free one, None for no receiver.
        timeout_s: how long the start may take.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int = 0,
        workers: int = 0,
        auth: bool = True,
        dicom_port: int | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self.home = Home.at(home)
        self.timeout_s = timeout_s
        flags = ["--home", str(self.home.path), "--port", str(port), "--workers", str(workers)]
        flags += [] if dicom_port is None else ["--dicom-port", str(dicom_port)]
        self.argv = [sys.executable, "-P", "-m", "services.embedded", *flags, *([] if auth else ["--no-auth"])]
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return str(self.home.state["url"])

    @property
    def dicom_port(self) -> int:
        return int(self.home.state["dicom"]["port"])

    @property
    def api_key(self) -> str:
        return (self.home / "api.key").read_text(encoding="ascii")

    def pid_of(self, name: str) -> int | None:
        """The present process id of a part, such as `api`, `postgres` or `worker-ingest1`."""
        identity = self.home.state.get("processes", {}).get(name, {}).get("identity")
        return None if identity is None else int(identity["pid"])

    def start(self) -> None:
        """Start the stack and wait until it is ready. Raises: `Unavailable`, with the supervisor's last log lines."""
        log = self.home / "logs/supervisor.log"
        with log.open("ab") as output:
            self.child = child = process.spawn(self.argv, output=output)
        process.until(lambda: process.has_ended(child) or self._is_ready(child.pid), self.timeout_s, 0.02)
        if process.has_ended(child) or not self._is_ready(child.pid):
            self.stop()
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise Unavailable("the embedded stack did not start: " + " / ".join(last))

    def stop(self) -> int:
        """Stop the stack in order; returns the supervisor's exit code."""
        if self.child is None:
            return 0
        child, self.child = self.child, None
        return process.stop(child, (signal.SIGTERM, 120.0))

    def kill(self) -> None:
        """Kill every process of the stack at once, as a power loss would."""
        pids = [self.pid_of(name) for name in self.home.state.get("processes", {})]
        if self.child is not None:
            self.child.kill()
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill_tree(pid)
        if self.child is not None:
            process.bury(self.child)
            self.child = None

    def _is_ready(self, pid: int) -> bool:
        state = self.home.state
        return bool(state.get("ready")) and (state.get("supervisor") or {}).get("pid") == pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
