"""`similis:HOME` or `similis:postgresql://...`: the encodings of the published generation of a running Similis.

Read from Postgres in one transaction; nothing is written. Patients and modalities are replaced by ranks; no identifier
and no pseudonym leaves the database.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from benchmarks.latency.datasets.base import Made, held_out
from shared.errors import NotFound
from shared.store import encodings, generations
from shared.store.session import Store

_ROWS = sa.text(
    "SELECT e.embedding, dense_rank() OVER (ORDER BY s.patient_key) AS patient, "
    "dense_rank() OVER (ORDER BY i.modality) AS modality "
    "FROM encoding e JOIN image i ON i.id = e.image_id AND i.status = 'encoded' JOIN study s ON s.id = i.study_id "
    "WHERE e.model_id = :model ORDER BY e.image_id, e.frame"
)
_STATE = sa.text(
    "SELECT count(*), sum(('x' || left(md5(embedding), 15))::bit(60)::bigint) FROM encoding WHERE model_id = :model"
)


def make(text: str, queries: int, seed: int) -> Made:
    """The queries are images held out by `seed`; their patients stay known."""
    url = text if "://" in text else _url_of(Path(text))
    with closing(Store(url)) as store, store.reading() as connection:
        live = generations.published(connection)
        found = [] if live is None else connection.execute(_ROWS, {"model": live.model_id}).all()
    if len(found) < 10:
        raise NotFound("this Similis has published fewer than ten images")
    rows = encodings.stack([row.embedding for row in found])
    patients, modality = (np.array([row[n] for row in found], np.int64) for n in (1, 2))
    kept, asked = held_out(rows, queries, seed)
    return Made(
        rows=rows[kept],
        queries=rows[asked],
        columns={"patient": patients[kept], "modality": modality[kept]},
        patients=patients[asked],
        about={"source": f"the published generation of a Similis, {len(asked)} held out by seed {seed}", "seed": seed},
    )


def fingerprint(text: str) -> str:
    """The model of the published generation, with a hash over its encodings."""
    with closing(Store(text if "://" in text else _url_of(Path(text)))) as store, store.reading() as connection:
        live = generations.published(connection)
        return "" if live is None else f"{live.model_id}|{connection.execute(_STATE, {'model': live.model_id}).one()}"


def _url_of(home: Path) -> str:
    file = home / "database.url"
    if not file.is_file():
        raise NotFound("this folder is no home of a Similis")
    return file.read_text(encoding="utf-8").strip()
