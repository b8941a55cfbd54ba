"""The API as the supervisor starts it: it loads while the engines start, migrates, and then serves.

In production `similis migrate` and `similis api` are two processes. Here one does both, one after the other:
they import the same things, and on two cores importing is most of what a start costs.
"""

import importlib

from services.api import __main__ as server
from services.embedded import setup


def main() -> int:
    key_file = setup.key_file()
    importlib.import_module("shared.index.qdrant")  # needed by the first /readyz: loaded while initdb works
    return setup.run(key_file) or server.main()


if __name__ == "__main__":
    raise SystemExit(main())
