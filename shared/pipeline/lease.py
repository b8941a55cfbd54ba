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
from shared.types import OperationKind, OperationState

log = get(__name__)

LEASE_S = 30.0  #: of an operation


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
def turn(begin: Begin, kind: OperationKind, away_s: float) -> Iterator[Held | None]:
    """Claim the operation of this kind that has been due for longest, and hold it until the block ends.

    Yields None if none is due. While it is held, its lease is renewed; the error that ends the block is written to its
    row. After `Unavailable` the operation rests for `away_s` seconds and goes on where it was; a lasting one does so
    after any error. Otherwise an error fails the operation. Such an error does not leave the block; one of a block that
    got None does, and so does one of the database while the outcome is written.
    """
    with begin() as db:
        held = operations.claim(db, kind, LEASE_S)
    if held is None:
        yield None
        return
    try:
        with Keeper(begin, held.lease_s, lambda db: operations.renew(db, held)):
            yield held
    except Exception as error:
        if not isinstance(error, SimilisError):
            log.exception("turn_failed", operation_id=str(held.id))
        with begin() as db:
            if held.lasting or isinstance(error, Unavailable):
                operations.rest(db, held, away_s, _told(error))
            else:
                operations.end(db, held, OperationState.FAILED, _told(error))


def _told(error: Exception) -> str:
    """Return the text that clients may read: the message of our own errors, else only the type."""
    return str(error) if isinstance(error, SimilisError) else f"internal error ({type(error).__name__})"
