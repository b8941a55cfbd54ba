"""`python -m services.embedded`: `similis up` without the imports of the other commands."""

import argparse
import sys
from pathlib import Path

from services.embedded.stack import Options, serve
from services.embedded.supervisor import to_terminal
from shared.errors import Conflict, Denied, SimilisError


def main() -> int:
    parser = argparse.ArgumentParser(prog="similis up")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--no-auth", action="store_true")
    parser.add_argument("--dicom-port", type=int, help="without it, nothing is received over the DICOM network")
    args = parser.parse_args()
    try:
        serve(Options(args.home, args.host, args.port, args.workers, not args.no_auth, args.dicom_port), ready=announce)
    except Denied as error:
        to_terminal(str(error))
        return 2
    except Conflict as error:
        to_terminal(str(error))
        return 4
    except SimilisError as error:
        to_terminal(str(error))
        return 1
    return 0


def announce(url: str) -> None:
    """Print only the URL on stdout, for scripts."""
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
