"""At most so many hits of each value of a field, for engines that cannot do it themselves."""

from collections import Counter
from collections.abc import Callable, Sequence

from shared.index.base import Hit, Query


def cut(hits: Sequence[Hit], query: Query) -> list[Hit]:
    """The first `limit` hits with at most `group_limit` of each group; points without the field are left out."""
    if query.group_by is None:
        return list(hits[: query.limit])
    seen: Counter[int | str] = Counter()
    kept: list[Hit] = []
    for hit in hits:
        value = hit.payload.get(query.group_by)
        if value is None or seen[value] >= query.group_limit:
            continue
        seen[value] += 1
        kept.append(hit)
        if len(kept) == query.limit:
            break
    return kept


def overfetch(fetch: Callable[[int], Sequence[Hit]], query: Query, ceiling: int) -> list[Hit]:
    """Ask for more and more hits until the groups are full or nothing is left.

    Args:
        fetch: the best n hits without grouping, ordered.
        ceiling: how many points there are; never asks for more.
    """
    want = min(query.limit * query.group_limit * 4, ceiling)
    while want:
        kept = cut(fetch(want), query)
        if len(kept) == query.limit or want == ceiling:
            return kept
        want = min(want * 4, ceiling)
    return []


def ordered(hits: Sequence[Hit]) -> list[Hit]:
    """By falling score, equal scores by id: engines differ on ties."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id.int))
