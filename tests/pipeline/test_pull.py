"""Pulling from another archive: a small server with scripted faults."""

import copy
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from shared.errors import Denied, Invalid
from shared.imaging.sandbox import Sandbox
from shared.multipart import Begin, End
from shared.pipeline import dicomweb, erase, pull
from shared.pipeline.dicomweb import Access, Archive, ArchiveTimeout, ArchiveUnavailable, checked
from shared.pipeline.pace import Hours, Pace
from shared.pipeline.pull import Plan, Progress, Pull, Stopped
from shared.pipeline.streamed import BATCH
from shared.store.blobs import Blobs
from shared.store.tables import Operation
from tests.dicomweb import RELATED, instance, related, sop_uid, study_uid
from tests.miniature import Platform

JUNE = Plan(query={}, first=date(2024, 1, 1), last=date(2024, 12, 31))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


class Peer:
    """Another archive over HTTP. `hurt` may replace the answer to the n-th request for a path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  #: by study and instance
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hurt = lambda *_: None  # (status, body) in place of the answer, or None
        self.silent = lambda *_: False  # whether the n-th request for a path is never answered
        self.drips = lambda *_: False  # whether the answer to the n-th request for a path comes in drops
        self.over = threading.Event()
        self.page = 100
        self.ignores_offset = False
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                peer.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/web"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def put(self, study: int, *numbers: int) -> None:
        self.files.setdefault(study_uid(study), {}).update({sop_uid(study, n): instance(study, n) for n in numbers})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path, query = parts.path.removeprefix("/web/"), {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.asked.append(path)
        self.headers.append(dict(request.headers))
        if self.silent(path, self.asked.count(path)):
            self.over.wait()
            return
        status, body = self.hurt(path, query, self.asked.count(path)) or self._found(path, query)
        kind = RELATED["Content-Type"] if body.startswith(b"--") else "application/dicom+json"
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body) + (1000 if body.endswith(b"CUT") else 0)))
        request.end_headers()
        if self.drips(path, self.asked.count(path)):
            with suppress(ConnectionError):  # nobody waits for the last drop
                for at in range(0, len(body), 100):
                    request.wfile.write(body[at : at + 100])
                    self.over.wait(0.05)
            return
        request.wfile.write(body)

    def _found(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        steps = path.split("/")
        if path == "studies":
            return self._page([self._study(uid) for uid in self._dated(query)], query)
        files = self.files.get(steps[1], {})
        if steps[-1] == "instances":
            found = [{"00080018": ui(sop), "0020000E": ui(f"{steps[1]}.1"), "0020000D": ui(steps[1])} for sop in files]
            return self._page(found, query)
        wanted = files.values() if len(steps) == 2 else [files[steps[-1]]] if steps[-1] in files else []
        return (200, related(*wanted)) if wanted else (404, b"")

    def _dated(self, query: dict[str, str]) -> list[str]:
        low, _, high = query.get("StudyDate", "0-9").partition("-")
        days = {uid: f"2024{1 + int(uid.rsplit('.', 1)[1]) % 12:02}15" for uid in self.files}
        named = query.get("StudyInstanceUID", ",".join(self.files)).split(",")
        return [uid for uid, day in days.items() if low <= day <= (high or low) and uid in named]

    def _study(self, uid: str) -> object:
        return {"0020000D": ui(uid), "00201208": {"vr": "IS", "Value": [len(self.files[uid])]}}

    def _page(self, items: list[object], query: dict[str, str]) -> tuple[int, bytes]:
        offset = 0 if self.ignores_offset else int(query.get("offset", 0))
        return 200, json.dumps(items[offset : offset + min(int(query["limit"]), self.page)]).encode()


def ui(uid: str) -> object:
    return {"vr": "UI", "Value": [uid]}


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.over.set()
    peer.server.shutdown()
    peer.server.server_close()


def row_of(progress: Progress) -> Operation:
    """A copy of the operation's row as it would be stored now."""
    return Operation(
        done=progress.done, total=progress.total, counts=progress.counts, cursor=copy.deepcopy(progress.cursor)
    )


class Puller:
    """A platform that pulls from a peer."""

    def __init__(self, platform: Platform, sandbox: Sandbox, peer: Peer) -> None:
        self.platform, self.sandbox, self.peer = platform, sandbox, peer
        self.blobs = Blobs(platform.folder / "blobs", reserve_bytes=0)
        self.progress, self.told = Progress(), []
        self.operation = uuid.uuid4()
        self.stop_after = self.over_after = 10**6
        self.timeout_s = 5.0

    def run(self, plan: Plan = JUNE) -> bool:
        def report(_db, progress):
            self.told.append(row_of(progress))
            return len(self.told) < self.stop_after

        with Archive(Access(url=self.peer.url), timeout_s=self.timeout_s) as archive:
            return Pull(
                begin=self.platform.begin, inspector=self.sandbox, blobs=self.blobs, archive=archive, plan=plan,
                progress=self.progress, origin=pull.origin_of(self.peer.url, self.operation),
                rules=self.platform.rules, report=report, over=lambda: len(self.told) >= self.over_after,
                most=10**7,
            ).run()  # fmt: skip

    def again(self) -> None:
        """Continue as another worker would, from the stored row."""
        self.progress = Progress.of(self.told[-1])

    def images(self) -> list[str]:
        with self.platform.begin() as db:
            return list(db.scalars(sa.text("SELECT sop_uid FROM image ORDER BY sop_uid")))

    def files(self) -> Counter[tuple[str, str]]:
        with self.platform.begin() as db:
            return Counter(tuple(row) for row in db.execute(sa.text("SELECT outcome, reason FROM file")))


@pytest.fixture
def puller(database_url: str, tmp_path: Path, sandbox: Sandbox, peer: Peer, monkeypatch) -> Iterator[Puller]:
    monkeypatch.setattr(pull, "PATIENCE_S", 0.01)
    platform = Platform(database_url, tmp_path)
    yield Puller(platform, sandbox, peer)
    platform.close()


def everything(peer: Peer) -> list[str]:
    return sorted(sop for files in peer.files.values() for sop in files)


def test_what_another_archive_has_is_taken_in_and_told(puller, peer):
    for study in (1, 2, 3):
        peer.put(study, 1, 2)
    assert puller.run()
    assert puller.images() == everything(peer)
    assert (puller.progress.studies, puller.progress.pulled, puller.progress.done) == (3, 6, 6)
    assert puller.files() == {("taken", None): 6}
    assert peer.asked.count(f"studies/{study_uid(1)}") == 1  # a new study is fetched as a whole
    with puller.platform.begin() as db:
        told = set(db.execute(sa.text("SELECT source, sender, outcome, operation_id FROM arrival")))
    assert told == {("backfill", "127.0.0.1", "taken", puller.operation)}


def test_what_stands_here_is_not_asked_for_again(puller, peer):
    peer.put(1, 1, 2)
    puller.run()
    peer.put(1, 3)
    peer.asked.clear()
    puller.progress = Progress()
    assert puller.run()
    assert (puller.progress.pulled, puller.progress.held) == (1, 2)
    files = [path for path in peer.asked if path.startswith("studies/") and not path.endswith("/instances")]
    assert files == [f"studies/{study_uid(1)}/series/{study_uid(1)}.1/instances/{sop_uid(1, 3)}"]


def lose(puller, sop):
    """The file of this image is gone, and a worker has found out."""
    with puller.platform.begin() as db:
        lost = db.scalar(sa.text("SELECT path FROM image WHERE sop_uid = :sop"), {"sop": sop})
        Path(os.fsdecode(lost)).unlink()
        gone = "UPDATE image SET status = 'failed', reason = 'file-gone' WHERE sop_uid = :sop"
        db.execute(sa.text(gone), {"sop": sop})


def test_what_stands_here_without_its_file_is_asked_for(puller, peer):
    peer.put(1, 1, 2)
    puller.run()
    lose(puller, sop_uid(1, 1))
    puller.progress = Progress()
    assert puller.run()
    assert (puller.progress.pulled, puller.progress.held) == (1, 1)
    with puller.platform.begin() as db:
        assert db.execute(sa.text("SELECT DISTINCT status FROM image")).all() == [("received",)]


@pytest.mark.parametrize(
    ("sender", "becomes"), [("127.0.0.1", ("received", 2, None)), ("elsewhere", ("failed", 1, "other-bytes"))]
)
def test_other_bytes_in_the_place_of_a_lost_file_follow_the_policy(puller, peer, sender, becomes):
    peer.put(1, 1)
    puller.run()
    lose(puller, sop_uid(1, 1))
    with puller.platform.begin() as db:
        db.execute(sa.text("UPDATE arrival SET sender = :sender"), {"sender": sender})
    peer.files[study_uid(1)][sop_uid(1, 1)] = instance(1, 1, side=72)
    puller.progress = Progress()
    assert puller.run()
    with puller.platform.begin() as db:
        (image,) = db.execute(sa.text("SELECT status, revision FROM image"))
        told = db.scalar(sa.text("SELECT reason FROM file ORDER BY id DESC LIMIT 1"))
    assert (image.status, image.revision, told) == becomes


def test_an_erased_study_that_does_not_come_is_not_named(puller, peer):
    peer.put(1, 1)
    puller.run()
    with puller.platform.begin() as db:
        erase.erase_study(db, puller.platform.rules.secret, study_uid(1))
    peer.hurt = lambda path, *_: (404, b"") if path != "studies" else None
    puller.progress = Progress()
    assert puller.run()
    assert puller.progress.missing == 1
    with puller.platform.begin() as db:
        assert db.scalar(sa.text("SELECT count(*) FROM file")) == 0
        assert db.scalar(sa.text("SELECT count(*) FROM arrival")) == 0


def test_who_settles_a_study_asks_for_the_lock_of_an_erasure_before_it_locks_rows(puller, peer):
    """An erasure holds this lock and deletes the same rows."""
    peer.put(1, 1)
    asked: list[str] = []

    def hear(*told: Any) -> None:
        asked.append(told[2])

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        assert puller.run()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    before = [asked[at - 1] for at, statement in enumerate(asked) if "DELETE FROM file" in statement]
    assert before
    assert all("pg_advisory_xact_lock_shared" in statement for statement in before)


def test_a_pull_that_an_earlier_version_counted_goes_on():
    row = Operation(total=9, done=3, counts={"studies": 1, "pulled": 3, "cursor": {"from": ""}}, cursor=None)
    assert Progress.of(row).pulled == Progress.of(row).done == 3


def test_a_large_archive_is_walked_in_windows_that_it_can_list(puller, peer, monkeypatch):
    monkeypatch.setattr(pull, "MOST_STUDIES", 2)
    for study in range(1, 9):
        peer.put(study, 1)
    assert puller.run()
    assert puller.images() == everything(peer)
    assert len({row.cursor["to"] for row in puller.told if row.cursor}) >= 4


def test_days_may_end_with_the_calendar(puller, peer):
    """Some send 20240101-99991231 for an open end."""
    assert puller.run(Plan(query={}, first=date(9998, 6, 1), last=date.max))
    assert puller.progress.cursor["from"] == "end"
    assert peer.asked == ["studies"] * 2


def test_a_worker_that_is_stopped_anywhere_is_followed_by_one_that_goes_on(puller, peer):
    for study in range(1, 5):
        peer.put(study, 1, 2)
    stops, ended = 0, False
    while not ended:
        puller.stop_after = len(puller.told) + 1 + stops % 3
        try:
            ended = puller.run()
        except Stopped:
            stops += 1
            puller.again()
    assert stops >= 3
    assert puller.images() == everything(peer)
    assert puller.progress.done == 8
    assert max(Counter(path for path in peer.asked if path.count("/") == 1).values()) <= 2


def test_others_get_their_turn_and_nothing_is_done_twice(puller, peer):
    for study in range(1, 4):
        peer.put(study, 1)
    turns = 1
    puller.over_after = 1
    while not puller.run():
        puller.again()
        puller.over_after = len(puller.told) + 1
        turns += 1
    assert turns >= 3
    assert puller.images() == everything(peer)
    assert max(Counter(path for path in peer.asked if "/series/" in path).values()) == 1


def test_an_archive_that_stumbles_is_asked_again(puller, peer):
    peer.put(1, 1, 2)
    peer.put(2, 1, 2)
    broken = related(instance(1, 1), instance(1, 2))[:9000] + b"CUT"

    def hurt(path, query, n):
        if path == f"studies/{study_uid(1)}" and n == 1:
            return 200, broken
        return (503, b"") if n == 2 and path == "studies" else None

    peer.hurt = hurt
    assert puller.run()
    assert puller.images() == everything(peer)
    assert puller.progress.missing == 0


def test_what_does_not_come_is_named_with_its_reason_and_the_rest_goes_on(puller, peer):
    for study in (1, 2, 3):
        peer.put(study, 1, 2)
    peer.files[study_uid(2)][sop_uid(2, 1)] = instance(3, 9)  # another instance than requested

    def hurt(path, query, n):
        files = path == f"studies/{study_uid(1)}" or (study_uid(1) in path and "instances/" in path)
        return (500, b"") if files else None

    peer.hurt = hurt
    assert puller.run()
    assert puller.images() == sorted([sop_uid(2, 2), sop_uid(3, 1), sop_uid(3, 2)])
    assert (puller.progress.missing, puller.progress.turned_away, puller.progress.done) == (2, 1, 6)
    assert puller.files() == {("taken", None): 3, ("failed", "source-failed"): 2, ("failed", "uids-differ"): 1}
    peer.hurt = lambda *_: None
    peer.put(2, 1)
    puller.progress = Progress()
    assert puller.run()
    assert puller.images() == everything(peer)
    assert puller.files() == {("taken", None): 6}


@pytest.mark.parametrize(
    "body",
    [
        related(instance(1, 1), instance(1, 2))[:9000],
        related()[:-4] + b" nonsense\r\n",
        b"--another\r\n\r\n--another--\r\n",
    ],
    ids=["broken off", "no line", "another boundary"],
)
def test_a_body_that_is_no_multipart_costs_its_study_and_not_the_pull(puller, peer, body):
    """The length is right, as from a proxy that relays the partial answer of a failed archive."""
    peer.put(1, 1, 2)
    peer.put(2, 1)
    peer.hurt = lambda path, *_: (200, body) if study_uid(1) in path and not path.endswith("/instances") else None
    assert puller.run()
    assert sop_uid(2, 1) in puller.images()
    peer.hurt = lambda *_: None
    puller.progress = Progress()
    assert puller.run()
    assert puller.images() == everything(peer)


def test_an_archive_that_is_away_is_waited_for(puller, peer):
    peer.put(1, 1)
    peer.hurt = lambda *_: (503, b"")
    with pytest.raises(ArchiveUnavailable, match="503"):
        puller.run()
    assert peer.asked.count("studies") == pull.ATTEMPTS
    peer.hurt = lambda *_: None
    assert puller.run()
    assert puller.images() == everything(peer)


def test_an_archive_that_is_silent_does_not_hold_the_worker(puller, peer):
    peer.put(1, 1)
    peer.silent = lambda *_: True
    puller.timeout_s = 0.2
    with pytest.raises(ArchiveTimeout, match="ReadTimeout"):
        puller.run()
    assert peer.asked == ["studies"]


def test_an_archive_that_drips_does_not_hold_the_worker(puller, peer):
    """Each drop comes long before the timeout of one read."""
    peer.put(1, 1)
    peer.put(2, 1)
    place = f"studies/{study_uid(1)}/series/{study_uid(1)}.1/instances/{sop_uid(1, 1)}"
    peer.drips = lambda path, n: path == place and n == 1
    puller.timeout_s = 1.0
    with pytest.raises(ArchiveTimeout, match="slowly"):
        puller.run()
    assert puller.images() == []
    puller.again()
    assert puller.run()
    assert puller.images() == everything(peer)


def test_the_time_that_the_files_take_here_is_not_the_archives(peer):
    peer.files[study_uid(1)] = {sop_uid(1, 1): instance(1, 1, side=1024)}
    with Archive(Access(url=peer.url), timeout_s=0.5) as archive:
        for event in archive.files(study_uid(1)):
            if isinstance(event, Begin):
                time.sleep(0.6)
    assert isinstance(event, End)


@pytest.mark.parametrize("how", ["silent", "hurt"])
def test_a_study_of_which_nothing_is_heard_is_asked_for_in_later_turns(puller, peer, how):
    peer.put(1, 1, 2)
    peer.put(2, 1)
    place = f"studies/{study_uid(1)}"
    if how == "silent":
        peer.silent = lambda path, n: path == place and n < pull.ATTEMPTS
    else:
        peer.hurt = lambda path, _, n: (504, b"") if path == place and n < pull.ATTEMPTS else None
    puller.timeout_s = 0.5
    for turn in range(1, pull.ATTEMPTS):
        with pytest.raises(ArchiveTimeout):
            puller.run()
        assert peer.asked.count(place) == turn
        puller.again()
    assert puller.run()
    assert puller.images() == everything(peer)
    assert (puller.progress.missing, puller.progress.done) == (0, 3)


def test_a_study_that_stays_silent_is_given_up_and_the_next_begins_anew(puller, peer):
    peer.put(1, 1, 2)
    peer.put(2, 1, 2)
    peer.put(3, 1)
    lost = {f"studies/{study_uid(study)}" for study in (1, 2)}
    peer.silent = lambda path, _: path in lost
    puller.timeout_s = 0.5
    turns = 0
    while True:
        turns += 1
        try:
            if puller.run():
                break
        except ArchiveTimeout:
            puller.again()
    assert {peer.asked.count(place) for place in lost} == {pull.ATTEMPTS}
    assert turns == 2 * (pull.ATTEMPTS - 1) + 1
    assert puller.images() == [sop_uid(3, 1)]
    assert (puller.progress.missing, puller.progress.studies) == (4, 3)


def test_an_archive_that_refuses_us_ends_the_pull(puller, peer):
    peer.hurt = lambda *_: (401, b"")
    with pytest.raises(Denied, match="401"):
        puller.run()
    assert peer.asked == ["studies"]


@pytest.mark.parametrize(
    "answer", [b"no JSON", b"{}", b'[{"0020000D": {"Value": ["../../etc"]}}, {"0020000D": 1}, 7]', b"[" * 100_000]
)
def test_an_archive_that_answers_nonsense_is_not_followed(puller, peer, answer):
    peer.hurt = lambda path, *_: (200, answer) if path == "studies" else None
    try:
        assert puller.run()  # no study is named in it
    except Invalid as error:
        assert "archive" in str(error)  # noqa: PT017 - raising is allowed, not required
    assert set(peer.asked) == {"studies"}
    assert puller.images() == []


def test_no_redirect_is_followed(puller, peer):
    peer.hurt = lambda *_: (302, b"")
    with pytest.raises(Invalid, match="302"):
        puller.run()


@pytest.mark.parametrize("name", [b"M\xfcller", b"a\ttab", b"\xef\xbf\xbd"])
def test_a_listing_may_hold_text_of_any_encoding(puller, peer, name):
    peer.put(1, 1)

    def named(path, query, _):
        item = b'{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "%b"}]}, ' % name
        return (200, peer._found(path, query)[1].replace(b"{", item, 1)) if path == "studies" else None

    peer.hurt = named
    assert puller.run()
    assert puller.images() == everything(peer)


def test_of_an_archive_that_ignores_offsets_no_study_is_left_out_in_silence(puller, peer, monkeypatch):
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    peer.ignores_offset = True
    for study in (1, 2, 3, 4, 5):
        peer.put(study, 1, 2, 3)
    assert puller.run()
    assert puller.images() == everything(peer)
    peer.put(13, 1)  # on the day of study 1
    puller.progress = Progress()
    with pytest.raises(Invalid, match="only the first 2"):
        puller.run()


def test_of_a_study_that_is_partly_here_an_archive_that_ignores_offsets_keeps_no_instance_back(
    puller, peer, monkeypatch
):
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    peer.ignores_offset = True
    peer.put(1, 1)
    assert puller.run()
    peer.put(1, 2, 3, 4, 5)
    puller.progress = Progress()
    assert puller.run()
    assert puller.images() == everything(peer)


def test_pages_that_are_capped_or_always_the_first_end(puller, peer):
    peer.put(1, *range(1, 6))
    peer.page = 2
    assert puller.run()
    assert puller.images() == everything(peer)
    peer.ignores_offset = True
    peer.put(2, 1, 2, 3)
    puller.progress = Progress()
    assert puller.run()
    assert puller.images() == everything(peer)


def test_what_is_listed_without_a_valid_uid_ends_no_listing_and_is_counted(puller, peer):
    """A page of such studies, and a study with one such instance; a component of a UID may not begin with a zero."""
    peer.page = 2
    for study in ("1.2.03", "1.2.04"):
        peer.files[study] = {}
    peer.put(1, 1, 2)
    peer.files[study_uid(1)]["1.2.05"] = b""
    assert puller.run(Plan(query={}, first=None, last=None))
    assert puller.images() == [sop_uid(1, 1), sop_uid(1, 2)]
    assert (puller.progress.studies, puller.progress.pulled, puller.progress.unnamed) == (1, 2, 3)


def test_studies_may_be_named_instead_of_dated(puller, peer):
    for study in (1, 2, 3):
        peer.put(study, 1)
    named = f"{study_uid(1)},{study_uid(3)}"
    assert puller.run(Plan(query={"StudyInstanceUID": named}, first=None, last=None))
    assert puller.images() == [sop_uid(1, 1), sop_uid(3, 1)]


def test_the_rate_is_kept(puller, peer):
    peer.put(1, *range(1, 7))
    began = time.monotonic()
    assert puller.run(Plan(query={}, first=date(2024, 1, 1), last=date(2024, 12, 31), rate_per_s=10))
    assert time.monotonic() - began >= 0.5
    assert Pace(1).batch == 5
    assert Pace(None).batch == BATCH


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_used_are_told(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Invalid, match="CA certificates"):
        Archive(Access(url="https://pacs/dicom-web", ca_file=path))


def test_credentials_are_read_from_their_files_and_stand_in_no_text(peer, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("CANARY-word\n")
    peer.put(1, 1)
    with Archive(Access(url=peer.url, token_file=secret)) as archive:
        archive.ping()
    assert peer.headers[-1]["Authorization"] == "Bearer CANARY-word"
    with Archive(Access(url=peer.url, user="me", password_file=secret)) as archive:
        archive.ping()
    assert peer.headers[-1]["Authorization"].startswith("Basic ")
    secret.write_text("CANARY-word", encoding="utf-8-sig")  # as editors of Windows write it
    with Archive(Access(url=peer.url, token_file=secret)) as archive:
        archive.ping()
    assert peer.headers[-1]["Authorization"] == "Bearer CANARY-word"
    assert "CANARY" not in repr(Access(url=peer.url, token_file=secret))
    with pytest.raises(Invalid, match="FileNotFoundError"):
        Archive(Access(url=peer.url, token_file=tmp_path / "nothing"))


@pytest.mark.parametrize(
    "url",
    ["file:///etc", "http://me:word@host", "https://host/?a", "https://host/#a", "host", "http://h h", "http://[x"],
)
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(Invalid, match="URL"):
        checked(url)


@pytest.mark.parametrize(
    ("hours", "at", "closed_s"),
    [
        ("22:00-06:00", "23:00", 0), ("22:00-06:00", "05:59", 0), ("22:00-06:00", "06:00", 16 * 3600),
        ("22:00-06:00", "21:00", 3600), ("08:00-09:00", "08:30", 0), ("08:00-09:00", "09:00", 23 * 3600),
    ],
)  # fmt: skip
def test_hours_are_open_or_closed_for_so_long(hours, at, closed_s):
    now = datetime.fromisoformat(f"2024-05-05T{at}")
    assert Hours.read(hours).closed_s(now) == closed_s


@pytest.mark.parametrize("hours", ["", "22-06", "25:00-06:00", "22:00-22:00", "22:00"])
def test_hours_that_are_none_are_refused(hours):
    with pytest.raises(Invalid, match="hours"):
        Hours.read(hours)
