"""Ask: query the index for more hits than are shown, and once more grouped by study if they cover too few studies."""

from collections.abc import Sequence
from dataclasses import replace

from shared.imaging.pseudonym import patient_number
from shared.index.base import Answer, Condition, Filter, Match, Query
from shared.pipeline import rank
from shared.pipeline.cursor import Page
from shared.pipeline.hashes import Search
from shared.pipeline.question import Request, Subject
from shared.pipeline.rank import QueryImage

Asked = tuple[list[Answer], bool]  #: one subject's answers, one per image; and whether there may be more hits
#: Hits per query vector, in multiples of k: several images of one study are one result. If the hits cover fewer than
#: k studies, the query is grouped by study, with at most DEPTH hits per group: a CT has hundreds of similar images.
DEPTH = 4
LEAST_DEPTH, MOST_DEPTH = 40, 1000
MOST_OF_GROUPS = 10_000  #: most hits of a grouped query, divided among k studies; the largest possible k


def ask(
    search: Search, subjects: Sequence[Subject], request: Request, page: Page, *, deep: bool = False
) -> list[Asked]:
    """Return the hits of each subject's images, from one batch; grouped by study if they cover fewer than `k` studies.

    `deep` asks for `MOST_DEPTH` hits per image.
    """
    depth = MOST_DEPTH if deep else min(max(DEPTH * request.k, LEAST_DEPTH), MOST_DEPTH)
    found = _batch(search, subjects, request, [_queries(one, request, page, depth) for one in subjects])
    short = [i for i, (answers, more) in enumerate(found) if more and not _cover(answers, request.k)]
    if short:
        of_each = min(DEPTH, MOST_OF_GROUPS // request.k)
        grouped = [
            [replace(query, group_by="study", group_limit=of_each) for query in queries]
            for queries in (_queries(subjects[i], request, page, of_each * request.k) for i in short)
        ]
        for i, asked in zip(short, _batch(search, [subjects[i] for i in short], request, grouped), strict=True):
            found[i] = asked
    return found


def _batch(
    search: Search, subjects: Sequence[Subject], request: Request, queries: Sequence[Sequence[Query]]
) -> list[Asked]:
    images = [image for subject in subjects for image in subject.images]
    answers = iter(search(images, [query for own in queries for query in own]))
    found = []
    for own in queries:
        told = [next(answers) for _ in own]
        full = request.radius is None and any(len(a.hits) == q.limit for a, q in zip(told, own, strict=True))
        found.append((told, full or any(answer.cut for answer in told)))  # a given radius: all of the ball, unless cut
    return found


def _cover(answers: Sequence[Answer], k: int) -> bool:
    """Whether these hits are of `k` studies at least; mostly, a few of them are."""
    studies = set()
    for answer in answers:
        for hit in answer.hits:
            studies.add(hit.payload["study"])
            if len(studies) >= k:
                return True
    return False


def _queries(subject: Subject, request: Request, page: Page, depth: int) -> list[Query]:
    never: list[Condition] = []
    if "patient" in request.exclude and subject.patients:
        never.append(Match(field="patient", values=tuple(map(patient_number, subject.patients))))
    elif "study" in request.exclude and subject.study_id is not None:
        never.append(Match(field="study", values=(subject.study_id,)))
    elif "self" in request.exclude and subject.image_ids:
        never.append(Match(field="image", values=subject.image_ids))
    if page.seen:
        never.append(Match(field="study", values=page.seen))
    must = request.filters.conditions()
    return [
        Query(
            vector=image.vector,
            limit=depth,
            filter=Filter(must=must + _same_view(image, request), must_not=tuple(never)),
            accuracy=request.accuracy,
            fields=rank.FIELDS,
        )
        for image in subject.images
    ]


def _same_view(image: QueryImage, request: Request) -> tuple[Condition, ...]:
    if request.view == "match" and image.view:
        return (Match(field="view", values=(image.view,)),)
    return ()
