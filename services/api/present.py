"""A ranking as the JSON that clients receive, built as plain dictionaries because validating them costs more than
making them. `answers.RankingOut` documents their shape, and a test compares the two.
"""

from typing import Any

from services.api.errors import explain
from shared.encoder.cards import Card
from shared.errors import Gate
from shared.pipeline.question import Found, Pair, Ranking, Request, Subject
from shared.pipeline.rank import QueryImage
from shared.store.generations import Published

Json = dict[str, Any]

_models: dict[tuple[str, str], Json] = {}  # a card never changes


def model(published: Published) -> Json:
    known = _models.get((published.fingerprint, published.folder))
    if known is None:
        card = Card.from_json(dict(published.card))
        known = {
            "name": card.name,
            "fingerprint": published.fingerprint,
            "label": card.label,
            "trained": card.weights.trained,
        }
        _models[published.fingerprint, published.folder] = known
    return known


def ranking(found: Ranking, request: Request, took_ms: float) -> Json:
    subject = found.subject
    return {
        "query": {
            "study_instance_uid": subject.study_uid,
            "images": [_asked(image) for image in subject.images],
            "stopped_by": [
                {"gate": s.gate.value if s.gate else None, "reason": s.reason, "explanation": explain(s.reason)}
                for s in subject.stops
            ],
            "gates": _gates(subject),
        },
        "studies": [_study(rank, study) for rank, study in enumerate(found.studies, found.before + 1)],
        "hidden": {"studies": found.hidden_studies, "images": found.hidden_images},
        "excluded": sorted(request.exclude),
        "model": model(found.published),
        "generation": found.published.generation_id,
        "mode": request.mode,
        "exact": found.exact,
        "cut": found.cut,
        "emulated": sorted(found.emulated),
        "as_of": found.as_of,
        "took_ms": round(took_ms, 3),
        "timings_ms": found.timings_ms,
        "next": found.next,
    }


_VOTES = ("score", "threshold", "distance", "distance_threshold")


def _gates(subject: Subject) -> list[Json]:
    """The verdicts of all three gates on an uploaded image; empty for a stored study, judged at intake."""
    if subject.features is None:
        return []
    own, stops = subject.features, {stop.gate: stop.reason for stop in subject.stops}
    told = [
        {
            "gate": gate.value,
            "verdict": "stopped" if gate in stops else "passed",
            "reason": stops.get(gate),
            **dict.fromkeys(_VOTES),
        }
        for gate in (Gate.METADATA, Gate.PIXELS)
    ]
    last = {"verdict": own.verdict} | {name: getattr(own, name) for name in _VOTES}
    return [*told, {"gate": Gate.FEATURES.value, "reason": stops.get(Gate.FEATURES)} | last]


def _asked(image: QueryImage) -> Json:
    return {
        "sop_instance_uid": image.sop_uid,
        "frame": image.frame,
        "laterality": image.laterality,
        "view": image.view,
    }


def _study(rank: int, study: Found) -> Json:
    hits = [pair.hit for pair in study.pairs]
    return {
        "rank": rank,
        "study_instance_uid": study.study_uid,
        "score": study.score,
        "study_date": study.study_date,
        "labels": {
            "birads": sorted({h.birads for h in hits if h.birads is not None}),
            "density": sorted({h.density for h in hits if h.density}),
            "pathology": sorted({h.pathology for h in hits if h.pathology}),
        },
        "matches": [_match(pair) for pair in study.pairs],
    }


def _match(pair: Pair) -> Json:
    query, hit = pair.query, pair.hit
    return {
        "query_sop_instance_uid": query.sop_uid,
        "query_frame": query.frame,
        "sop_instance_uid": hit.sop_uid,
        "frame": hit.frame,
        "score": pair.score,
        "hamming": pair.hamming,
        "content": pair.content,
        "laterality": hit.laterality,
        "view": hit.view,
        "modality": hit.modality,
        "birads": hit.birads,
        "density": hit.density,
        "pathology": hit.pathology,
        "same_view": query.same_view(hit.view, hit.laterality),
        "thumbnail": f"/v1/instances/{hit.sop_uid}/thumbnail",
    }
