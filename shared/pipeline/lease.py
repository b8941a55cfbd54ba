"""Leases are renewed beside the work, so that they may be short: a dead worker's work is taken over soon."""

import threading
from collections.abc import Callable
from typing import Self

from sqlalchemy.orm import Session

from shared.log import get
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
            except Exception:  # the database is away: the leases end and others take over
                log.warning("lease_not_renewed", exc_info=True)
