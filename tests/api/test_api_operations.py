"""Scans as operations: begun once, watched, cancelled, tried again."""

import hashlib
import os
import uuid
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

import workers.ingest
from shared import mounts
from shared.pipeline import scan
from shared.process import until
from shared.store import files, operations
from shared.types import Job
from tests.api.conftest import CANARY, serving
from tests.moves import by_hand


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "intake"
    path.mkdir()
    (path / "a.dcm").write_bytes(b"x")
    return path


def begin(client, folder, **headers):
    return client.post("/v1/ingest/scans", json={"path": str(folder)}, headers=headers)


def test_a_scan_is_accepted_and_rung_for(client, archive, folder):
    answer = begin(client, folder)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert answer.headers["Location"] == f"/v1/operations/{body['id']}"
    assert (body["state"], body["phase"], body["progress"], body["path"]) == ("pending", "waiting", 0, str(folder))
    assert archive.rt.queue.rung == [Job.SCAN]
    assert client.get(answer.headers["Location"]).json()["id"] == body["id"]


def test_the_same_idempotency_key_begins_nothing_twice(client, folder):
    first, again = (begin(client, folder, **{"Idempotency-Key": "k1"}).json()["id"] for _ in range(2))
    assert first == again
    assert begin(client, folder, **{"Idempotency-Key": "k2"}).json()["id"] != first
    other = client.post(
        "/v1/ingest/scans", json={"path": str(folder), "watch": True}, headers={"Idempotency-Key": "k1"}
    )
    assert other.status_code == 409


def test_folders_outside_the_roots_and_absent_ones_are_refused(client, folder):
    (folder / "link").symlink_to("/etc")
    (folder / "circle").symlink_to("circle")
    odd = [str(folder / name) for name in ("link", "circle", "circle/x", "absent", "x" * 300)]
    for path in ("/etc", f"{folder}/../../../../../etc", *odd):
        assert client.post("/v1/ingest/scans", json={"path": path}).status_code == 400, path
    asked = {"path": str(folder), "labels": "/etc/passwd"}
    assert client.post("/v1/ingest/scans", json=asked).status_code == 400


def test_a_link_to_a_folder_whose_name_is_no_text_is_refused(client, tmp_path):
    odd = os.fsencode(tmp_path) + b"/R\xf6ntgen"
    os.mkdir(odd)
    os.symlink(odd, tmp_path / "link")
    answer = begin(client, tmp_path / "link")
    assert answer.status_code == 400
    assert "not valid UTF-8" in answer.json()["detail"]
    assert begin(client, tmp_path).status_code == 202


def test_a_folder_that_does_not_answer_holds_no_thread_of_the_api(client, folder, tmp_path, monkeypatch):
    """Opening a pipe waits for its writer, as a call waits for a share that does not answer."""
    pipe, dead, really = tmp_path / "pipe", [str(folder)], os.lstat
    os.mkfifo(pipe)

    def lstat(path, **more):
        if str(path) in dead:
            os.close(os.open(pipe, os.O_RDONLY))
        return really(path, **more)

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(scan, "ANSWER_S", 0.3)
    for _ in range(3):
        answer = begin(client, folder)
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "the folder's disk or network share does not answer",
        )
    assert len(mounts._stalled) == 1
    dead.clear()
    os.close(os.open(pipe, os.O_WRONLY))  # the share is back
    assert until(lambda: not mounts._stalled, 10)
    assert begin(client, folder).status_code == 202


def test_an_absent_table_of_labels_is_told_apart_from_an_absent_folder(client, folder):
    for path, labels, said in (
        (folder, folder / "absent.csv", "there is no such table of labels on the server"),
        (folder / "absent", folder, "there is no such file or folder on the server"),
    ):
        refused = client.post("/v1/ingest/scans", json={"path": str(path), "labels": str(labels)})
        assert (refused.status_code, refused.json()["detail"]) == (400, said)


def test_operations_are_listed_the_newest_first_in_pages(client, folder):
    made = [begin(client, folder).json()["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = client.get("/v1/operations", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [operation["id"] for operation in page["operations"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == made[::-1]


def test_a_list_asks_the_database_as_often_as_one_of_them(client, archive, folder):
    def statements(count):
        asked = []
        sa.event.listen(archive.rt.store.engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
        assert len(client.get("/v1/operations", params={"limit": count}).json()["operations"]) == count
        return len(asked)

    for _ in range(5):
        begin(client, folder)
    assert statements(5) == statements(1)


def test_an_unknown_operation_is_not_found(client):
    for method, tail in (("GET", ""), ("GET", "/files"), ("POST", ":cancel"), ("POST", ":retry")):
        assert client.request(method, f"/v1/operations/{uuid.uuid4()}{tail}").status_code == 404, tail


def test_a_cancelled_operation_ends_and_may_be_tried_again(client, archive, folder):
    id_ = begin(client, folder).json()["id"]
    cancelled = client.post(f"/v1/operations/{id_}:cancel").json()
    assert (cancelled["state"], cancelled["phase"]) == ("cancelled", "ended")
    assert client.post(f"/v1/operations/{id_}:cancel").status_code == 409
    archive.rt.queue.rung.clear()
    again = client.post(f"/v1/operations/{id_}:retry")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    assert archive.rt.queue.rung == [Job.SCAN, Job.ENCODE]
    assert client.post(f"/v1/operations/{id_}:retry").status_code == 409


def test_progress_follows_registering_deciding_and_the_index(client, archive, folder):
    id_ = begin(client, folder).json()["id"]

    def shown():
        body = client.get(f"/v1/operations/{id_}").json()
        assert (body["registered_at"] is None) == (body["phase"] in ("waiting", "registering"))
        return body["phase"], body["progress"]

    with archive.rt.transaction() as db:
        held = operations.claim(db, "scan", 30)
        operations.progress(db, held, done=2, total=4, counts={"taken": 2}, cursor={"path": "2f"})
    assert shown()[0] == "registering"
    archive.take_in(1)
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE image SET operation_id = :id"), {"id": id_})
        db.execute(sa.text("UPDATE file SET operation_id = :id"), {"id": id_})
        db.execute(sa.text("UPDATE image SET status = 'received' WHERE id = (SELECT min(id) FROM image)"))
        operations.progress(db, held, done=4, total=4, counts={"taken": 4}, cursor=None)
        operations.all_registered(db, held)
    phase, before = shown()
    assert (phase, 0 < before < 99) == ("encoding", True)
    with archive.rt.transaction() as db:
        by_hand(db)
        db.execute(sa.text("UPDATE image SET status = 'encoded'"))
        db.execute(sa.text("UPDATE ledger SET state = 'pending'"))
    phase, later = shown()
    assert (phase, before < later < 99) == ("indexing", True)
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE ledger SET state = 'applied'"))
        operations.finish_settled(db)
    assert shown() == ("ended", 100)
    body = client.get(f"/v1/operations/{id_}").json()
    assert body["state"] == "succeeded"
    assert body["counts"] == {"taken": 4}
    assert body["outcomes"] == [{"outcome": "encoded", "gate": None, "reason": None, "explanation": None, "count": 4}]
    assert body["rate_per_s"] > 0


def test_the_time_that_an_operation_waited_for_a_worker_counts_neither_for_its_duration_nor_its_rate(
    client, archive, folder
):
    id_ = begin(client, folder).json()["id"]
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE operation SET created_at = created_at - interval '1 hour'"))
    assert client.get(f"/v1/operations/{id_}").json()["took_s"] == 0
    for _ in range(2):  # the second time after it was retried
        with archive.rt.transaction() as db:
            held = operations.claim(db, "scan", 30)
            operations.progress(db, held, done=4, total=4, counts={}, cursor=None)
            operations.end(db, held, "failed")
        body = client.get(f"/v1/operations/{id_}").json()
        assert body["took_s"] < 600
        assert body["rate_per_s"] > 4 / 600
        with archive.rt.transaction() as db:
            db.execute(sa.text("UPDATE operation SET started_at = started_at - interval '1 hour'"))
        client.post(f"/v1/operations/{id_}:retry")


def test_without_a_model_images_wait_for_one_and_the_phase_says_so(bare, folder):
    with serving(bare) as client:
        client.headers.update(bare.key())
        id_ = begin(client, folder).json()["id"]
        bare.take_in(1)
        with bare.rt.transaction() as db:
            held = operations.claim(db, "scan", 30)
            db.execute(sa.text("UPDATE file SET operation_id = :id"), {"id": id_})
            operations.all_registered(db, held)
        assert client.get(f"/v1/operations/{id_}").json()["phase"] == "waiting for a model"
        client.post("/v1/models", json={"card": "null-a"})
        assert client.get(f"/v1/operations/{id_}").json()["phase"] == "encoding"


def test_what_a_later_scan_takes_over_counts_there_alone(client, archive, folder):
    earlier, later = (begin(client, folder).json()["id"] for _ in range(2))
    archive.take_in(1)

    def counted(id_):
        body = client.get(f"/v1/operations/{id_}").json()
        return body["images"]["registered"], sum(row["count"] for row in body["outcomes"])

    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE image SET operation_id = :id"), {"id": earlier})
        db.execute(sa.text("UPDATE file SET operation_id = :id"), {"id": earlier})
    assert (counted(earlier), counted(later)) == ((4, 4), (0, 0))
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE file SET operation_id = :id WHERE id = (SELECT min(id) FROM file)"), {"id": later})
    assert (counted(earlier), counted(later)) == ((3, 3), (1, 1))


def test_files_are_told_by_name_with_their_reason(client, archive, folder):
    id_ = begin(client, folder).json()["id"]
    archive.take_in(1)
    with archive.rt.transaction() as db:
        db.execute(sa.text("UPDATE file SET operation_id = :id"), {"id": id_})
        db.execute(
            sa.text("UPDATE file SET outcome = 'failed', reason = 'not-a-study-object', path = :path "
                    "WHERE id = (SELECT min(id) FROM file)"),
            {"path": b"/archive/\xff.dcm"},
        )  # fmt: skip
    files = client.get(f"/v1/operations/{id_}/files").json()["files"]
    assert files == [
        {
            "path": "/archive/\\xff.dcm",
            "outcome": "failed",
            "gate": None,
            "reason": "not-a-study-object",
            "explanation": "It is neither DICOM nor a PNG or JPEG picture.",
        }
    ]
    first = client.get(f"/v1/operations/{id_}/files?problems=false&limit=3").json()
    rest = client.get(f"/v1/operations/{id_}/files?problems=false&limit=3&cursor={first['next']}").json()
    assert (len(first["files"]), len(rest["files"]), rest["next"]) == (3, 1, None)
    assert CANARY in rest["files"][0]["path"]


def test_a_retry_looks_at_refused_files_again(client, archive, folder):
    id_ = begin(client, folder).json()["id"]
    archive.take_in(1)
    with archive.rt.transaction() as db:
        by_hand(db)
        db.execute(sa.text("UPDATE file SET operation_id = :id, outcome = 'failed', image_id = NULL"), {"id": id_})
        db.execute(sa.text("UPDATE image SET operation_id = :id, status = 'failed'"), {"id": id_})
        db.execute(sa.text("UPDATE operation SET state = 'succeeded'"))
    assert client.post(f"/v1/operations/{id_}:retry").status_code == 202
    with archive.rt.transaction() as db:
        assert db.execute(sa.text("SELECT DISTINCT mtime_ns FROM file")).scalars().all() == [-1]
        assert db.execute(sa.text("SELECT DISTINCT status FROM image")).scalars().all() == ["received"]


@pytest.fixture
def turns(archive, tmp_path, monkeypatch):
    """Makes folders of files that are no studies; each turn of a worker ends after two files."""
    monkeypatch.setattr(workers.ingest, "runtime", lambda: archive.rt)
    monkeypatch.setattr("shared.pipeline.turns.TURN_S", 0.0)
    monkeypatch.setattr("shared.pipeline.turns.time", SimpleNamespace(monotonic=lambda: 1.0))
    monkeypatch.setattr(scan, "BATCH", 2)

    def make(name, count):
        (tmp_path / name).mkdir()
        for n in range(count):
            path = tmp_path / name / f"{n}.txt"
            path.write_bytes(b"x")
            os.utime(path, (1, 1))
        return tmp_path / name

    return make


def test_a_long_scan_gives_way_to_others_and_goes_on_where_it_was(client, turns):
    long, short = (begin(client, turns(name, count)).json()["id"] for name, count in (("long", 7), ("short", 1)))

    def after_a_turn():
        workers.ingest.scan_folders()
        bodies = [client.get(f"/v1/operations/{id_}").json() for id_ in (long, short)]
        return [(body["done"], body["phase"]) for body in bodies]

    assert [after_a_turn() for _ in range(5)] == [
        [(2, "registering"), (0, "waiting")],
        [(2, "registering"), (1, "registering")],
        [(4, "registering"), (1, "registering")],
        [(4, "registering"), (1, "indexing")],
        [(7, "indexing"), (1, "indexing")],  # nobody else waits, so the turn goes on
    ]
    body = client.get(f"/v1/operations/{long}").json()
    assert (body["total"], body["counts"]) == (7, {"failed": 7, "unchanged": 0, "settling": 0})


def test_sent_files_that_are_to_be_read_again_need_not_wait_for_a_long_scan(client, archive, turns):
    long = begin(client, turns("long", 5)).json()["id"]
    digest = hashlib.sha256(b"gone").digest()
    path = str(archive.rt.blobs.place(digest))
    with archive.rt.transaction() as db:
        db.execute(
            sa.text(
                "INSERT INTO file (path, size, mtime_ns, digest, outcome, gate, reason) "
                "VALUES (:path, 4, -1, :digest, 'quarantined', 'decode', 'no-permitted-decoder')"
            ),
            {"path": path.encode(), "digest": digest},
        )
    workers.ingest.scan_folders()
    assert client.get(f"/v1/operations/{long}").json()["done"] == 2
    with archive.rt.transaction() as db:
        assert files.again(db, 0, 1) == []


def test_each_round_of_a_watch_begins_at_the_start(client, archive, turns):
    asked = {"path": str(turns("watched", 3)), "watch": True}
    id_ = client.post("/v1/ingest/scans", json=asked).json()["id"]
    for counts in ({"failed": 3, "unchanged": 0, "settling": 0}, {"unchanged": 3, "settling": 0}):
        workers.ingest.scan_folders()
        body = client.get(f"/v1/operations/{id_}").json()
        assert (body["state"], body["done"], body["total"], body["counts"]) == ("running", 3, 3, counts)
        with archive.rt.transaction() as db:
            db.execute(sa.text("UPDATE operation SET not_before = NULL"))
