"""Registers the shipped encoder as the first model, unless there is another."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.config import Settings
from shared.encoder import cards
from shared.encoder.cards import Card
from shared.errors import Conflict, Invalid, NotFound, SimilisError
from shared.log import configure, get
from shared.pipeline import lifecycle
from shared.runtime import Runtime, producer
from shared.store import generations
from shared.store.session import enqueue
from shared.types import Job

log = get(__name__)

#: the shipped model lies beside the packages, in a checkout and in site-packages; its graph is made at the first start
SHIPPED = Path(__file__).parents[2] / "models" / "similis-base"
NAME = SHIPPED.name


def ensure(settings: Settings) -> Card | None:
    """Register and publish the shipped model where no model is registered; returns its card if that was done.

    Idempotent, also when run concurrently on one models folder. A build that is killed is begun again next time.

    Raises: `Invalid` without a database setting, `Unavailable` where the database or the index does not answer.
    """
    if not settings.database.url.get_secret_value():
        raise Invalid("SIMILIS_DATABASE__URL or SIMILIS_DATABASE__URL_FILE is not set")
    rt = Runtime(settings, producer(settings))
    try:
        if _known(rt):
            return None
        folder = settings.models_dir / NAME
        with _alone(settings.models_dir):
            if _known(rt):
                return None
            card = _card(folder)
            with rt.transaction() as db:
                if generations.models(db):  # another model was registered during the build
                    return None
                lifecycle.add_model(db, rt.indexes, folder.name, card)
                enqueue(db, Job.ENCODE)  # images may be waiting for a model
            return card
    finally:
        rt.close()


def _known(rt: Runtime) -> bool:
    with rt.transaction() as db:
        return bool(generations.models(db))


def _card(folder: Path) -> Card:
    try:
        return cards.read(folder)
    except NotFound:
        from shared.encoder.derive import with_graph  # brings torch

    try:
        return with_graph(folder, SHIPPED)
    except Conflict:  # another machine that shares the folder has built it
        return cards.read(folder)


@contextmanager
def _alone(models: Path) -> Iterator[None]:
    """Hold a file lock, so that only one process of this machine builds the default model."""
    models.mkdir(parents=True, exist_ok=True)
    with (models / ".default.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Entry point, run by the supervisor once for each start of the stack; returns an exit code."""
    settings = Settings()
    configure("model", json=settings.log_json, level=settings.log_level)
    try:
        made = ensure(settings)
    except SimilisError as error:
        sys.stderr.write(f"similis: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"similis: the first model cannot be made in {settings.models_dir} ({error.strerror})\n")
        return 1
    if made is not None:
        log.info("default_model_registered", model=made.label, fingerprint=made.fingerprint)
        sys.stdout.write(f"{made.name}  {made.fingerprint}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
