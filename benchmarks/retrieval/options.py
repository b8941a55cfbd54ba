"""Options common to the training benchmarks, which `python -m benchmarks.retrieval` passes on."""

import argparse
from pathlib import Path
from tempfile import gettempdir


def parser(about: str | None, out: Path, scratch: str) -> argparse.ArgumentParser:
    """A parser with profile, folders and threads; each benchmark adds its own options."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--profile", choices=("quick", "full"), default="quick")
    made.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the development data")
    made.add_argument("--out", type=Path, default=out)
    made.add_argument("--scratch", type=Path, default=Path(gettempdir()) / scratch, help="not committed")
    made.add_argument("--threads", type=int, default=1)
    return made
