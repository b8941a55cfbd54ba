from functools import cache

from shared.pipeline import stones, sweep
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task


@task(Job.SWEEP)
def ring_again() -> None:
    """Ring for whatever has stood still: lost messages, dead workers, ended rests."""
    rt = runtime()
    with rt.transaction() as db:
        sweep.ring_for_due(db, rt.effort)
    with rt.transaction() as db:  # apart: a home that cannot be written to must not silence the bells
        keeper().keep(db)


@cache
def keeper() -> stones.Keeper:
    return stones.Keeper(runtime().settings.home / stones.NAME)
