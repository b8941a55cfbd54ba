"""The oracle knows what was sent, and reports what is missing, doubled, never sent or wrong.

It compares four independent sources: the files, Postgres, a full scan of the index, and newly computed vectors.
An empty list of findings means success.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from shared.encoder.base import Encoder
from shared.errors import Rejected
from shared.imaging.recipe import Recipe
from shared.index.base import Index
from shared.pipeline.batch import Decoder
from shared.store import encodings, generations
from shared.store.session import Store
from shared.types import point_id

SAMPLE = 100


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Checks of the platform at rest. `sent` maps each SOP Instance UID to the file that holds it now."""

    store: Store
    index: Index
    sandbox: Decoder
    encoder: Encoder
    sent: Mapping[str, Path]

    def findings(self) -> list[str]:
        return [*self._rows(), *self._points(), *self._vectors()]

    def _rows(self) -> Iterable[str]:
        with self.store.reading() as connection:
            rows = connection.execute(sa.text("SELECT sop_uid, status FROM image")).all()
            stray = connection.execute(
                sa.text("SELECT count(*) FROM operation WHERE state IN ('pending', 'running')")
            ).scalar_one()
        found = [row.sop_uid for row in rows]
        yield from (f"lost: {uid}" for uid in self.sent.keys() - set(found))
        yield from (f"never sent: {uid}" for uid in set(found) - self.sent.keys())
        if len(found) != len(set(found)):
            yield "an image has two rows"
        yield from (f"{row.status}: {row.sop_uid}" for row in rows if row.status != "encoded")
        if stray:
            yield f"{stray} operations have not ended"

    def _points(self) -> Iterable[str]:
        """A full scan of the index, compared with what was sent and with the ledger."""
        wanted = {point_id(uid, 1) for uid in self.sent}
        held = [pair for batch in self.index.scan() for pair in batch]
        ids = [point for point, _ in held]
        if len(ids) != len(set(ids)):
            yield "a point stands twice"
        yield from (f"missing in the index: {p}" for p in wanted - set(ids))
        yield from (f"phantom in the index: {p}" for p in set(ids) - wanted)
        with self.store.reading() as connection:
            ledger = connection.execute(
                sa.text("SELECT point_id, revision, state, op FROM ledger l JOIN live v USING (generation_id)")
            ).all()
            revisions = dict(
                tuple(r)
                for r in connection.execute(
                    sa.text("SELECT l.point_id, i.revision FROM ledger l JOIN image i ON i.id = l.image_id")
                )
            )
        yield from (
            f"ledger {row.state} {row.op}: {row.point_id}"
            for row in ledger
            if (row.state, row.op) != ("applied", "upsert")
        )
        yield from (f"revision {r} of {p} is not the image's" for p, r in held if revisions.get(p) != r)

    def _vectors(self) -> Iterable[str]:
        """Decode and encode a sample again; compare with the vectors in Postgres and in the index."""
        chosen = sorted(self.sent)[:: max(1, len(self.sent) // SAMPLE)]
        with self.store.reading() as connection:
            live = generations.published(connection)
            assert live is not None
            stored = dict(
                tuple(row)
                for row in connection.execute(
                    sa.text(
                        "SELECT i.sop_uid, e.embedding FROM image i JOIN encoding e ON e.image_id = i.id "
                        "WHERE i.sop_uid = ANY(:uids) AND e.model_id = :model"
                    ),
                    {"uids": chosen, "model": live.model_id},
                )
            )
        recipe = Recipe.from_json(dict(live.card)["recipe"])
        points = {p.id: p.vector for p in self.index.get([point_id(uid, 1) for uid in chosen])}
        for uid, decoded in zip(chosen, self.sandbox.decode_many([self.sent[u] for u in chosen], recipe), strict=True):
            if isinstance(decoded, Rejected) or uid not in stored:
                yield f"not encoded: {uid}"
                continue
            fresh = self.encoder.encode(decoded.pixels).embeddings[0]
            witnesses = {"Postgres": encodings.unpack(stored[uid]), "the index": points.get(point_id(uid, 1))}
            for who, vector in witnesses.items():
                if vector is None or cosine(fresh, vector) < 0.9999:
                    yield f"{who} holds another vector of {uid}"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 and np.isfinite(norms) else -1.0
