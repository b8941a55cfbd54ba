"""`similis train` and `similis evaluate`: registered by an entry point, so that services import no training.

Torch is imported by the commands when they run, never by the registration.
"""

import typer


def register(app: typer.Typer) -> None:
    """Add the commands that train and evaluate."""
    del app
