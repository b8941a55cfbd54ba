"""Replies assembled from bytes equal those of protobuf, and reflect every write."""

import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from services.vectors.codes import key_of
from services.vectors.replies import STEP, Fields, Replies, timed
from shared.index.protobuf import pb

FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2**127 + 5)
STUDY = ("study",)


@dataclass
class Record:
    id: uuid.UUID
    payload: dict[str, int | str] | None


class Shard:
    """The parts of a shard that replies need; records the requested IDs."""

    def __init__(self, *records: Record) -> None:
        self.records = {record.id: record for record in records}
        self.asked: list[Any] = []

    def fetch(self, ids: list[Any], fields: Fields) -> list[Record]:
        self.asked += ids
        found = [self.records[id_] for id_ in ids if id_ in self.records]
        if isinstance(fields, bool):
            return found
        return [Record(one.id, {k: v for k, v in (one.payload or {}).items() if k in fields}) for one in found]

    def page(self, offset: Any, limit: int, fields: Fields) -> tuple[list[Record], Any]:
        ids = [id_ for id_ in sorted(self.records) if offset is None or id_ >= offset]
        found = self.fetch(ids[:limit], fields)
        self.asked.clear()
        return found, ids[limit] if len(ids) > limit else None


def _replies(*records: Record) -> tuple[Replies, Shard]:
    shard = Shard(*records)
    return Replies(shard.fetch, shard.page), shard


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
    replies, _ = _replies(Record(FIRST, payload), Record(SECOND, None))
    raw = replies.batch([[(SECOND.int, 0.5), (FIRST.int, -2.0)], []], [True, True])
    assert _read(raw) == [[(str(SECOND), 0.5, {}), (str(FIRST), -2.0, payload)], []]
    assert pb.QueryBatchResponse.FromString(timed(raw, 0.25)).time == 0.25


def test_only_the_wanted_fields_are_sent_and_never_a_code() -> None:
    code = key_of("code")
    replies, _ = _replies(Record(FIRST, {"study": 7, "view": "CC", code: "AAAA"}))
    hit = [(FIRST.int, 1.0)]
    wanted: list[Fields] = [("study",), True, ("view", code)]
    assert [one[0][2] for one in _read(replies.batch([hit, hit, hit], wanted))] == [
        {"study": 7},
        {"study": 7, "view": "CC"},
        {"view": "CC"},
    ]


def test_what_is_remembered_is_not_read_again_until_it_is_written() -> None:
    replies, shard = _replies(Record(FIRST, {"study": 7}))
    for _ in range(2):
        replies.batch([[(FIRST.int, 1.0)]], [True])
    assert shard.asked == [FIRST]
    shard.records[FIRST] = Record(FIRST, {"study": 8})
    replies.forget([str(FIRST)])
    assert _read(replies.batch([[(FIRST.int, 1.0)]], [True])) == [[(str(FIRST), 1.0, {"study": 8})]]


def test_what_was_deleted_meanwhile_is_left_out() -> None:
    replies, _ = _replies()
    assert _read(replies.batch([[(FIRST.int, 1.0)]], [True])) == [[]]


def _many(count: int) -> list[Record]:
    return [Record(uuid.UUID(int=n), {"study": n, "view": "CC"}) for n in range(1, count + 1)]


def _remember_all(replies: Replies) -> int:
    steps = 0
    while replies.behind:
        replies.remember_ahead()
        steps += 1
    return steps


def test_what_the_first_search_wants_is_remembered_of_all_points_while_nobody_asks() -> None:
    replies, shard = _replies(*_many(2 * STEP + 5))
    assert not replies.behind  # no search so far
    replies.batch([[(1, 1.0)], [(1, 1.0)]], [(), True])
    assert not replies.behind  # checks of Hamming distances or recall do not count as searches
    replies.batch([[(1, 1.0)]], [STUDY])
    assert _remember_all(replies) == 3
    shard.asked.clear()
    every = [(n, 0.5) for n in range(1, 2 * STEP + 6)]
    assert [hit[2] for hit in _read(replies.batch([every], [STUDY]))[0]] == [{"study": n} for n, _ in every]
    assert not shard.asked
    assert not replies.behind


def test_what_is_written_between_two_steps_is_answered_as_it_was_written() -> None:
    replies, shard = _replies(*_many(STEP + 1))
    replies.batch([[(5, 1.0)]], [STUDY])
    replies.remember_ahead()
    changed = uuid.UUID(int=7)
    shard.records[changed] = Record(changed, {"study": 700})
    replies.forget([str(changed)])
    _remember_all(replies)
    assert _read(replies.batch([[(7, 1.0)]], [STUDY])) == [[(str(changed), 1.0, {"study": 700})]]


def test_what_was_read_before_a_write_is_not_remembered_after_it() -> None:
    shard = Shard(*_many(3))
    second = uuid.UUID(int=2)

    def page(offset: Any, limit: int, fields: Fields) -> tuple[list[Record], Any]:
        read = shard.page(offset, limit, fields)
        shard.records[second] = Record(second, {"study": 200})
        replies.forget([str(second)])  # as the thread of writes does
        return read

    replies = Replies(shard.fetch, page)
    replies.batch([[(1, 1.0)]], [STUDY])
    _remember_all(replies)
    assert _read(replies.batch([[(2, 1.0)]], [STUDY])) == [[(str(second), 1.0, {"study": 200})]]


def test_more_points_than_there_is_room_for_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.vectors.replies.CAPACITY", 2 * STEP)
    replies, shard = _replies(*_many(4 * STEP))
    replies.batch([[(4 * STEP, 1.0)]], [STUDY])
    assert _remember_all(replies) == 2  # the second step finds the cache full
    shard.asked.clear()
    replies.batch([[(n, 1.0) for n in range(1, STEP + 1)]], [STUDY])
    assert not shard.asked
    for start in range(STEP + 1, 4 * STEP, 8):  # evict the oldest entries
        replies.batch([[(n, 1.0) for n in range(start, start + 8)]], [STUDY])
    shard.asked.clear()
    replies.batch([[(1, 1.0), (4 * STEP - 1, 1.0)]], [STUDY])
    assert shard.asked == [uuid.UUID(int=1)]
