"""`python -m services.dicom`: runs the door and its receivers until INT or TERM."""

import argparse
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from services.dicom import echo, peers, tls
from services.dicom.door import Door, listen_for_checks
from shared.address import listen
from shared.config import read
from shared.errors import SimilisError
from shared.log import configure, get
from shared.pipeline import admission

log = get("services.dicom")


def main(listener: socket.socket | None = None, serving: Callable[[], None] = lambda: None) -> int:
    """Serve on the given socket, or on a new one; returns an exit code."""
    settings = read("similis dicom", "SIMILIS_DATABASE__URL", "SIMILIS_PSEUDONYM_KEY")
    dicom = settings.dicom
    configure("dicom", json=settings.log_json, level=settings.log_level)
    try:
        known = peers.known(dicom.peers, dicom.host)
        tls.context(dicom)  # each receiver makes its own; checked here to report an error once
        admission.read(settings.intake.admission)  # ditto
    except SimilisError as error:
        sys.stderr.write(f"similis dicom: {error}\n")
        return 1
    path = echo.socket_of(settings.home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        listener = listener or listen(dicom.host, dicom.port)  # first: the port's owner may replace the socket below
        with echo.short(path) as name:
            check = listen_for_checks(path, name)
        door = Door(dicom, known, listener, check)
        if dicom.metrics_port:
            door.metrics.serve(dicom.host, dicom.metrics_port)
    except OSError as error:
        sys.stderr.write(f"similis dicom: cannot listen on a port ({error.strerror}); choose another\n")
        return 1
    log.info("starting", host=dicom.host, port=listener.getsockname()[1], count=dicom.processes)
    with listener, check:
        door.run(serving)
    path.unlink(missing_ok=True)
    return 0


def run() -> int:
    parser = argparse.ArgumentParser(prog="services.dicom")
    parser.add_argument("--listener", type=int, help="the number of a listening socket, inherited")
    parser.add_argument("--sign", type=Path, help="a file that is there while connections are taken")
    args = parser.parse_args()
    listener = None if args.listener is None else socket.socket(fileno=args.listener)
    if listener is not None:
        listener.set_inheritable(False)  # a receiver that outlives the door must not keep the port open
    return main(listener, (lambda: None) if args.sign is None else args.sign.touch)


if __name__ == "__main__":
    sys.exit(run())
