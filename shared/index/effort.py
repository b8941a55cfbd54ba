"""How many candidates the search of a graph looks at: more for more recall, and more in a larger graph."""

import math
from collections.abc import Sequence
from typing import Final

#: Up to here the tables' efforts suffice. Of the first ten of forty hits, ef 48 found 0.998 of 100,000 clustered
#: vectors with the payload of an archive, 0.991 of 200,000 and 0.978 of 400,000, where 64 found 0.988 and 80 0.993.
SUFFICES: Final = 200_000


def effort(table: Sequence[tuple[float, int]], target: float, points: int) -> int:
    """The ef for this recall@10, by (recall reached, ef) in rising order, among this many points.

    Measured up to a million: there, 107 found 0.994 where 0.9 is asked for (`benchmarks/results/reproject.md`).
    """
    ef = next(ef for reached, ef in table if target <= reached)
    return round(ef * math.sqrt(max(1.0, points / SUFFICES)))
