"""FastAPI dependencies for the routes' signatures."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from sqlalchemy.orm import Session

from services.api.auth import Callers, Needs
from services.api.limits import Slots
from services.api.metrics import Metrics
from shared.runtime import Runtime
from shared.store.keys import Bearer, Scope


def _held(name: str) -> Any:  # noqa: ANN401 - FastAPI's own type
    """What `create` has put into the app's state under this name."""

    async def held(request: Request) -> Any:  # noqa: ANN401
        return getattr(request.app.state, name)

    return Depends(held)


Rt = Annotated[Runtime, _held("rt")]
Measured = Annotated[Metrics, _held("metrics")]
Known = Annotated[Callers, _held("callers")]
Decoding = Annotated[Slots, _held("decoding")]
Uploads = Annotated[Slots, _held("uploads")]
StoringPlaces = Annotated[Slots, _held("storing")]
ReadingPlaces = Annotated[Slots, _held("reading")]


def _db(rt: Rt) -> Iterator[Session]:
    with rt.transaction() as db:
        yield db


#: One transaction. scope="function": it commits before the response is sent, so that the client sees a failed commit.
Db = Annotated[Session, Depends(_db, scope="function")]

#: A client's repeated request carries the same key, and begins nothing twice.
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]


def key_digest(bearer: Bearer, idempotency_key: str | None) -> bytes | None:
    """The digest that is stored for an Idempotency-Key, distinct for each caller; None without a key."""
    return hashlib.sha256(f"{bearer.id}|{idempotency_key}".encode()).digest() if idempotency_key else None


CanSearch = Annotated[Bearer, Depends(Needs(Scope.SEARCH))]
CanRead = Annotated[Bearer, Depends(Needs(Scope.READ))]
#: Alarms are needed most while the database is away.
CanMeasure = Annotated[Bearer, Depends(Needs(Scope.READ, offline=True))]
CanRetrieve = Annotated[Bearer, Depends(Needs(Scope.RETRIEVE))]
CanIngest = Annotated[Bearer, Depends(Needs(Scope.INGEST))]
CanReview = Annotated[Bearer, Depends(Needs(Scope.REVIEW))]
CanReindex = Annotated[Bearer, Depends(Needs(Scope.REINDEX))]
CanErase = Annotated[Bearer, Depends(Needs(Scope.ERASE))]
#: Scopes that may begin an operation may watch it; `CanTakeIn` may also cancel and retry scans and pulls.
CanWatch = Annotated[Bearer, Depends(Needs(Scope.INGEST, Scope.REVIEW, Scope.REINDEX, Scope.ERASE, Scope.ADMIN))]
CanTakeIn = Annotated[Bearer, Depends(Needs(Scope.INGEST, Scope.ADMIN))]
CanSeeBuilds = Annotated[Bearer, Depends(Needs(Scope.READ, Scope.REINDEX))]
CanAudit = Annotated[Bearer, Depends(Needs(Scope.AUDIT))]
CanAdmin = Annotated[Bearer, Depends(Needs(Scope.ADMIN))]
