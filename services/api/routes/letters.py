"""Dead letters: work that was given up, listed with its reason and retried on request."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from services.api.answers import LettersOut, LettersRetriedOut
from services.api.dependencies import CanIngest, Db
from services.api.errors import explain
from services.api.schemas import Letter, LettersIn, LettersRetryIn
from shared.errors import Invalid
from shared.pipeline import letters as pipeline
from shared.store import letters
from shared.store.letters import Wanted

router = APIRouter(tags=["dead letters"])


@router.get("/v1/dead-letters")
def list_letters(db: Db, _: CanIngest, asked: Annotated[LettersIn, Query()]) -> LettersOut:
    """Dead letters with their reasons, the latest first."""
    wanted = Wanted(kind=asked.kind, reason=asked.reason)
    rows = letters.page(db, wanted, _after(asked.cursor), asked.limit + 1)
    shown = rows[: asked.limit]
    last = shown[-1] if len(rows) > len(shown) else None
    return {
        "letters": [
            {
                "letter": row.letter,
                "kind": row.kind,
                "reason": row.reason,
                "explanation": explain(row.reason),
                "attempts": row.attempts,
                "since": row.since,
                "sop_instance_uid": row.sop_uid,
                "study_instance_uid": row.study_uid,
                "operation": row.operation_id,
            }
            for row in shown
        ],
        "next": f"{last.since.isoformat()}~{last.letter}" if last else None,
    }


def _after(cursor: str | None) -> tuple[datetime, str] | None:
    """The time and letter of a cursor. Raises: `Invalid`."""
    if cursor is None:
        return None
    since, _, letter = cursor.partition("~")
    try:
        return datetime.fromisoformat(since), letter
    except ValueError:
        raise Invalid("this is not a cursor") from None


@router.post("/v1/dead-letters/{letter}:retry", status_code=202)
def retry(db: Db, bearer: CanIngest, letter: Letter) -> LettersRetriedOut:
    """Retry one dead letter. 404 where it is no dead letter any more."""
    pipeline.retry(db, letter, bearer.actor)
    return {"retried": {letter.partition("-")[0]: 1}}


@router.post("/v1/dead-letters:retry", status_code=202)
def retry_many(db: Db, bearer: CanIngest, asked: LettersRetryIn) -> LettersRetriedOut:
    """Retry all dead letters of a kind or a reason, at most 10,000 at once."""
    done = pipeline.retry_many(db, Wanted(kind=asked.kind, reason=asked.reason), bearer.actor)
    return {"retried": dict(done)}
