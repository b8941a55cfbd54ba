"""Re-index: fill a generation beside the live one, wait until it lacks nothing, and measure its recall.

Stored encodings are not computed again: ledger rows are written from them, and the projector does the rest. Images
that the model has not encoded are left to `catchup`. Every step is one transaction and begins where the last one
ended, so a build may be killed, paused and taken over anywhere.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared import heartbeat
from shared.errors import NotFound, Unavailable
from shared.imaging.pseudonym import patient_number
from shared.index.base import Exact, Filter, Index, IndexStore, Match, Query, Recall
from shared.pipeline.ask import LEAST_DEPTH
from shared.pipeline.lease import turn
from shared.pipeline.pace import allow, closed_s
from shared.pipeline.question import TARGET
from shared.store import catchup, coverage, encodings, generations, images, ledger, operations
from shared.store.canaries import K
from shared.store.locks import Lock, share
from shared.store.operations import Held
from shared.store.session import Begin, enqueue
from shared.store.tables import Generation
from shared.types import Job, OperationKind, OperationState

CHUNK = 2000  #: images looked at in one transaction
REST_S = 1.0  #: until the coverage is checked again
CALM = 10  #: pause between two counts, as a multiple of the last one: of a large archive it takes half a minute
LOOK_S = 10.0  #: outside its hours, a build checks this often whether they were changed
AWAY_S = 3.0  #: until an engine that was unavailable is tried again, before anything is counted
GRACE_S = 60.0  #: until a retired generation is purged: longer than any query that still uses it
SAMPLE, SEED = 100, 0
TIE = 1e-6  #: tolerance at the k-th score: ties are equally right

Opened = Callable[[str], Index]


def advance(begin: Begin, open_index: Opened, *, budget_s: float = 20.0, chunk: int = CHUNK) -> bool:
    """Advance one due build as far as possible; return True if there may be more to do at once."""
    with turn(begin, OperationKind.REINDEX, AWAY_S) as held:
        if held is None or not _build(begin, open_index, held, budget_s, chunk):
            return False
    return True  # also after an error


def _build(begin: Begin, open_index: Opened, held: Held, budget_s: float, chunk: int) -> bool:
    until = time.monotonic() + budget_s
    with begin() as db:
        built = generations.built_by(db, held.id)
    if built is None:
        raise NotFound("the generation of this operation no longer exists")
    if built.state == "retired":  # while its operation was resumed
        with begin() as db:
            operations.end(db, held, OperationState.CANCELLED)
        return True
    number = built.id
    while True:
        heartbeat.beat()
        with begin() as db:
            if not operations.mine(db, held):
                return False  # paused, cancelled, or taken over
            found = generations.get(db, number)
            if wait_s := closed_s(found.hours):
                operations.rest(db, held, min(wait_s, LOOK_S))
                return False
            looked_at = fill(db, found, chunk)
        if found.filled_at is not None:
            break
        if looked_at == 0 or time.monotonic() >= until:
            _leave(begin, held, number, REST_S if looked_at == 0 else 0.0)
            return looked_at > 0
    index = open_index(found.collection)
    index.info()  # an engine that is unavailable costs no count
    with begin() as db:
        covered, calm_s = _report(db, held, generations.get(db, number))
        if covered.coming:
            if covered.by_reason.get("missing"):  # a ledger row is missing: filling from the start is cheap
                found = generations.get(db, number)
                found.filled_to, found.filled_at = 0, None
            enqueue(db, Job.PROJECT)
            enqueue(db, Job.CATCH_UP)
            operations.rest(db, held, max(REST_S, calm_s))
            return False
    _finish(begin, index, held, number, max(AWAY_S, calm_s))
    return True


def _leave(begin: Begin, held: Held, number: int, rest_s: float) -> None:
    """Make the unfinished fill due again after `rest_s` seconds.

    In a transaction of its own: whoever waits for the generation's row waits for the fill, and not for a count.
    """
    with begin() as db:
        if generations.to_count(db, number):
            _report(db, held, generations.get(db, number))
        operations.rest(db, held, rest_s)


def fill(db: Session, found: Generation, chunk: int = CHUNK) -> int:
    """Write the next images' stored encodings to the ledger, make the others due for catch-up; return how many.

    The images are locked: an erasure or a replacement comes before or after, never unseen. Ledger rows that others
    wrote meanwhile stay. Fewer images than allowed are the last: later ones go to every open generation anyway.
    """
    db.refresh(found, with_for_update={"key_share": True})
    allowed = allow(db, found, chunk) if found.state == "open" and found.filled_at is None else 0
    if allowed == 0:
        return 0
    ids = images.after(db, found.filled_to, allowed)
    ledger.fill(db, found.id, ledger.stored(db, found.model_id, ids))
    catchup.fill(db, found.model_id, ids)
    if ids:
        found.filled_to = ids[-1]
    if len(ids) < allowed:
        found.filled_at = sa.func.clock_timestamp()
    enqueue(db, Job.PROJECT)
    enqueue(db, Job.CATCH_UP)
    db.flush()
    db.refresh(found)
    return len(ids)


def _report(db: Session, held: Held, found: Generation) -> tuple[coverage.Coverage, float]:
    """Write the coverage to the operation; return it, and the seconds until it is counted again."""
    began = time.monotonic()
    covered = coverage.count(db, found.id, found.model_id)
    calm_s = CALM * (time.monotonic() - began)
    operations.progress(
        db,
        held,
        done=covered.covered,
        total=covered.images,
        counts=covered.by_reason,
        cursor={"image": found.filled_to},
    )
    generations.counted(db, found.id, calm_s)
    return covered, calm_s


def _finish(begin: Begin, index: Index, held: Held, number: int, away_s: float) -> None:
    """Have the engine link the graph, measure the recall and end the operation. Publishing is left to a person.

    If the engine becomes unavailable, the build rests for `away_s` seconds: the next try begins with another count.
    If the build is stopped meanwhile, the engine finishes its graph alone.
    """
    goes_on = partial(_goes_on, begin, held)
    with begin() as db:
        found = generations.get(db, number)
        rows = ledger.sample(db, found.id, found.model_id, SAMPLE, SEED)
    try:
        index.optimize(goes_on)
        if not goes_on():
            return
        measured = recall(index, rows)
    except Unavailable as error:
        with begin() as db:
            operations.rest(db, held, away_s, str(error))
        return
    with begin() as db:
        if operations.mine(db, held):
            found = generations.get(db, number)
            found.measured = measured
            _report(db, held, found)
            operations.end(db, held, OperationState.SUCCEEDED)


def _goes_on(begin: Begin, held: Held) -> bool:
    """Show a sign of life; return False once the build was paused, cancelled or taken over.

    True while the database is unavailable: the wait for the engine outlives a restart of Postgres.
    """
    heartbeat.beat()
    with suppress(Unavailable), begin() as db:
        return operations.mine(db, held)
    return True


def recall(index: Index, rows: Sequence[ledger.Sampled]) -> dict[str, float]:
    """Return the recall@10 of the index, at the accuracy that searches ask for."""
    found, wanted = compare(index, rows)
    return {"recall": found / wanted if wanted else 1.0, "k": K, "sample": len(rows), "points": index.count()}


def compare(index: Index, rows: Sequence[ledger.Sampled]) -> tuple[int, int]:
    """Return how many of the exact first ten are among the first ten of a usual search, and how many there are.

    The query's patient is excluded in both, and ties are equally right. Between two queries the engine rests as long
    as the last one took, at most 0.2 s: others are searching.
    """
    found = wanted = 0
    for row in rows:
        heartbeat.beat()
        vector = encodings.unpack(row.embedding)
        other = Filter(must_not=(Match(field="patient", values=(patient_number(row.patient_key),)),))
        began = time.monotonic()
        truth, asked = index.search(
            [
                Query(vector=vector, limit=K, filter=other, accuracy=Exact()),
                Query(vector=vector, limit=LEAST_DEPTH, filter=other, accuracy=Recall(TARGET)),
            ]
        )
        if not truth.hits:
            continue
        ids, worst = {hit.id for hit in truth.hits}, truth.hits[-1].score - TIE
        found += sum(hit.id in ids or hit.score >= worst for hit in asked.hits[:K])
        wanted += len(truth.hits)
        time.sleep(min(time.monotonic() - began, 0.2))
    return found, wanted


def purge(begin: Begin, indexes: IndexStore, grace_s: float = GRACE_S, chunk: int = 10_000) -> int:
    """Purge collections and ledgers of generations that were retired `grace_s` seconds ago; return how many.

    The collection goes first: as long as its ledger rows exist, erasures still check it. What is due for models
    without an open generation is dropped as well.
    """
    with begin() as db:
        closed = catchup.closed(db)
    for model in closed:
        while _drop_next(begin, model, chunk):
            heartbeat.beat()
    with begin() as db:
        due = generations.purgeable(db, grace_s)
    for number in due:
        with begin() as db:
            collection = generations.get(db, number).collection
        with suppress(NotFound):
            indexes.drop(collection)
        while True:
            heartbeat.beat()
            with begin() as db:
                if ledger.clear(db, number, chunk):
                    continue
                generations.get(db, number).purged_at = sa.func.clock_timestamp()
                break
    return len(due)


def _drop_next(begin: Begin, model_id: int, chunk: int) -> int:
    with begin() as db:
        share(db, Lock.GENERATIONS)  # nobody opens one of this model meanwhile
        return catchup.drop_next(db, model_id, chunk)
