"""A ranking as the JSON that clients receive. It is not validated, which would cost as much as making it."""

from services.api.answers import GateOut, Match, ModelRef, QueryImageOut, RankingOut, StudyFound
from services.api.errors import explain
from shared.encoder.cards import Card
from shared.errors import Gate
from shared.pipeline.question import Found, Pair, Ranking, Request, Subject
from shared.pipeline.rank import QueryImage
from shared.store.generations import Published

_models: dict[tuple[str, str], ModelRef] = {}  # a card never changes


def model(published: Published) -> ModelRef:
    known = _models.get((published.fingerprint, published.folder))
    if known is None:
        card = Card.from_json(published.card)
        known = {
            "name": card.name,
            "fingerprint": published.fingerprint,
            "label": card.label,
            "trained": card.weights.trained,
        }
        _models[published.fingerprint, published.folder] = known
    return known


def ranking(found: Ranking, request: Request, took_ms: float) -> RankingOut:
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
        "timings_ms": dict(found.timings_ms),
        "next": found.next,
    }


def _gates(subject: Subject) -> list[GateOut]:
    """The verdicts of all three gates on an uploaded image; empty for a stored study, judged at intake."""
    if subject.features is None:
        return []
    own, stops = subject.features, {stop.gate: stop.reason for stop in subject.stops}
    told: list[GateOut] = [
        {
            "gate": gate.value,
            "verdict": "stopped" if gate in stops else "passed",
            "reason": stops.get(gate),
            "score": None,
            "threshold": None,
            "distance": None,
            "distance_threshold": None,
        }
        for gate in (Gate.METADATA, Gate.PIXELS)
    ]
    last: GateOut = {
        "gate": Gate.FEATURES.value,
        "reason": stops.get(Gate.FEATURES),
        "verdict": own.verdict,
        "score": own.score,
        "threshold": own.threshold,
        "distance": own.distance,
        "distance_threshold": own.distance_threshold,
    }
    return [*told, last]


def _asked(image: QueryImage) -> QueryImageOut:
    return {
        "sop_instance_uid": image.sop_uid,
        "frame": image.frame,
        "laterality": image.laterality,
        "view": image.view,
    }


def _study(rank: int, study: Found) -> StudyFound:
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


def _match(pair: Pair) -> Match:
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
