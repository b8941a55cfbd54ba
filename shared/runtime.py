"""The composition root: builds a process's stores, indexes, encoders and queue, each on first use."""

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

    from shared.pipeline.reconcile import Site


class Runtime:
    """The resources of one process."""

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
        """The site's admission rules, read once. Raises: `Invalid`."""
        return admission.read(self.settings.intake.admission)

    def transaction(self) -> AbstractContextManager[Session]:
        """One unit of work; the messages of the jobs enqueued in it are sent after its commit."""
        return self.store.transaction(self.queue.ring)

    def index(self, collection: str) -> Index:
        found = self._indexes.get(collection)
        if found is None:
            found = self._indexes[collection] = self.indexes.open(collection)
        return found

    def encoder(self, model: Published) -> Encoder:
        """Return the model's encoder, loaded once. Loading a model drops those that no open generation uses."""
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
        """Return the card of this folder after its model ran here. Raises: as `prove`."""
        from shared.encoder.runtime import prove

        return prove(self.folder(name), self.settings.encoding.runtime, self.settings.encoding.threads)

    def folder(self, name: str) -> Path:
        """Return the folder of a model's card; rows store it relative to the models folder, which may move."""
        return self.settings.models_dir / name

    def access(self, source: str, own: Mapping[str, str]) -> Access:
        """Return the access to another archive: a configured one by name or address, or any if that is allowed.

        Args:
            own: `user`, `password_file` and `token_file` for an archive that is not configured.

        Raises: `Denied`, `Invalid`.
        """
        for known in self.settings.intake.dicomweb_sources:
            if source.rstrip("/") in (known.name, known.url.rstrip("/")):
                if own:
                    raise Invalid("a configured source takes user and secrets from its settings; do not pass them")
                return Access(**known.model_dump(exclude={"name"}))
        if not self.settings.intake.any_source:
            raise Denied("this archive is not one of the configured sources")
        files = {name: Path(own[name]) for name in ("password_file", "token_file") if name in own}
        return Access(url=checked(source), user=own.get("user", ""), **files)

    @cached_property
    def secret(self) -> bytes:
        """The pseudonym key. Raises: `Unavailable` if the database's pseudonyms were made with another key."""
        secret = self.settings.pseudonym_key.get_secret_value().encode()
        try:
            with self.store.reading() as connection:
                pseudonyms.check(connection, secret)
        except Conflict as error:  # not the caller's fault: senders should send again
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
        """The rules for a watched folder: files that may still be written to are left for the next round.

        An unreadable file is tried again once an hour; the journal gets one line until the reason changes.
        """
        return replace(self.rules, settle_s=self.settings.intake.settle_s, rest_s=3600.0)

    @property
    def effort(self) -> Effort:
        i = self.settings.intake
        return Effort(batch=i.batch, lease_s=i.lease_s, max_failures=i.max_failures)

    @property
    def site(self) -> "Site":
        """What `shared.pipeline.reconcile` compares."""
        from shared.pipeline.reconcile import Site

        return Site(
            begin=self.transaction,
            indexes=self.indexes,
            models=self.settings.models_dir,
            blobs=self.blobs,
            inspector=self.sandbox,
            rules=self.rules,
        )

    def close(self) -> None:
        for name in ("sandbox", "indexes", "store"):
            if name in self.__dict__:  # built on first use only
                self.__dict__[name].close()


def producer(settings: Settings) -> "Celery | None":
    """Return a Celery app that only sends messages; the workers have an app of their own.

    None if no broker is configured: the sweep then finds the work.
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
