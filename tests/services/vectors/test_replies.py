"""Answers put together from bytes are what protobuf itself would have written, and follow every write."""

import uuid
from dataclasses import dataclass
from typing import Any

from services.vectors.codes import key_of
from services.vectors.replies import Fields, Replies, timed
from shared.index.protobuf import pb

FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2**127 + 5)


@dataclass
class Record:
    id: uuid.UUID
    payload: dict[str, int | str] | None


class Shard:
    """As much of Edge as answers are made of; counts what it is asked for."""

    def __init__(self, *records: Record) -> None:
        self.records = {record.id: record for record in records}
        self.asked: list[Any] = []

    def fetch(self, ids: list[Any], fields: Fields) -> list[Record]:
        self.asked += ids
        found = [self.records[id_] for id_ in ids if id_ in self.records]
        if isinstance(fields, bool):
            return found
        return [Record(one.id, {k: v for k, v in (one.payload or {}).items() if k in fields}) for one in found]


def _read(raw: bytes) -> list[list[tuple[str, float, dict[str, int | str]]]]:
    reply = pb.QueryBatchResponse.FromString(raw)
    kind = "string_value", "integer_value"
    return [
        [
            (
                hit.id.uuid,
                hit.score,
                {k: getattr(v, kind[0] if v.HasField(kind[0]) else kind[1]) for k, v in hit.payload.items()},
            )
            for hit in one.result
        ]
        for one in reply.result
    ]


def test_a_reply_says_ids_scores_and_payloads_of_every_kind() -> None:
    payload: dict[str, int | str] = {
        "study": 0,
        "image": 300,
        "patient": 2**63 - 1,
        "below": -2,
        "view": "MLO",
        "long": "ä" * 200,
        "": "",
    }
    replies = Replies(Shard(Record(FIRST, payload), Record(SECOND, None)).fetch)
    raw = replies.batch([[(SECOND.int, 0.5), (FIRST.int, -2.0)], []], [True, True])
    assert _read(raw) == [[(str(SECOND), 0.5, {}), (str(FIRST), -2.0, payload)], []]
    assert pb.QueryBatchResponse.FromString(timed(raw, 0.25)).time == 0.25


def test_only_the_wanted_fields_are_sent_and_never_a_code() -> None:
    code = key_of("code")
    shard = Shard(Record(FIRST, {"study": 7, "view": "CC", code: "AAAA"}))
    replies = Replies(shard.fetch)
    hit = [(FIRST.int, 1.0)]
    wanted: list[Fields] = [("study",), True, ("view", code)]
    assert [one[0][2] for one in _read(replies.batch([hit, hit, hit], wanted))] == [
        {"study": 7},
        {"study": 7, "view": "CC"},
        {"view": "CC"},
    ]


def test_what_is_remembered_is_not_read_again_until_it_is_written() -> None:
    shard = Shard(Record(FIRST, {"study": 7}))
    replies = Replies(shard.fetch)
    for _ in range(2):
        replies.batch([[(FIRST.int, 1.0)]], [True])
    assert shard.asked == [FIRST]
    shard.records[FIRST] = Record(FIRST, {"study": 8})
    replies.forget([str(FIRST)])
    assert _read(replies.batch([[(FIRST.int, 1.0)]], [True])) == [[(str(FIRST), 1.0, {"study": 8})]]


def test_what_was_deleted_meanwhile_is_left_out() -> None:
    replies = Replies(Shard().fetch)
    assert _read(replies.batch([[(FIRST.int, 1.0)]], [True])) == [[]]
