"""Dead letters over HTTP, and the journal of a study."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from shared.imaging.reasons import Reason, failed, undecodable
from shared.pipeline import scan
from shared.pipeline.admission import Action, Admission, Rule
from shared.pipeline.identity import Found
from shared.store import operations
from shared.store.files import Seen
from tests.api.conftest import CANARY
from tests.moves import by_hand


def row(archive, statement):
    with archive.rt.transaction() as db:
        return db.execute(sa.text(statement)).scalar_one()


@pytest.fixture
def dead(client, archive):
    """One letter of each kind."""
    archive.take_in(1)
    archive.take_in(2)
    with archive.rt.transaction() as db:
        by_hand(db)
        db.execute(
            sa.text(
                "UPDATE image SET status = 'failed', failures = 5, reason = 'encoder-error' WHERE sop_uid = '1.2.3.1.0'"
            )
        )
        db.execute(
            sa.text(
                "UPDATE ledger SET state = 'failed', last_error = 'refused', attempt = 5 "
                "WHERE image_id = (SELECT id FROM image WHERE sop_uid = '1.2.3.2.0')"
            )
        )
        db.execute(
            sa.text(
                "INSERT INTO catch_up (model_id, image_id, state, failures, reason) "
                "SELECT generation.model_id, image.id, 'failed', 5, 'encoder-error' FROM generation, image "
                "WHERE sop_uid = '1.2.3.2.1'"
            )
        )
        seen = Seen(path=f"/{CANARY}.dcm".encode(), size=1, mtime_ns=1)
        scan.register(db, [Found(seen=seen, inspected=failed(Reason.UNREADABLE))], archive.rt.rules, None)
    return client


def letters(client, **asked):
    return client.get("/v1/dead-letters", params=asked).json()["letters"]


def test_every_kind_is_listed_with_its_reason(dead):
    found = letters(dead)
    assert {(one["kind"], one["reason"]) for one in found} == {
        ("image", "encoder-error"), ("encoding", "encoder-error"), ("point", "refused"), ("file", "unreadable-file"),
    }  # fmt: skip
    assert all(one["letter"].startswith(f"{one['kind']}-") for one in found)
    assert CANARY not in dead.get("/v1/dead-letters").text
    assert [one["kind"] for one in letters(dead, reason="refused")] == ["point"]
    assert {one["kind"] for one in letters(dead, reason="encoder-error")} == {"image", "encoding"}


def test_metrics_count_them_by_kind_and_reason(dead):
    found = [line for line in dead.get("/metrics").text.splitlines() if line.startswith("similis_dead_letters{")]
    assert found == [
        'similis_dead_letters{kind="encoding",reason="encoder-error"} 1.0',
        'similis_dead_letters{kind="file",reason="unreadable-file"} 1.0',
        'similis_dead_letters{kind="image",reason="encoder-error"} 1.0',
        'similis_dead_letters{kind="point",reason="refused"} 1.0',
    ]


def test_pages_follow_each_other(dead):
    whole, paged, cursor = [one["letter"] for one in letters(dead)], [], None
    while True:
        page = dead.get("/v1/dead-letters", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        paged += [one["letter"] for one in page["letters"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == whole
    assert len(whole) == 4
    assert dead.get("/v1/dead-letters?cursor=2026-99-99T00:00:00~image-1").status_code == 400


def test_each_is_tried_again_once(dead, archive):
    for one in letters(dead):
        assert dead.post(f"/v1/dead-letters/{one['letter']}:retry").status_code == 202, one
        assert dead.post(f"/v1/dead-letters/{one['letter']}:retry").status_code == 404, one
    assert letters(dead) == []
    assert row(archive, "SELECT status FROM image WHERE sop_uid = '1.2.3.1.0'") == "received"
    assert row(archive, "SELECT count(*) FROM ledger WHERE state = 'pending'") == 1
    assert row(archive, "SELECT state FROM catch_up") == "due"
    assert row(archive, "SELECT mtime_ns FROM file WHERE reason = 'unreadable-file'") == -1
    assert row(archive, "SELECT count(*) FROM audit WHERE action = 'retry'") == 4
    archive.encode()
    assert row(archive, "SELECT status FROM image WHERE sop_uid = '1.2.3.1.0'") == "encoded"


def test_all_of_a_reason_are_tried_again(dead):
    answer = dead.post("/v1/dead-letters:retry", json={"reason": "encoder-error"})
    assert (answer.status_code, answer.json()["retried"]) == (202, {"image": 1, "encoding": 1})
    assert {one["kind"] for one in letters(dead)} == {"point", "file"}
    assert dead.post("/v1/dead-letters:retry", json={}).status_code == 400


@pytest.mark.parametrize("retried", ["dead-letters", "quarantine"])
def test_a_retry_brings_back_the_watch_that_met_the_file_but_none_that_was_cancelled(client, archive, retried):
    refusal = failed(Reason.TRUNCATED) if retried == "dead-letters" else undecodable(Reason.CORRUPT)
    with archive.rt.transaction() as db:
        for end in ("failed", "cancelled"):
            watch = operations.create(db, "scan", {"path": f"/{end}", "watch": True})
            seen = Seen(path=f"/{end}/1.dcm".encode(), size=1, mtime_ns=1)
            scan.register(db, [Found(seen=seen, inspected=refusal)], archive.rt.rules, watch.id)
            watch.state = end
    asked = client.post(f"/v1/{retried}:retry", json={"reason": refusal.reason})
    assert asked.status_code == 202
    with archive.rt.transaction() as db:
        told = dict(db.execute(sa.text("SELECT params ->> 'path', state FROM operation")).all())
        reread = db.execute(sa.text("SELECT count(*) FROM file WHERE mtime_ns = -1")).scalar_one()
    assert told == {"/failed": "pending", "/cancelled": "cancelled"}
    assert reread == 2


def test_the_journal_tells_what_came_and_what_became_of_it(client, archive):
    uid = archive.take_in(1)
    journal = client.get(f"/v1/studies/{uid}/journal").json()["journal"]
    events = [(line["event"], line["outcome"], line["source"]) for line in journal]
    assert events.count(("arrived", "taken", "folder")) == 4
    assert events.count(("judged", "encoded", "")) == 4
    assert sum(event == "indexed" for event, _, _ in events) == 4
    assert [line["at"] for line in journal] == sorted((line["at"] for line in journal), reverse=True)
    assert client.get("/v1/studies/1.2.3.99/journal").status_code == 404


def test_a_refused_study_has_a_journal_though_it_does_not_stand(client, archive):
    file = archive._file("1.2.3.5", 5, 0, 5)
    rules = replace(archive.rt.rules, admission=Admission((Rule("no MG", {"modality": ("MG",)}, Action.REFUSE),)))
    with archive.rt.transaction() as db:
        scan.register(db, [file], rules, None)
    assert client.get("/v1/studies/1.2.3.5").status_code == 404
    (line,) = client.get("/v1/studies/1.2.3.5/journal").json()["journal"]
    assert (line["outcome"], line["reason"], line["rule"]) == ("refused", "site-rule", "no MG")
