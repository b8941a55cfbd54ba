"""The command line and environment of each process, shared by the supervisor, the `similis` command and compose."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from services.embedded.home import Home
from shared.queue import GUESTS, QUEUES

#: -P: modules are not imported from the current folder
PYTHON = (sys.executable, "-P", "-m")
PATHS = frozenset(
    "SIMILIS_" + name
    for name in (
        "MODELS", "DICOM__PEERS", "DICOM__TLS_CERTIFICATE", "DICOM__TLS_KEY", "DICOM__TLS_CA", "INTAKE__STORE",
        "INTAKE__ADMISSION",
    )
)  # fmt: skip
#: Switches off gRPC's event engine. Threads then poll the socket of their own call, and a call takes about 0.2 ms less.
GRPC = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}
#: glibc asks the kernel for huge pages, which it grants on request by default (`madvise`). Reading vectors at random
#: then misses the TLB less: the engine's part of a search takes 17 % less time, the API's Python 5 %.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
WORKER_QUEUES = tuple(sorted(set(QUEUES.values()) - GUESTS.keys()))


def api() -> list[str]:
    return [*PYTHON, "services.api"]


def api_after_migration(key_file: Path, listener: int, sign: Path) -> list[str]:
    """`migrate`, then `api`, in one process; it serves the inherited socket and touches `sign` once it does."""
    told = ["--key-file", str(key_file), "--listener", str(listener), "--sign", str(sign)]
    return [*PYTHON, "services.embedded.api", *told]


def vectors(folder: Path, listen: str, key_file: Path, sign: Path | None = None) -> list[str]:
    """The vectors process; it touches `sign` every few seconds while it answers."""
    told = ["--dir", str(folder), "--listen", listen, "--api-key-file", str(key_file)]
    return [*PYTHON, "services.vectors", *told, *([] if sign is None else ["--sign", str(sign)])]


def dicom(listener: int | None = None, sign: Path | None = None) -> list[str]:
    """The DICOM receiver, on an inherited socket if given; it touches `sign` once it takes connections."""
    told = [] if listener is None else ["--listener", str(listener)]
    return [*PYTHON, "services.dicom", *told, *([] if sign is None else ["--sign", str(sign)])]


def worker(queue: str, name: str) -> list[str]:
    """A worker with one slot, for a queue and its guests. Pool solo: torch and faiss are not safe after a fork."""
    options = [
        "--include",
        "workers.heartbeat",
        "--pool",
        "solo",
        "--queues",
        ",".join([queue, *(guest for guest, host in GUESTS.items() if host == queue)]),
        "--hostname",
        f"{name}@%h",
        "--loglevel",
        "INFO",
    ]
    return [*_celery(), "worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat"]


def beat(schedule: Path) -> list[str]:
    options = ["--scheduler", "workers.heartbeat:ShowingLife", "--pidfile", "", "--loglevel", "INFO"]
    return [*_celery(), "beat", "--schedule", str(schedule), *options]


def migrate(key_file: Path | None = None) -> list[str]:
    return [*PYTHON, "services.embedded.setup", *(["--key-file", str(key_file)] if key_file else [])]


def default_model() -> list[str]:
    return [*PYTHON, "services.embedded.default_model"]


def _celery() -> list[str]:
    """Celery's command, quiet, because its banners do not belong into a structured log."""
    return [*PYTHON, "celery", "--quiet", "--app", "workers.app:app"]


def environment(
    home: Home, *, urls: Mapping[str, str], host: str, port: int, require_key: bool, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the embedded processes; secrets are passed as file names.

    Args:
        urls: of `database`, `broker` (both secrets) and `qdrant`.
        base: the caller's environment, which applies to all settings that the stack does not set itself.
    """
    write_secrets(home, urls)
    ours = {
        "SIMILIS_HOME": str(home.path),
        "SIMILIS_DATABASE__URL_FILE": str(home / "database.url"),
        "SIMILIS_BROKER__URL_FILE": str(home / "broker.url"),
        "SIMILIS_QDRANT__URL": urls["qdrant"],
        "SIMILIS_QDRANT__API_KEY_FILE": str(home / "vectors.key"),
        "SIMILIS_PSEUDONYM_KEY_FILE": str(home / "pseudonym.key"),
        "SIMILIS_API__HOST": host,
        "SIMILIS_API__PORT": str(port),
        "SIMILIS_API__REQUIRE_KEY": str(require_key).lower(),
    }
    decided = {name.removesuffix("_FILE") for name in ours}
    env = {name: value for name, value in base.items() if name.removesuffix("_FILE") not in decided}
    if "SIMILIS_INTAKE__ROOTS" not in env:
        env.setdefault("SIMILIS_INTAKE__ANY_ROOT", "true")  # the API's callers are this machine's own users
    if "SIMILIS_INTAKE__DICOMWEB_SOURCES" not in env:
        env.setdefault("SIMILIS_INTAKE__ANY_SOURCE", "true")
    for name, value in env.items():  # the processes run in another folder than the caller
        if value and (name in PATHS or re.fullmatch("SIMILIS_.*_FILE", name)):
            env[name] = os.path.abspath(value)  # noqa: PTH100 - links stay links
    return GRPC | env | ours | {"PYTHONUNBUFFERED": "1"}


def write_secrets(home: Home, urls: Mapping[str, str]) -> None:
    """Write the file of every secret of the home, mode 0600; existing keys stay."""
    home.secret("api.key", prefix="sml_")
    home.secret("vectors.key")
    home.secret("pseudonym.key")
    home.keep("database.url", urls["database"])
    home.keep("broker.url", urls["broker"])
