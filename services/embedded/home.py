"""The folder of an embedded installation: mode 0700, secrets 0600, one supervisor at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import process
from shared.disk import exists, sync
from shared.errors import Conflict, Invalid

_LONGEST_SOCKET_FOLDER = 80  # sun_path holds 107 bytes, and our longest socket name has 20
#: Secrets that must not be made anew for an existing database: they give access to it, or derive its pseudonyms.
_LASTING = frozenset({"database.password", "pseudonym.key"})
_ASKING_S = 0.5  #: how long `lock` retries: longer than `locked` holds its shared lock
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/-]+")  # such a path stands in a URL as it is


@dataclass(frozen=True)
class Home:
    """The files and folders of one installation.

    lock state.json | api.key pseudonym.key vectors.key database.password database.url broker.url |
    pg/ valkey/ vectors/ models/ logs/ run/
    """

    path: Path

    @classmethod
    def at(cls, path: Path) -> "Home":
        """The home at this path, created if absent, closed to other users. Raises: `Invalid` for another's folder."""
        home = cls(path.expanduser().resolve())
        home.path.mkdir(parents=True, exist_ok=True)
        if home.path.stat().st_uid != os.geteuid():
            raise Invalid("the home folder belongs to another user")
        home.path.chmod(0o700)
        for name in ("models", "logs", "vectors", "valkey"):
            (home.path / name).mkdir(mode=0o700, exist_ok=True)
        return home

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def secret(self, name: str, prefix: str = "") -> str:
        """The secret of that name, made at the first call: 256 bits after the prefix.

        Raises: `Invalid` where the file of a secret that an existing database needs is gone.
        """
        path = self / name
        with contextlib.suppress(FileNotFoundError):
            if (kept := path.read_text(encoding="ascii").strip()) != "":
                return kept
        if name in _LASTING and exists(self / "pg"):
            raise Invalid(
                f"{path} is missing, but the database beside it was created with it: restore it from a backup"
            )
        value = prefix + secrets.token_urlsafe(32)
        write(path, value)
        return value

    def keep(self, name: str, value: str) -> None:
        """Write the value into the file of that name, unless the file holds it already."""
        path = self / name
        if not path.exists() or path.read_text(encoding="utf-8") != value:
            write(path, value)

    @property
    def sockets(self) -> Path:
        """A 0700 folder whose path is short and plain enough for a unix socket in a URL."""
        folder = self / "run"
        if len(str(folder)) > _LONGEST_SOCKET_FOLDER or not _PLAIN_PATH.fullmatch(str(folder)):
            digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
            short = f"similis-{os.geteuid()}-{digest}"
            places = (Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108 - private() checks whose it is
            folder = next((p / short for p in places if len(str(p / short)) <= _LONGEST_SOCKET_FOLDER), folder)
        return private(folder)

    @property
    def state(self) -> dict[str, Any]:
        """The supervisor's last state file; empty where there is none or it is damaged."""
        try:
            kept = json.loads((self / "state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def remember(self, state: dict[str, Any]) -> None:
        write(self / "state.json", json.dumps(state, indent=2))

    @property
    def locked(self) -> bool:
        """Whether a process holds the home's lock, such as a running supervisor."""
        try:
            with (self / "lock").open("rb") as file:
                fcntl.flock(
                    file, fcntl.LOCK_SH | fcntl.LOCK_NB
                )  # shared, so that two callers do not take each other for a supervisor
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home's exclusive lock, which the kernel releases when this process ends.

        Raises: `Conflict` where another process holds it.
        """
        with (self / "lock").open("ab") as file:

            def taken() -> bool:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                return False

            if not process.until(taken, _ASKING_S):
                url = self.state.get("url", "an address that is not known yet")
                raise Conflict(
                    f"similis already runs on this home ({self.path}) at {url}; "
                    "use it, stop it with `similis down`, or choose another with --home"
                )
            yield


def private(folder: Path) -> Path:
    """The folder, created with mode 0700 if absent; only this user may change it.

    Raises: `Invalid` where it is another user's, a link, or writable by others.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise Invalid(f"the folder {folder} belongs to another user, or other users may write into it")
    return folder


def write(path: Path, text: str) -> None:
    """Write the text to the file atomically and durably, with mode 0600."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)
