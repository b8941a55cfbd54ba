"""The embedded stack: its processes, their order and their configuration."""

import errno
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.dicom import peers, tls
from services.embedded import commands
from services.embedded.home import Home
from services.embedded.part import Part, Program
from services.embedded.postgres import Postgres
from services.embedded.pulse import Answered, Pulse, Touched
from services.embedded.supervisor import Supervisor, bury_orphans, to_terminal
from services.embedded.valkey import Valkey
from shared import address
from shared.config import Settings
from shared.errors import Conflict, Denied, Invalid, Unavailable
from shared.process import Identity, boot_id, sign_of_life, until

BACKLOG = 1024  #: connections that may wait while the API restarts
OVERFLOW = 2  #: connections that a `Store` opens above its pool's size
WORKS_ON = 3  #: connections of a worker: one for its task, one for the lease, one spare
OTHERS = 20  #: connections for doctor, backup, the first model, and PostgreSQL's own reserve
#: Silence after which a part counts as hung. The API answers /livez whatever else it does. A worker sends no heartbeat
#: during a step; the longest known step takes half an hour: 64 files of a share that hangs, 30 s each.
API_SILENT_S, VECTORS_SILENT_S, BEAT_SILENT_S, WORKER_SILENT_S = 300.0, 600.0, 600.0, 2700.0
WORKER_PATIENCE_S = 20.0  # to finish or release a batch; the lease covers a worker that is killed then


@dataclass(frozen=True)
class Options:
    """The options of `similis up`."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000  #: 0: any free one
    workers: int = 0  #: of the ingest queue; 0: one for each core
    auth: bool = True
    dicom_port: int | None = 11112  #: 0: any free one; None: nothing is received over the DICOM network
    dicom_host: str = "127.0.0.1"

    @property
    def slots(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def check(options: Options) -> None:
    """Refuse a stack of which a part could not start.

    Raises: `Denied` for an API without keys, or a DICOM receiver without a file of peers, beyond loopback; `Invalid`
    for wrong admission rules, and for a file of the receiver that is wrong or cannot be read.
    """
    if not options.auth and not address.is_loopback(options.host):
        raise Denied(f"without API keys only this machine may be served: leave out --no-auth, or --host {options.host}")
    from shared.pipeline import admission

    settings = Settings()
    admission.read(settings.intake.admission)
    if options.dicom_port is not None:
        peers.known(settings.dicom.peers, options.dicom_host)
        tls.context(settings.dicom)


def serve(
    options: Options, say: Callable[[str], None] = to_terminal, ready: Callable[[str], None] | None = None
) -> None:
    """Run the stack on this home until INT, TERM or HUP, then stop it in order.

    Raises: `Conflict` where it runs already or a port is taken; `Denied` and `Invalid` as `check`; `Unavailable`
    where an engine cannot start.
    """
    check(options)
    home = Home.at(options.home)
    began = time.monotonic()
    with home.lock():
        bury_orphans(home, say)
        with ExitStack() as open_ports:
            listener = open_ports.enter_context(listen(options.host, options.port))
            dicom = None
            if options.dicom_port is not None:
                dicom = open_ports.enter_context(listen(options.dicom_host, options.dicom_port, "--dicom-port"))
            say(f"starting on {home.path}")
            supervisor = build(home, options, listener, say, dicom)
            url = supervisor.facts["url"]

            def on_ready() -> None:
                took_s = time.monotonic() - began
                say(f"ready after {took_s:.1f} s at {url}; API key in {home / 'api.key'}; Ctrl-C stops")
                if ready is not None:
                    with suppress(OSError):  # the reader of stdout has gone
                        ready(url)

            supervisor.run(on_ready)
        say("stopped")


def build(
    home: Home,
    options: Options,
    listener: socket.socket,
    say: Callable[[str], None],
    dicom: socket.socket | None = None,
) -> Supervisor:
    """The supervisor with all parts of the stack, none started yet; writes the secret files.

    The supervisor owns the listening sockets, so that connections wait while the API or the receiver restarts.
    """
    port: int = listener.getsockname()[1]
    postgres = Postgres(home.path, {"max_connections": str(connections(options.slots, Settings()))})
    valkey = Valkey(home.path)
    vectors_socket = home.sockets / "vectors.sock"
    env = commands.environment(
        home,
        urls={"database": postgres.url, "broker": valkey.url, "qdrant": f"unix://{vectors_socket}"},
        host=options.host,
        port=port,
        require_key=options.auth,
        base=os.environ,
    )
    searching = commands.HUGE_PAGES | env
    listen, key, alive = f"unix://{vectors_socket}", home / "vectors.key", home.sockets / "vectors.alive"
    vectors = Program(
        "vectors",
        commands.vectors(home / "vectors", listen, key, alive),
        searching,
        home.path,
        serves=lambda: connects(vectors_socket),
        leftovers=[vectors_socket, alive],
        stop_steps=((signal.SIGTERM, 30.0),),  # flushes
        pulse=Pulse(Touched(alive), VECTORS_SILENT_S),
    )
    sign, listener_fd = home.sockets / "api.serves", listener.fileno()
    api = Program(
        "api",
        commands.api_after_migration(home / "api.key", listener_fd, sign),
        searching,
        home.path,
        serves=lambda: sign.exists() and readyz(options.host, port)[0] == 200,  # before the sign, a request would block
        leftovers=[sign],
        keep=[listener_fd],
        pulse=Pulse(Answered(reachable_at(options.host), port), API_SILENT_S, computes=False),
    )
    model = Program("model", commands.default_model(), env, home.path, once=True, awaited=False)
    beat = _living("beat", "beat", commands.beat(home.sockets / "beat"), home, env, BEAT_SILENT_S)
    later = [*_workers(home, env, options.slots), beat, *_dicom(home, env, dicom)]
    # the first four load while initdb runs; parts that would compete with the API's start for the cores come later
    parts: list[tuple[Part, tuple[str, ...]]] = [(valkey, ()), (vectors, ()), (api, ()), (postgres, ())]
    parts += [*((one, ("api", "valkey")) for one in later), (model, ("api", "vectors"))]
    order = [["api"], ["model", *(one.name for one in later)], ["vectors"], ["valkey"], ["postgres"]]
    facts = {
        "url": f"http://{_in_url(options.host)}:{port}",
        "host": options.host,
        "port": port,
        "dicom": _facts_of(dicom),
        "boot": boot_id(),
        "started_at": time.time(),
    }
    return Supervisor(home, parts, order, facts, say)


def connections(slots: int, settings: Settings) -> int:
    """PostgreSQL's `max_connections`: as many as all processes together may open, so that none is refused."""
    pool = settings.database.pool_size + OVERFLOW
    serving = 1 + settings.dicom.processes  # processes with one connection per concurrent request
    working = slots + len(commands.WORKER_QUEUES)
    return pool * serving + WORKS_ON * working + OTHERS


def _workers(home: Home, env: dict[str, str], slots: int) -> list[Program]:
    names = [("ingest", f"ingest{number}") for number in range(1, slots + 1)]
    names += [(queue, queue) for queue in commands.WORKER_QUEUES if queue != "ingest"]
    return [_living(f"worker-{name}", name, commands.worker(queue, name), home, env) for queue, name in names]


def _dicom(home: Home, env: dict[str, str], listener: socket.socket | None) -> list[Program]:
    """The DICOM receiver, if there is a listener; it serves once it has touched its sign."""
    if listener is None:
        return []
    sign, number = home.sockets / "dicom.serves", listener.fileno()
    env = env | {
        "SIMILIS_DICOM__HOST": listener.getsockname()[0],
        "SIMILIS_DICOM__PORT": str(listener.getsockname()[1]),
    }
    argv, patience = commands.dicom(number, sign), ((signal.SIGTERM, WORKER_PATIENCE_S),)
    return [
        Program(
            "dicom",
            argv,
            env,
            home.path,
            serves=sign.exists,
            leftovers=[sign],
            stop_steps=patience,
            awaited=False,
            keep=[number],
        )
    ]


def _facts_of(dicom: socket.socket | None) -> dict[str, str | int] | None:
    if dicom is None:
        return None
    host, port = dicom.getsockname()[:2]
    return {"host": host, "port": port, "ae_title": Settings().dicom.ae_title}


def _living(
    name: str, node: str, argv: list[str], home: Home, env: dict[str, str], silent_s: float = WORKER_SILENT_S
) -> Program:
    """A Celery process, ready after its first heartbeat; not awaited, because work waits for it in the database."""
    sign = sign_of_life(home.path, node)
    patience = ((signal.SIGTERM, WORKER_PATIENCE_S),)
    return Program(
        name,
        argv,
        env,
        home.path,
        serves=sign.exists,
        leftovers=[sign],
        stop_steps=patience,
        awaited=False,
        pulse=Pulse(Touched(sign), silent_s),
    )


def reachable_at(host: str) -> str:
    """The address by which this machine itself reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - told apart, not bound


def _in_url(host: str) -> str:
    seen = reachable_at(host)
    return f"[{seen}]" if ":" in seen else seen


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises: `Conflict`, which names the option to change; `Invalid` for a host that is not this machine.
    """
    try:
        return address.listen(host, port, BACKLOG)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise Invalid(f"{host} is no address of this machine ({error.strerror})") from None
        raise Conflict(
            f"cannot listen on port {port} of {host} ({error.strerror}): choose another with {option}"
        ) from None


def connects(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(str(path))
        return True
    return False


def readyz(host: str, port: int) -> tuple[int | None, Any]:
    """Status and body of the API's answer to /readyz; None for both where it does not answer."""
    connection = http.client.HTTPConnection(reachable_at(host), port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None, None
    finally:
        connection.close()


def down(home: Home, patience_s: float = 120.0) -> bool:
    """Stop the stack on this home; False where none was running.

    Raises: `Unavailable` where the stack or one of its processes does not end.
    """
    if not home.locked:
        return False
    until(lambda: bool(home.state.get("supervisor")) or not home.locked, patience_s)
    state = home.state
    if state.get("supervisor"):
        Identity(**state["supervisor"]).signal(signal.SIGTERM)
    if not until(lambda: not home.locked, patience_s, 0.05):
        raise Unavailable("similis does not stop; see its log files")
    left = [
        name
        for name, entry in state.get("processes", {}).items()
        if entry.get("identity") and Identity(**entry["identity"]).alive
    ]
    if left:
        raise Unavailable("similis has stopped, but these processes are still running: " + ", ".join(left))
    return True
