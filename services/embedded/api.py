"""The API as the supervisor starts it: it loads while the engines start, migrates, and then serves.

In production `similis migrate` and `similis api` are two processes. Here one does both, one after the other:
they import the same things, and on two cores importing is most of what a start costs.

The socket is the supervisor's: while this process is away, connections wait in it instead of being refused.
"""

import argparse
import importlib
import socket
from pathlib import Path

from services.api import __main__ as server
from services.embedded import setup


def main() -> int:
    parser = argparse.ArgumentParser(prog="services.embedded.api")
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument("--listener", type=int, required=True, help="the number of a listening socket, inherited")
    parser.add_argument("--sign", type=Path, required=True, help="a file that is there while requests are answered")
    args = parser.parse_args()
    listener = socket.socket(fileno=args.listener)
    listener.set_inheritable(False)  # a decoder that outlives us must not hold the port
    importlib.import_module("shared.index.qdrant")  # needed by the first /readyz: loaded while initdb works
    return setup.run(args.key_file) or server.main(listener, args.sign.touch)


if __name__ == "__main__":
    raise SystemExit(main())
