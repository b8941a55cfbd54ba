"""The user that PostgreSQL runs as: it refuses root, and initdb refuses a user without a name."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shared.errors import Unavailable


@dataclass(frozen=True)
class Account:
    """How to start a program as a user who may run PostgreSQL."""

    prefix: tuple[str, ...] = ()  #: put before the command
    user: int | None = None  #: user to change to, who must own the data; None: no change


@cache
def account() -> Account:
    """The present user; else that user under another name in a user namespace; else, for root, a service user.

    In the namespace files keep their owner, no system user is made and no folder is opened.

    Raises: `Unavailable` where none of the three works.
    """
    named = _has_name(os.geteuid())
    if os.geteuid() != 0 and named:
        return Account()
    other = _somebody()
    if other is not None and _namespaces_work(other):
        return Account(prefix=_unshare(other))
    if os.geteuid() == 0 and other is not None:
        return Account(user=other)
    raise Unavailable("PostgreSQL needs a user with a name in /etc/passwd who is not root: run similis as such a user")


def _unshare(uid: int) -> tuple[str, ...]:
    return ("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", "--")


def _namespaces_work(uid: int) -> bool:
    """Whether user namespaces may be created; Docker's default seccomp profile forbids them."""
    try:
        tried = subprocess.run([*_unshare(uid), "true"], capture_output=True, check=False, timeout=10)
    except OSError:
        return False
    return tried.returncode == 0


def _has_name(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_uid == uid
    except KeyError:
        return False


def _somebody() -> int | None:
    """The id of a named user who is not root, preferably a service user; None where there is none."""
    users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in ("postgres", "nobody"):
        if name in users:
            return users[name]
    return min(users.values(), default=None)


def hand_over(folder: Path, uid: int) -> None:
    """Make the service user the owner of the folder and its contents.

    Raises: `Unavailable` where a parent folder is closed to others; Similis does not open it by itself.
    """
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, uid, uid)
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise Unavailable(
            f"user namespaces are forbidden here and the service user of PostgreSQL cannot enter {closed[0]}: "
            "run similis as an ordinary user, or choose a --home below folders that others may enter"
        )
