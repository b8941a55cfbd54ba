"""The canary: stored images query the published index, exactly and as searches do, and the recall is recorded.

A graph may degrade long after its recall was measured for publishing: by deletes, by new points, by a fault. A few
random queries every few minutes show that. Only the counts are kept, not the queries.
"""

from shared.pipeline import reindex
from shared.pipeline.reindex import Opened
from shared.store import canaries, generations, ledger
from shared.store.canaries import Canary
from shared.store.session import Begin
from shared.store.tables import Generation

QUERIES = 5  #: of one round; each costs an exact search
ENOUGH = 20  #: queries before a low recall is a finding: a single query may well find 7 of 10
#: Tolerance below the generation's gate. Around 0.97, the recall of 60 queries has a standard error of 0.01.
SLACK = 0.05


def ask(begin: Begin, open_index: Opened, every_s: float) -> Canary | None:
    """Run a round on the published generation if one is due; return what its last rounds found, None without a round.

    An index that is being optimised is not queried: the engine is busy enough.
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
    """Whether the canary's recall is clearly below the gate that the generation passed when it was published."""
    told = canaries.told(generation.canary)
    return told is not None and told.queries >= ENOUGH and told.recall < generation.gate - SLACK
