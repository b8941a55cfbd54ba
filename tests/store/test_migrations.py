"""Running work keeps its state through an upgrade of the schema, and through the downgrade."""

import json
from typing import Any

import sqlalchemy as sa

from migrations import run


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as db:
        found = db.execute(sa.text(statement))
        return [tuple(row) for row in found] if found.returns_rows else []


def test_where_operations_are_survives_the_way_up_and_down(postgres_url: str) -> None:
    before = {
        "scan": {"taken": 3, "cursor": "2f61"},
        "scanned": {"taken": 3, "scanned": True},
        "backfill-dicomweb": {"pulled": 2, "cursor": {"from": "2024-01-01", "to": "", "after": "1.2"}, "scanned": True},
        "reindex": {"covered": 5, "looked_at": 7},
        "replay": {"stay": 5, "looked_at": 9},
        "erase": {"images": 4},
    }
    run.upgrade(postgres_url, "0011")
    for kind, counts in before.items():
        rows(postgres_url, f"INSERT INTO operation (kind, counts) VALUES ('{kind}', '{json.dumps(counts)}')")

    run.upgrade(postgres_url, "0012")
    told = rows(postgres_url, "SELECT kind, counts, cursor, registered_at IS NOT NULL FROM operation ORDER BY kind")
    assert told == [
        ("backfill-dicomweb", {"pulled": 2}, {"from": "2024-01-01", "to": "", "after": "1.2"}, True),
        ("erase", {"images": 4}, None, False),
        ("reindex", {"covered": 5}, {"image": 7}, False),
        ("replay", {"stay": 5}, {"image": 9}, False),
        ("scan", {"taken": 3}, {"path": "2f61"}, False),
        ("scanned", {"taken": 3}, None, True),
    ]

    run.downgrade(postgres_url, "0011")
    assert dict(rows(postgres_url, "SELECT kind, counts FROM operation")) == before


def test_the_way_down_keeps_the_latest_of_two_decisions_on_the_same_bytes(postgres_url: str) -> None:
    run.upgrade(postgres_url, "0013")
    rows(postgres_url, "INSERT INTO study (uid, patient_key) VALUES ('1.2', 'x')")
    rows(
        postgres_url,
        "INSERT INTO image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, body_part, "
        "manufacturer, presentation_intent, rows, columns, frames, digest, path) "
        "SELECT '1.2.3', id, '', '', '', 'MG', '', '', '', 1, 1, 1, 'd', 'p' FROM study",
    )
    for reason in ("site-rule", "blank"):
        rows(
            postgres_url,
            "INSERT INTO review (image_id, digest, decision, gate, reason, reviewer, key_id) "
            f"SELECT id, digest, 'released', '', '{reason}', 'Anna', 1 FROM image",
        )
    run.downgrade(postgres_url, "0012")
    assert rows(postgres_url, "SELECT reason FROM review") == [("blank",)]


def test_catch_up_is_called_so_with_all_that_belongs_to_it_and_keeps_its_rows(postgres_url: str) -> None:
    named = """
        SELECT relname FROM pg_class WHERE relname LIKE '%backfill%' OR relname LIKE '%catch_up%'
        UNION SELECT conname FROM pg_constraint WHERE conname LIKE '%backfill%' OR conname LIKE '%catch_up%'
    """
    run.upgrade(postgres_url, "0015")
    for row in (
        "model (fingerprint, name, folder, card) VALUES ('f', 'm', 'm', '{}')",
        "study (uid, patient_key) VALUES ('1.2', 'x')",
        (
            "image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, body_part, manufacturer, "
            "presentation_intent, rows, columns, frames, digest, path) "
            "VALUES ('1.2.3', 1, '1.3', '1.4', '1.5', 'MG', '', '', '', 9, 9, 1, 'x', 'y')"
        ),
        "backfill (model_id, image_id, state) VALUES (1, 1, 'failed')",
    ):
        rows(postgres_url, f"INSERT INTO {row}")
    before = {name for (name,) in rows(postgres_url, named)}

    run.upgrade(postgres_url, "0016")
    assert {name for (name,) in rows(postgres_url, named)} == {name.replace("backfill", "catch_up") for name in before}
    assert rows(postgres_url, "SELECT model_id, image_id, state FROM catch_up") == [(1, 1, "failed")]

    run.downgrade(postgres_url, "0015")
    assert {name for (name,) in rows(postgres_url, named)} == before
