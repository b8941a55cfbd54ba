"""The canary: stored images ask again, exactly and as searches do, and what the index finds of the truth is kept.

A graph may decay long after the recall that it was published with was measured: by deletes, by what came since, by a
fault. A few random images every few minutes notice it; what they asked is not kept, only how much was found.
"""

from shared.pipeline import reindex
from shared.pipeline.reindex import Opened
from shared.store import canaries, generations, ledger
from shared.store.canaries import Canary
from shared.store.session import Begin
from shared.store.tables import Generation

QUERIES = 5  #: of one round; each costs an exact search
ENOUGH = 20  #: queries, before fewer found ones are a finding: a single query may well find 7 of 10
#: Below the generation's gate. The recall of 60 queries strays by 0.01 (one standard error) around 0.97.
SLACK = 0.05


def ask(begin: Begin, open_index: Opened, every_s: float) -> Canary | None:
    """One round has been asked of the published generation, if one was due; what its last rounds found.

    Nothing is asked of an index that is being optimised: the engine has enough to do.
    """
    with begin() as db:
        live = generations.published(db)
        if live is None or not canaries.claim(db, live.generation_id, every_s):
            return None
        rows = ledger.chosen(db, live.generation_id, live.model_id, QUERIES)
    index = open_index(live.collection)
    if not rows or index.info().optimizing:
        return None
    found, wanted = reindex.compare(index, rows)
    with begin() as db:
        return canaries.record(db, live.generation_id, len(rows), found, wanted)


def failing(generation: Generation) -> bool:
    """It finds clearly less than its gate asked for when it was published."""
    told = canaries.told(generation.canary)
    return told is not None and told.queries >= ENOUGH and told.recall < generation.gate - SLACK
