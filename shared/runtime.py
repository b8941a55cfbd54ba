"""The only place that builds things. Everything heavy is made when first used and then kept."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from shared.config import Settings
from shared.encoder.base import Encoder
from shared.encoder.cards import Card
from shared.errors import Conflict, Denied, Invalid, Unavailable
from shared.imaging.sandbox import Sandbox
from shared.index.base import Index, IndexStore
from shared.pipeline import admission
from shared.pipeline.admission import Admission
from shared.pipeline.dicomweb import Access, checked
from shared.pipeline.encode import Effort
from shared.pipeline.receive import Rules
from shared.queue import CeleryQueue, MemoryQueue, Queue
from shared.store import generations, pseudonyms
from shared.store.blobs import MIB, Blobs
from shared.store.generations import Published
from shared.store.session import Store

if TYPE_CHECKING:
    from celery import Celery


class Runtime:
    """One process's share of the platform."""

    def __init__(self, settings: Settings, celery: "Celery | None" = None) -> None:
        self.settings = settings
        self._celery = celery
        self._lock = threading.Lock()
        self._encoders: dict[str, Encoder] = {}
        self._indexes: dict[str, Index] = {}

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.database.url.get_secret_value(), self.settings.database.pool_size)

    @cached_property
    def queue(self) -> Queue:
        return CeleryQueue(self._celery) if self._celery is not None else MemoryQueue()

    @cached_property
    def indexes(self) -> IndexStore:
        from shared.index.qdrant import QdrantStore

        q = self.settings.qdrant
        return QdrantStore(q.url, api_key=q.api_key.get_secret_value(), timeout_s=q.timeout_s)

    @cached_property
    def sandbox(self) -> Sandbox:
        return Sandbox()

    @cached_property
    def blobs(self) -> Blobs:
        return Blobs(self.settings.blobs_dir.absolute(), self.settings.intake.reserve_mb * MIB)

    @cached_property
    def admission(self) -> Admission:
        """The site's rules, read once. Raises: `Invalid`."""
        return admission.read(self.settings.intake.admission)

    def transaction(self) -> AbstractContextManager[Session]:
        """One unit of work; the bells it asked for ring after its commit."""
        return self.store.transaction(self.queue.ring)

    def index(self, collection: str) -> Index:
        found = self._indexes.get(collection)
        if found is None:
            found = self._indexes[collection] = self.indexes.open(collection)
        return found

    def encoder(self, model: Published) -> Encoder:
        """The model, loaded once, and kept while a generation of it is open: a batch goes through all of these."""
        if (kept := self._encoders.get(model.fingerprint)) is not None:
            return kept
        with self.store.reading() as connection:
            needed = {one.fingerprint for one in generations.opened(connection)}
        with self._lock:
            found = self._encoders.get(model.fingerprint)
            if found is None:
                from shared.encoder.runtime import load

                self._encoders = {name: one for name, one in self._encoders.items() if name in needed}
                e = self.settings.encoding
                found = load(self.folder(model.folder), runtime=e.runtime, threads=e.threads)
                if found.card.fingerprint != model.fingerprint:
                    raise Invalid("the model folder holds another model than the registered one")
                self._encoders[model.fingerprint] = found
            return found

    def proved(self, name: str) -> Card:
        """The card of this folder, whose model runs here. Raises: as `prove`."""
        from shared.encoder.runtime import prove

        return prove(self.folder(name), self.settings.encoding.runtime, self.settings.encoding.threads)

    def folder(self, name: str) -> Path:
        """Where a model's card lies; the row names it relative to the models folder, so that it may move."""
        return self.settings.models_dir / name

    def access(self, source: str, own: Mapping[str, str]) -> Access:
        """How to reach another archive: a configured one by its name or address, or any where that is allowed.

        Args:
            own: `user`, `password_file` and `token_file` for an archive that is not configured.

        Raises: `Denied`, `Invalid`.
        """
        for known in self.settings.intake.dicomweb_sources:
            if source.rstrip("/") in (known.name, known.url.rstrip("/")):
                if own:
                    raise Invalid("user and secrets of a configured source stand in its settings")
                return Access(**known.model_dump(exclude={"name"}))
        if not self.settings.intake.any_source:
            raise Denied("this archive is none of the configured sources")
        files = {name: Path(own[name]) for name in ("password_file", "token_file") if name in own}
        return Access(url=checked(source), user=own.get("user", ""), **files)

    @cached_property
    def secret(self) -> bytes:
        """The key of the pseudonyms. Raises: `Unavailable` where the database's were made with another."""
        secret = self.settings.pseudonym_key.get_secret_value().encode()
        try:
            with self.store.reading() as connection:
                pseudonyms.check(connection, secret)
        except Conflict as error:  # no caller's fault: whatever is sent to us is to be sent again
            raise Unavailable(str(error)) from None
        return secret

    @property
    def rules(self) -> Rules:
        i = self.settings.intake
        return Rules(
            secret=self.secret,
            same_uid=i.same_uid_policy,
            admission=self.admission,
        )

    @property
    def watch_rules(self) -> Rules:
        """While a folder is watched, files that may still be written are left for the next round.

        What cannot be read is tried again once an hour; the journal has one line, until the reason is another.
        """
        return replace(self.rules, settle_s=self.settings.intake.settle_s, rest_s=3600.0)

    @property
    def effort(self) -> Effort:
        i = self.settings.intake
        return Effort(batch=i.batch, lease_s=i.lease_s, max_failures=i.max_failures)

    def close(self) -> None:
        for name in ("sandbox", "indexes", "store"):
            if name in self.__dict__:  # what was never used was never made
                self.__dict__[name].close()


def producer(settings: Settings) -> "Celery | None":
    """The sending half of Celery: it rings and never works; the workers' own app has the rest.

    None where no broker is named: the sweep then finds the work.
    """
    url = settings.broker.url.get_secret_value()
    if not url:
        return None
    from celery import Celery

    app = Celery("similis", broker=url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue="ingest",
        # a request must not wait for a broker that hangs
        broker_transport_options={"socket_timeout": 2, "socket_connect_timeout": 2, "socket_keepalive": True},
    )
    return app
