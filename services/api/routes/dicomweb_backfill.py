"""Backfill: pulls studies from another archive, as an operation that survives restarts."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from services.api.answers import LOCATED, OperationDetail
from services.api.dependencies import CanAdmin, Db, IdempotencyKey, Rt, key_digest
from services.api.routes.operations import begun
from services.api.schemas import PRINTABLE, Between, Codes, In, Range, ServerPath, Uids, dates
from shared.errors import Invalid
from shared.pipeline import pull
from shared.store import operations
from shared.store.session import enqueue
from shared.types import Job, OperationKind

router = APIRouter(tags=["operations"])

_Words = Annotated[str, Field(min_length=1, max_length=64, pattern=PRINTABLE)]


class QueryIn(In):
    """QIDO-RS filters for the other archive; none by patient, because the operation's parameters are stored."""

    StudyDate: Range = None
    StudyInstanceUID: Uids = Field(default_factory=list)
    ModalitiesInStudy: Codes = Field(default_factory=list)
    StudyDescription: _Words | None = None
    BodyPartExamined: _Words | None = None
    InstitutionName: _Words | None = None

    def days(self) -> tuple[date, date] | None:
        """First and last day to query; None where the query names its studies by UID. Raises: `Invalid`."""
        if self.StudyInstanceUID and self.StudyDate:
            raise Invalid("a query must name studies by either StudyInstanceUID or StudyDate")
        if self.StudyInstanceUID:
            return None
        low, high = dates(self.StudyDate)
        if self.StudyDate is not None and low is None and high is None:
            raise Invalid("StudyDate names no day; without it every day is pulled")
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)  # today, where clocks are ahead of ours
        first, last = low or pull.FIRST, high or tomorrow
        if first > last:
            raise Invalid("StudyDate ends before it begins")
        return first, last

    def rest(self) -> dict[str, str]:
        """The QIDO-RS parameters for the other archive, except the days."""
        found = self.model_dump(exclude={"StudyDate"}, exclude_none=True)
        return {name: ",".join(value) if isinstance(value, list) else value for name, value in found.items() if value}


class BackfillIn(In):
    dicomweb: Annotated[
        str, Field(min_length=1, max_length=500, description="A configured source, by its name or its URL")
    ]
    query: QueryIn = Field(default_factory=QueryIn)
    rate: Annotated[float | None, Field(ge=0.1, le=10_000, description="Instances per second, at most")] = None
    between: Between = None
    user: Annotated[str, Field(max_length=200, pattern=PRINTABLE)] = ""
    password_file: Annotated[ServerPath | None, Field(description="A file on the server with the password")] = None
    token_file: Annotated[ServerPath | None, Field(description="A file on the server with a bearer token")] = None


@router.post("/v1/ingest/backfills", status_code=202, responses={202: LOCATED})
def begin_backfill(
    rt: Rt,
    db: Db,
    bearer: CanAdmin,
    asked: BackfillIn,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> OperationDetail:
    """Start to pull another archive's studies over DICOMweb, window by window; instances already here are skipped.

    Only configured archives may be named, unless the installation allows any (embedded).
    """
    own = asked.model_dump(include={"user", "password_file", "token_file"}, exclude_none=True)
    own = {name: value for name, value in own.items() if value}
    access = rt.access(asked.dicomweb, own)
    params: dict[str, Any] = {"path": access.url, "source": asked.dicomweb, "query": asked.query.rest(), **own}
    if days := asked.query.days():
        params |= {"first": days[0].isoformat(), "last": days[1].isoformat()}
    params |= asked.model_dump(include={"rate", "between"}, exclude_none=True)
    operation = operations.create(db, OperationKind.PULL, params, key_digest(bearer, idempotency_key))
    enqueue(db, Job.PULL)
    return begun(db, operation, response)
