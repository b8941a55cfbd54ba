"""The API process of the embedded stack: imports modules while the engines start, migrates, and then serves.

In production `similis migrate` and `similis api` are two processes. Here one process does both, because they import
the same modules, and on two cores imports take most of the start.

The supervisor owns the listening socket: while this process restarts, connections wait instead of being refused.
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
    listener.set_inheritable(False)  # a sandbox child that outlives this process must not keep the port open
    importlib.import_module("shared.index.qdrant")  # needed by the first /readyz; imported while initdb runs
    return setup.run(args.key_file) or server.main(listener, args.sign.touch)


if __name__ == "__main__":
    raise SystemExit(main())
