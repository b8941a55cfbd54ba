"""Grouping of hits by a payload field, for engines without native groups.

The engine is queried again without the groups that are full, not with ever larger limits: one group may hold thousands.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from shared.index.base import Answer, Hit, Match, Query

LEAST: Final = 1000  #: hits that a round asks for: several groups of some hundreds each
MOST: Final = 10_000  #: hits at most, after rounds that filled no group as hits lack the field: a whole Hamming ball
ROUNDS: Final = 50


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


def emulate(
    search: Callable[[Sequence[Query]], Sequence[Answer]], queries: Sequence[Query], *, nested: bool = True
) -> list[Answer]:
    """The answers to grouped queries, by a search without groups; `cut` where `ROUNDS` were not enough.

    With a `nested` search they are as exact as that search: the hits of a round rank before all other points of groups
    not full yet. A search that selects by one order and ranks by another is exact only if one round was enough.
    """
    walks = [_Walk(query, nested) for query in queries]
    for _ in range(ROUNDS):
        going = [walk for walk in walks if not walk.over]
        if not going:
            break
        for walk, answer in zip(going, search([walk.question() for walk in going]), strict=True):
            walk.take(answer)
    return [walk.answer() for walk in walks]


class _Walk:
    """The progress of one grouped query; `over` when it has its hits, or no points are left."""

    def __init__(self, query: Query, nested: bool) -> None:
        self._nested = nested
        self._query = query
        self._field = query.group_by or ""
        self._limit = max(query.limit, LEAST)
        self._found: dict[int, Hit] = {}
        self._kept: list[Hit] = []
        self._full: tuple[int | str, ...] = ()
        self._answers: list[Answer] = []
        self.over = False

    def question(self) -> Query:
        passed = (Match(field=self._field, values=self._full),) if self._full else ()
        without = replace(self._query.filter, must_not=(*self._query.filter.must_not, *passed))
        fields = self._query.fields
        carried = fields if fields is None or self._field in fields else (*fields, self._field)
        return replace(self._query, limit=self._limit, filter=without, fields=carried, group_by=None)

    def take(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._found |= {hit.id.int: hit for hit in answer.hits}
        hits = ordered(self._found.values())
        self._kept = cut(hits, self._query)
        counts = Counter(hit.payload.get(self._field) for hit in hits)
        full = tuple(value for value, n in counts.items() if value is not None and n >= self._query.group_limit)
        whole = len(answer.hits) < self._limit and not answer.cut
        self.over = whole or len(self._kept) == self._query.limit
        if len(full) == len(self._full):
            self._limit = min(4 * self._limit, max(MOST, self._query.limit))
        self._full = full

    def answer(self) -> Answer:
        spent = [answer.engine_ms for answer in self._answers if answer.engine_ms is not None]
        return Answer(
            hits=tuple(self._kept),
            exact=all(answer.exact for answer in self._answers) and (self._nested or len(self._answers) == 1),
            emulated=frozenset({"group_by"}),
            cut=not self.over,
            engine_ms=sum(spent) if spent else None,
        )


def ordered(hits: Iterable[Hit]) -> list[Hit]:
    """The hits by falling score, equal scores by id, because engines differ on ties."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id.int))
