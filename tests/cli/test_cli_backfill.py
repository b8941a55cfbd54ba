"""`similis backfill`: its request, and its exit codes."""

import pytest

from shared.types import OperationKind
from tests.cli.test_cli_ingest import ID, operation


def test_it_asks_for_what_was_typed_and_follows_to_the_end(similis, server, tmp_path):
    server.on("POST /v1/ingest/backfills", operation(), 202)
    server.on(f"GET /v1/operations/{ID}", operation("succeeded", done=4, total=4))
    secret = tmp_path / "word"
    ran = similis(
        "backfill", "--dicomweb", "https://pacs/dicom-web", "--query", "StudyDate=20200101-20201231",
        "--query", "ModalitiesInStudy=MG", "--rate", "5/s", "--between", "22:00-06:00", "--user", "me",
        "--password-file", secret, "--url", server.url,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    asked = server.asked[0]
    assert asked.json == {
        "dicomweb": "https://pacs/dicom-web",
        "query": {"StudyDate": "20200101-20201231", "ModalitiesInStudy": "MG"},
        "rate": 5.0,
        "between": "22:00-06:00",
        "user": "me",
        "password_file": str(secret),
    }
    assert asked.headers["Idempotency-Key"]
    assert "succeeded" in ran.out


def test_what_the_archive_lists_without_a_valid_uid_is_told(similis, server):
    server.on("POST /v1/ingest/backfills", operation(), 202)
    server.on(f"GET /v1/operations/{ID}", operation("succeeded", done=4, total=4, counts={"unnamed": 3}))
    ran = similis("backfill", "--dicomweb", "pacs", "--url", server.url)
    assert [line.split()[1:3] for line in ran.out.splitlines() if "warning" in line] == [["unnamed", "3"]]


@pytest.mark.parametrize(("held", "told"), [(0, "lists no image for this query"), (9, "unchanged 9")])
def test_an_end_without_a_new_image_says_whether_there_was_any(similis, server, held, told):
    kind = OperationKind.PULL
    server.on("POST /v1/ingest/backfills", operation("pending", kind=kind), 202)
    server.on(f"GET /v1/operations/{ID}", operation("succeeded", held, held, kind=kind, counts={"held": held}))
    ran = similis("backfill", "--dicomweb", "pacs", "--url", server.url)
    assert ran.code == 0
    assert told in " ".join((ran.out + ran.err).split())


def test_without_waiting_it_tells_the_operation(similis, server):
    server.on("POST /v1/ingest/backfills", operation(), 202)
    ran = similis("backfill", "--dicomweb", "pacs", "--no-wait", "--url", server.url)
    assert (ran.code, ran.out.strip()) == (0, ID)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--query", "StudyDate"),
        ("--rate", "fast"),
        ("--query", "StudyInstanceUID=1.2", "--query", "StudyInstanceUID=1.3"),  # or the first would be left out
    ],
)
def test_what_is_typed_wrong_is_not_asked(similis, server, wrong):
    ran = similis("backfill", "--dicomweb", "pacs", *wrong, "--url", server.url)
    assert ran.code == 5
    assert server.asked == []
