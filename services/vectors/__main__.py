"""`python -m services.vectors --dir DIR --listen 127.0.0.1:PORT|unix:/path --api-key-file FILE [--sign FILE]`.

Exits with 0 on SIGTERM or SIGINT, 4 when another process holds the folder or the address, 2 for a wrong argument.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from services.vectors.refused import Refused
from services.vectors.server import VectorsServer
from shared import log

HELD = 4
SIGN_S = 5.0  #: between two heartbeats


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="similis vectors", description="Qdrant Edge behind Qdrant's own gRPC.")
    parser.add_argument(
        "--dir", type=Path, required=True, help="folder of the collections; no other process may use it"
    )
    parser.add_argument("--listen", required=True, help="127.0.0.1:PORT, or unix:/path")
    parser.add_argument("--api-key-file", type=Path, required=True, help="every call must carry this key")
    parser.add_argument("--sign", type=Path, help="a file that is touched every few seconds while calls are answered")
    args = parser.parse_args(arguments)
    key = args.api_key_file.read_text(encoding="utf-8").strip()
    if len(key) < 16:
        parser.error("the api key must have at least 16 characters")
    if not args.listen.startswith(("unix:", "127.0.0.1:", "[::1]:")):
        parser.error("the vectors process may listen on loopback or a unix socket only")
    log.configure("vectors")
    os.umask(0o077)  # also for the socket
    stop = SimpleQueue[int]()  # its put is reentrant, so safe in a signal handler; `Event.set` may deadlock
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.put(number))
    try:
        server = VectorsServer(args.dir, args.listen, key)
    except (Refused, RuntimeError) as error:
        print(f"vectors: {error}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return HELD
    gc.collect()
    gc.freeze()  # keeps loaded objects out of later collections
    gc.set_threshold(50_000)
    server.start()
    log.get(__name__).info("vectors_ready", port=server.port, count=len(server.shards.names()))
    until_stopped(stop, server, args.sign)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # Python restores default handlers at exit; a second signal would kill
    server.stop()
    return 0


def until_stopped(stop: SimpleQueue[int], server: VectorsServer, sign: Path | None) -> None:
    """Wait for a signal, touching the file `sign` every `SIGN_S` while the server answers calls."""
    while True:
        try:
            stop.get(timeout=None if sign is None else SIGN_S)
        except Empty:
            if sign is not None and server.answers():
                sign.touch()
            continue
        return


if __name__ == "__main__":
    sys.exit(main())
