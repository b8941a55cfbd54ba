"""Limits per caller, and the answers beyond them."""

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx
import pytest

from services.api import middleware
from services.api.app import create
from services.api.limits import Slots, TokenBuckets
from services.api.routes import search
from shared.errors import Throttled, Unavailable
from tests.api.conftest import serving


@asynccontextmanager
async def asking(app):
    """A client that streams a body part by part as the app reads it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),  # background work ends before the database is closed
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client


def limited(archive, **changes):
    api = archive.rt.settings.api.model_copy(update=changes)
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    return serving(archive)


def test_a_key_that_asks_too_fast_is_told_when_to_come_back(archive):
    with limited(archive, rate_per_s=0.01, burst=3) as client:
        one, other = archive.key(), archive.key()
        assert [client.get("/v1/models", headers=one).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = client.get("/v1/models", headers=one)
        assert int(refused.headers["Retry-After"]) > 1
        assert client.get("/v1/models", headers=other).status_code == 200


def test_a_batch_costs_as_much_as_its_studies(archive):
    archive.take_in(1)
    with limited(archive, rate_per_s=0.01, burst=3) as client:
        batch = {"exclude": ["none"]}
        for studies, left in ((1, 2), (4, 0)):
            key = archive.key()
            batch["studies"] = ["1.2.3.1"] * studies
            assert client.post("/v1/searches", json=batch, headers=key).status_code == 200
            answers = [client.get("/v1/models", headers=key).status_code for _ in range(3)]
            assert answers == [200] * left + [429] * (3 - left), studies


def test_a_bucket_fills_again():
    buckets = TokenBuckets(rate_per_s=1000, burst=1)
    buckets.take(1)
    with pytest.raises(Throttled):
        for _ in range(5):
            buckets.take(1)
    threading.Event().wait(0.01)
    buckets.take(1)


def test_whoever_finds_all_places_taken_is_sent_away_at_once():
    slots, inside, go = Slots(slots=1, waiting=0), threading.Event(), threading.Event()

    def work():
        with slots.taken("it"):
            inside.set()
            go.wait(5)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(5)
    with pytest.raises(Unavailable), slots.taken("it"):
        pass
    go.set()
    thread.join()
    with slots.taken("it"):
        pass


def test_whoever_waits_too_long_is_sent_away():
    slots = Slots(slots=1, waiting=1, patience_s=0.01)
    with slots.taken("it"), pytest.raises(Unavailable), slots.taken("it"):
        pass
    with slots.taken("it"):
        pass


def test_an_upload_over_the_limit_is_refused_by_its_header_and_by_its_stream(archive):
    with limited(archive, max_upload_mb=1) as client:
        key = archive.key()
        big = b"\0" * (1024 * 1024 + 1)
        assert client.post("/v1/searches", content=big, headers=key).status_code == 413

        def stream():
            yield from (b"\0" * 100_000 for _ in range(20))

        headers = key | {"Content-Type": "image/png"}
        refused = client.post("/v1/searches", content=stream(), headers=headers)
        assert refused.status_code == 413
        assert refused.json()["code"] == "too-large"
        many = [("file", ("x", big[:600_000], "image/png")), ("file", ("y", big[:10], "image/png"))]
        assert client.post("/v1/searches", files=many, headers=key).status_code == 400


async def upload(client, key, begun, go):
    """Upload a picture whose second part is sent only after `go`."""

    async def parts():
        begun.set()
        yield b"x" * 1000
        await go.wait()
        yield b"x"

    return await client.post("/v1/searches", content=parts(), headers=key | {"Content-Type": "image/png"})


def test_only_four_uploads_are_held_at_once_and_the_next_is_sent_away_unread(archive):
    app, keys = create(archive.rt), [archive.key() for _ in range(3)]

    async def scenario():
        async with asking(app) as client:
            go, begun = asyncio.Event(), [asyncio.Event() for _ in range(6)]
            held = [asyncio.create_task(upload(client, keys[i % 2], begun[i], go)) for i in range(4)]
            await asyncio.gather(*(one.wait() for one in begun[:4]))
            fifth = await upload(client, keys[2], begun[4], go)
            batch = await client.post("/v1/searches", json={"studies": ["1.2.3.1"]}, headers=keys[0])
            go.set()
            done = await asyncio.gather(*held)
            return fifth, begun[4].is_set(), batch, done, await upload(client, keys[2], begun[5], go)

    fifth, was_read, batch, done, later = asyncio.run(scenario())
    assert (fifth.status_code, fifth.headers["Retry-After"], was_read) == (503, "2", False)
    assert batch.status_code == 404  # without an upload it needs no slot
    codes = {answer.status_code for answer in [*done, later]}
    assert codes == {422}, codes  # read, but not decodable as pictures


def test_one_key_has_half_of_the_places_so_that_others_find_one(archive):
    app, one, other = create(archive.rt), archive.key(), archive.key()

    async def scenario():
        async with asking(app) as client:
            go, ready, begun = asyncio.Event(), asyncio.Event(), [asyncio.Event() for _ in range(5)]
            ready.set()
            held = [asyncio.create_task(upload(client, one, begun[i], go)) for i in range(2)]
            await asyncio.gather(*(event.wait() for event in begun[:2]))
            third = await upload(client, one, begun[2], ready)
            another = await upload(client, other, begun[3], ready)
            go.set()
            await asyncio.gather(*held)
            return third, begun[2].is_set(), another, await upload(client, one, begun[4], ready)

    third, was_read, another, later = asyncio.run(scenario())
    assert (third.status_code, third.headers.get("Retry-After"), was_read) == (429, "2", False)
    assert "one key may have at most 2 requests at once" in third.json()["detail"]
    assert (another.status_code, later.status_code) == (422, 422)


def test_an_upload_that_trickles_gives_its_place_back(archive, monkeypatch):
    monkeypatch.setattr(search, "ARRIVES_WITHIN_S", 0.05)
    app, headers = create(archive.rt), archive.key() | {"Content-Type": "image/png"}

    async def trickle():
        yield b"x"
        await asyncio.sleep(30)

    async def scenario():
        async with asking(app) as client:
            return [await client.post("/v1/searches", content=trickle(), headers=headers) for _ in range(5)]

    answers = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [400] * 5


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_a_client_that_leaves_in_the_middle_is_no_error_of_ours(archive, kind):
    app, secret, told = create(archive.rt), archive.key()["Authorization"], []
    scope = {
        "type": "http", "method": "POST", "path": "/v1/searches", "query_string": b"", "http_version": "1.1",
        "headers": [(b"authorization", secret.encode()), (b"content-type", kind.encode())],
    }  # fmt: skip
    parts = [{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return parts.pop(0)

    async def send(message):
        told.append(message)

    async def scenario():
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(scenario())
    assert told[0]["status"] == 400


def posted(app, path, parts, headers):
    """The answer to a body sent in pieces."""

    async def scenario():
        async with asking(app) as client:
            return await client.post(path, content=parts, headers=headers)

    return asyncio.run(scenario())


def test_json_is_not_read_beyond_a_megabyte(archive):
    app, headers, read = create(archive.rt), archive.key() | {"Content-Type": "application/json"}, []

    async def parts():
        for _ in range(40):
            read.append(1)
            yield b" " * 100_000

    assert posted(app, "/v1/searches", parts(), headers).status_code == 413
    assert len(read) < 20


@pytest.mark.parametrize("path", ["/v1/ingest/scans", "/v1/searches", "/dicom-web/studies"])
def test_nothing_of_a_stranger_is_read(archive, path):
    app, read = create(archive.rt), []

    async def parts():
        for _ in range(40):
            read.append(1)
            yield b" " * 1000

    assert posted(app, path, parts(), {"Content-Type": "application/json"}).status_code == 401
    assert not read


def test_a_small_body_that_trickles_is_given_up(archive, monkeypatch):
    monkeypatch.setattr(middleware, "SMALL_WITHIN_S", 0.05)
    app, headers = create(archive.rt), archive.key() | {"Content-Type": "application/json"}

    async def trickle():
        yield b"{"
        await asyncio.sleep(30)

    refused = posted(app, "/v1/ingest/scans", trickle(), headers)
    assert (refused.status_code, refused.json()["detail"]) == (400, "the body did not arrive within 0.05 s")


def test_other_bodies_are_held_to_a_megabyte(client):
    refused = client.post("/v1/ingest/scans", content=b'{"path": "' + b"x" * 2**20 + b'"}')
    assert refused.status_code == 413


def test_compressed_bodies_are_not_taken(client):
    refused = client.post("/v1/searches", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported-media")


def test_a_search_takes_pictures_and_json_and_nothing_else(client):
    assert client.post("/v1/searches", content=b"<x/>", headers={"Content-Type": "text/xml"}).status_code == 415


def test_strangers_who_ask_whether_all_is_ready_hold_one_thread_while_an_engine_hangs(archive):
    app, headers, asked, go = create(archive.rt), archive.key(), [], threading.Event()

    def hang():
        asked.append(1)
        go.wait(30)

    archive.rt.indexes.ping = hang

    async def scenario():
        async with asking(app) as client:
            strangers = [asyncio.create_task(client.get("/readyz")) for _ in range(50)]  # more than the 40 threads
            try:
                async with asyncio.timeout(10):
                    listed = await client.get("/v1/studies", headers=headers)
            finally:
                go.set()
            return listed, await asyncio.gather(*strangers)

    listed, answers = asyncio.run(scenario())
    assert listed.status_code == 200
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "ready")}
    assert len(asked) == 2  # once at the start, once for all requests together


def test_a_stranger_who_leaves_takes_no_answer_from_the_others(archive):
    app, asked, go = create(archive.rt), threading.Semaphore(0), threading.Event()

    def hang():
        asked.release()
        go.wait(30)

    archive.rt.queue.ping = hang

    async def scenario():
        async with asking(app) as client:
            first, second = (asyncio.create_task(client.get("/readyz")) for _ in range(2))
            for _ in range(2):  # once at the start, once for both requests together
                await asyncio.to_thread(asked.acquire, timeout=10)
            first.cancel()
            go.set()
            return await second

    assert asyncio.run(scenario()).json()["status"] == "ready"
