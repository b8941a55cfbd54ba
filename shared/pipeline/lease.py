"""Leases are renewed in a background thread, so they can be short: a dead worker's work is taken over soon."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy.orm import Session

from shared.errors import SimilisError, Unavailable
from shared.log import get
from shared.store import operations
from shared.store.operations import Held
from shared.store.session import Begin

log = get(__name__)


class Keeper:
    """While the block runs, `renew` is called three times per lease, in a transaction of its own."""

    def __init__(self, begin: Begin, lease_s: float, renew: Callable[[Session], None]) -> None:
        self._begin, self._every_s, self._renew = begin, lease_s / 3, renew
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                with self._begin() as db:
                    self._renew(db)
            except Exception:  # the database is unavailable: the leases end and others take over
                log.warning("lease_not_renewed", exc_info=True)


@contextmanager
def turn(begin: Begin, held: Held, lease_s: float, away_s: float, *, lasting: bool = False) -> Iterator[None]:
    """Run one worker's turn at an operation: renew its lease, and write the error that ends the block to its row.

    After `Unavailable` the operation rests for `away_s` seconds and goes on where it was; a `lasting` one (a watch)
    does so after any error. Otherwise an error fails the operation. No error leaves the block.
    """
    try:
        with Keeper(begin, lease_s, lambda db: operations.renew(db, held, lease_s)):
            yield
    except Exception as error:
        if not isinstance(error, SimilisError):
            log.exception("turn_failed", operation_id=str(held.id))
        with begin() as db:
            if lasting or isinstance(error, Unavailable):
                operations.rest(db, held, away_s, _told(error))
            else:
                operations.end(db, held, "failed", _told(error))


def _told(error: Exception) -> str:
    """Return the text that clients may read: the message of our own errors, else only the type."""
    return str(error) if isinstance(error, SimilisError) else f"internal error ({type(error).__name__})"
