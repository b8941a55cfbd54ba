import base64
import zlib
from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa

from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.index import grouping
from shared.index.base import Answer, Query
from shared.index.faiss import FaissStore
from shared.index.memory import MemoryIndex
from shared.pipeline import search
from shared.pipeline.question import Filters, Ranking, Request
from shared.store import checks, generations, images
from shared.store.images import Verdict
from shared.types import Status
from tests.miniature import Platform, header


def uid(study: int) -> str:
    return f"1.2.4.{study + 1}"


def ask(platform: Platform, study: int = 0, **request: Any) -> Ranking:
    with platform.store.reading() as connection:
        return search.by_studies(connection, platform.index, [uid(study)], Request(**request))[0]


@pytest.fixture
def archive(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(48)  # 12 studies of 6 patients
    return platform


def test_the_query_patient_is_hidden_by_default_and_counted(archive: Platform) -> None:
    answer = ask(archive, k=50)
    assert {s.study_uid for s in answer.studies} == {uid(n) for n in range(2, 12)}
    assert (answer.hidden_studies, answer.hidden_images) == (2, 8)


def test_excluding_only_the_study_shows_her_prior(archive: Platform) -> None:
    answer = ask(archive, k=50, exclude=frozenset({"study"}))
    assert {s.study_uid for s in answer.studies} == {uid(n) for n in range(1, 12)}
    assert (answer.hidden_studies, answer.hidden_images) == (1, 4)


def test_excluding_nothing_finds_the_study_itself_first(archive: Platform) -> None:
    answer = ask(archive, exclude=frozenset())
    assert answer.studies[0].study_uid == uid(0)
    assert answer.studies[0].score == pytest.approx(1.0, abs=1e-3)
    assert answer.hidden_studies == 0


def test_each_pair_joins_an_image_of_the_query_with_one_of_the_study(archive: Platform) -> None:
    for study in ask(archive, view="match").studies:
        for pair in study.pairs:
            assert pair.query.view == pair.hit.view
            assert pair.hit.study_uid == study.study_uid


def test_scores_fall_and_ties_are_ordered_by_uid(archive: Platform) -> None:
    found = [(-s.score, s.study_uid) for s in ask(archive, k=50).studies]
    assert found == sorted(found)


def test_filters_are_honoured(platform: Platform) -> None:
    platform.add_model()
    for n in range(16):
        day = date(2020 + n // 4, 1, 1)
        platform.put(f"{n}.dcm", header(n, patient_id=f"P{n // 4}", study_date=day, modality="MG" if n < 8 else "US"))
    platform.scan()
    platform.encode()
    platform.project()
    assert {s.study_uid for s in ask(platform, filters=Filters(modality=("US",))).studies} == {uid(2), uid(3)}
    early = Filters(date_to=date(2021, 12, 31))
    assert {s.study_uid for s in ask(platform, filters=early).studies} == {uid(1)}
    late = Filters(date_from=date(2022, 6, 1), modality=("US",))
    assert {s.study_uid for s in ask(platform, filters=late).studies} == {uid(3)}
    only = ask(platform, filters=Filters(laterality=("L",), view=("MLO",)))
    assert {(p.hit.laterality, p.hit.view) for s in only.studies for p in s.pairs} == {("L", "MLO")}


def test_pages_neither_repeat_nor_skip(archive: Platform) -> None:
    everything = [s.study_uid for s in ask(archive, k=50).studies]
    page, seen = ask(archive, k=3), []
    while True:
        seen += [s.study_uid for s in page.studies]
        if page.next is None:
            break
        page = ask(archive, k=3, cursor=page.next)
    assert seen == everything


def test_what_arrives_meanwhile_does_not_disturb_the_pages(archive: Platform) -> None:
    everything = [s.study_uid for s in ask(archive, k=50).studies]
    first = ask(archive, k=5)
    for n in range(48, 64):
        archive.put(f"{n:04}.dcm", header(n))
    archive.scan()
    archive.encode()
    archive.project()
    second = ask(archive, k=5, cursor=first.next)
    assert [s.study_uid for s in (*first.studies, *second.studies)] == everything


def test_what_is_encoded_anew_when_its_worker_stops_is_on_its_page(archive: Platform) -> None:
    everything = [s.study_uid for s in ask(archive, k=50).studies]
    with archive.begin() as db:
        checks.encode_again(db, range(1, 49))
        claimed = images.claim(db, limit=48, lease_s=5, max_failures=5)
    archive.intake.give_back([Verdict(image=c, status=Status.RECEIVED) for c in claimed])
    first = ask(archive, k=5)
    second = ask(archive, k=5, cursor=first.next)
    assert [s.study_uid for s in (*first.studies, *second.studies)] == everything


def test_what_is_encoded_anew_is_hidden_and_counted(archive: Platform) -> None:
    with archive.begin() as db:
        checks.encode_again(db, range(1, 49))
    archive.put("new.dcm", header(48, patient_id="WOMAN-0"))
    archive.scan()
    answer = ask(archive, k=50)
    assert {s.study_uid for s in answer.studies} == {uid(n) for n in range(2, 12)}
    assert (answer.hidden_studies, answer.hidden_images) == (2, 8)


def test_a_cursor_belongs_to_its_query(archive: Platform) -> None:
    first = ask(archive, k=3)
    with pytest.raises(Invalid):
        ask(archive, k=4, cursor=first.next)
    with pytest.raises(Invalid):
        ask(archive, study=3, k=3, cursor=first.next)
    with pytest.raises(Invalid):
        ask(archive, k=3, cursor="garbage!")


@pytest.mark.parametrize("lost", [1, 2, 5, 20])
def test_a_cursor_that_lost_its_end_is_none(archive: Platform, lost: int) -> None:
    first = ask(archive, k=3)
    with pytest.raises(Invalid, match="not a cursor"):
        ask(archive, k=3, cursor=(first.next or "")[:-lost])


def test_a_cursor_that_is_nested_too_deep_is_none(archive: Platform) -> None:
    nested = base64.urlsafe_b64encode(zlib.compress(b"[" * 60_000)).decode()
    with pytest.raises(Invalid, match="not a cursor"):
        ask(archive, cursor=nested)


def test_a_cursor_of_another_generation_is_stale(archive: Platform) -> None:
    first = ask(archive, k=3)
    with archive.begin() as db:
        model = generations.models(db)[0]
        other = search_lifecycle().open_generation(db, archive.indexes, model)
        generations.publish(db, other.id)
    with pytest.raises(Conflict):
        ask(archive, k=3, cursor=first.next)


def search_lifecycle() -> Any:
    from shared.pipeline import lifecycle

    return lifecycle


def test_an_orphan_in_the_index_is_never_shown(archive: Platform) -> None:
    import sqlalchemy as sa

    with archive.begin() as db:
        db.execute(
            sa.text("UPDATE image SET status = 'deleted' WHERE study_id = (SELECT id FROM study WHERE uid = :u)"),
            {"u": uid(5)},
        )
    assert uid(5) not in {s.study_uid for s in ask(archive, k=50).studies}


def test_several_studies_are_asked_at_once(archive: Platform) -> None:
    with archive.store.reading() as connection:
        many = search.by_studies(connection, archive.index, [uid(4), uid(0)], Request(k=3))
    assert [r.subject.study_uid for r in many] == [uid(4), uid(0)]
    assert [s.study_uid for s in many[1].studies] == [s.study_uid for s in ask(archive, k=3).studies]


def test_an_unknown_study_is_not_found_and_an_unready_one_conflicts(archive: Platform) -> None:
    with pytest.raises(NotFound):
        ask(archive, study=999)
    archive.put("late.dcm", header(100))
    archive.scan()
    with pytest.raises(Conflict):
        ask(archive, study=25)


def test_an_index_that_is_gone_is_no_unknown_study(archive: Platform) -> None:
    """As after the engine has lost its disk: a viewer must not take it for a study that the archive lacks."""
    ask(archive)
    with archive.store.reading() as connection:
        live = generations.published(connection)
    assert live is not None
    archive.indexes.drop(live.collection)
    with pytest.raises(Unavailable, match="doctor --repair"):
        ask(archive)


def test_before_a_model_is_published_search_is_unavailable(platform: Platform) -> None:
    with pytest.raises(Unavailable):
        ask(platform)


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"k": 10_000}, {"exclude": frozenset({"everything"})}, {"view": "sideways"}]
)
def test_a_wrong_request_is_invalid(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        Request(**wrong).check(max_k=200)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 400])
def test_a_long_study_is_asked_with_evenly_spaced_images(count: int) -> None:
    chosen = search.spaced(count, 16)
    assert len(chosen) == min(count, 16)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert chosen == sorted(set(chosen))


def test_an_image_from_outside_is_ranked_and_its_gates_are_told(archive: Platform) -> None:
    from dataclasses import replace

    from shared.types import Decoded
    from tests.miniature import SECRET, STATS

    stored = next(iter(archive.sandbox.headers))

    def decode(recipe: Any) -> Decoded:
        one = archive.sandbox._decoded(stored, recipe)
        return replace(one, stats=replace(STATS, spread=0.0, distinct=1))

    with archive.store.reading() as connection:
        answer = search.by_image(connection, archive.index, decode, archive.encoder, SECRET, Request(k=50))
    assert [stop.reason for stop in answer.subject.stops] == ["blank"]
    assert uid(0) not in {s.study_uid for s in answer.studies}  # the patient in its header is hidden
    with archive.store.reading() as connection:
        request = Request(k=50, exclude=frozenset())
        shown = search.by_image(connection, archive.index, decode, archive.encoder, SECRET, request)
    assert shown.studies[0].study_uid == uid(0)


def test_an_upload_that_the_archive_has_is_hidden_even_without_its_patient(archive: Platform) -> None:
    from dataclasses import replace

    from shared.types import Decoded
    from tests.miniature import SECRET

    stored = next(iter(archive.sandbox.headers))

    def anonymous(recipe: Any) -> Decoded:
        one = archive.sandbox._decoded(stored, recipe)
        return replace(one, header=replace(one.header, patient_id=""))

    with archive.store.reading() as connection:
        answer = search.by_image(connection, archive.index, anonymous, archive.encoder, SECRET, Request(k=50))
    assert not {uid(0), uid(1)} & {s.study_uid for s in answer.studies}
    assert answer.hidden_studies == 2


def test_an_upload_hides_the_patient_of_the_archive_and_the_one_its_header_names(archive: Platform) -> None:
    """The archive has the image under one patient ID; the header names another one that the archive also has."""
    from dataclasses import replace

    from shared.types import Decoded
    from tests.miniature import SECRET

    stored = next(iter(archive.sandbox.headers))

    def renumbered(recipe: Any) -> Decoded:
        one = archive.sandbox._decoded(stored, recipe)
        return replace(one, header=replace(one.header, patient_id="WOMAN-2"))

    with archive.store.reading() as connection:
        answer = search.by_image(connection, archive.index, renumbered, archive.encoder, SECRET, Request(k=50))
    shown = {s.study_uid for s in answer.studies}
    assert not {uid(0), uid(1), uid(4), uid(5)} & shown
    assert {uid(2), uid(3)} <= shown
    assert (answer.hidden_studies, answer.hidden_images) == (4, 16)


def test_a_study_of_many_alike_images_does_not_crowd_out_the_others(platform: Platform) -> None:
    """One study has more near images than the first query asks for; the answer still has k studies."""
    platform.add_model()
    for n in range(4):
        platform.put(f"q{n}.dcm", header(n, patient_id="Q"), b"query")
    for n in range(100):
        what = header(1000 + n, study_instance_uid="1.2.9.1", patient_id="CROWD")
        platform.put(f"crowd{n:03}.dcm", what, b"query")
    for n in range(100, 140):
        platform.put(f"other{n}.dcm", header(n, patient_id=f"P{n}"))
    platform.scan()
    platform.encode()
    platform.project()
    answer = ask(platform, k=10)
    assert answer.studies[0].study_uid == "1.2.9.1"
    assert len(answer.studies) == 10


@pytest.fixture
def crowds(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Four studies of thirty images like the query's rank before twelve others; lists are limited to 20 hits."""
    platform.add_model()
    platform.put("q.dcm", header(0, patient_id="Q"), b"query")
    for n in range(120):
        what = header(1000 + n, study_instance_uid=f"1.2.9.{n // 30}", patient_id=f"CROWD-{n // 30}")
        platform.put(f"crowd{n:03}.dcm", what, b"query")
    for n in range(100, 148):
        platform.put(f"other{n}.dcm", header(n, patient_id=f"P{n // 4}", view="CC", laterality="L"))
    platform.scan()
    platform.encode()
    platform.project()
    monkeypatch.setattr("shared.pipeline.ask.MOST_DEPTH", 20)
    monkeypatch.setattr(grouping, "LEAST", 20)
    return platform


def in_faiss(platform: Platform) -> FaissStore:
    """The published generation in an engine without native grouping."""
    name = platform.published().collection
    held, faiss = platform.index(name), FaissStore()
    points = [held.get([point for point, _ in batch]) for batch in held.scan()]
    faiss.create(name, held.spec).write([point for batch in points for point in batch])
    return faiss


@pytest.mark.parametrize("exact", [False, True])
def test_studies_of_very_many_images_do_not_make_the_answer_short(crowds: Platform, exact: bool) -> None:
    """Fewer than k studies fill the longest list; the best k are still found, with or without native grouping."""
    answer = ask(crowds, k=10, exact=exact)
    assert {s.study_uid for s in answer.studies[:4]} == {f"1.2.9.{n}" for n in range(4)}
    assert (len(answer.studies), answer.cut, answer.emulated) == (10, False, set())
    with crowds.store.reading() as connection:
        asked = Request(k=10, exact=exact)
        (emulated,) = search.by_studies(connection, in_faiss(crowds).open, [uid(0)], asked)
    assert emulated.emulated == {"group_by"}
    assert [s.study_uid for s in emulated.studies] == [s.study_uid for s in answer.studies]
    everything = [s.study_uid for s in ask(crowds, k=50, exact=exact).studies]
    assert len(everything) == 16
    following = ask(crowds, k=10, exact=exact, cursor=answer.next)
    assert [s.study_uid for s in (*answer.studies, *following.studies)] == everything
    assert following.next is None


def test_an_answer_that_is_short_after_all_rounds_says_so_and_goes_on(
    crowds: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "ROUNDS", 1)
    everything, seen, following, faiss = ask(crowds, k=50), [], None, in_faiss(crowds)
    for page in range(16):
        with crowds.store.reading() as connection:
            asked = Request(k=10, cursor=following)
            (answer,) = search.by_studies(connection, faiss.open, [uid(0)], asked)
        if page == 0:
            assert answer.cut
            assert 0 < len(answer.studies) < 10
        seen += [s.study_uid for s in answer.studies]
        following = answer.next
        if following is None:
            break
    assert seen == [s.study_uid for s in everything.studies]


def test_a_usual_search_asks_its_index_once(archive: Platform) -> None:
    held = archive.index(archive.published().collection)
    asked: list[int] = []

    class Counting(MemoryIndex):
        def search(self, queries: Sequence[Query]) -> list[Answer]:
            asked.append(len(queries))
            return held.search(queries)

    with archive.store.reading() as connection:
        for k in (3, 50):
            search.by_studies(connection, lambda _: Counting(held.spec), [uid(0)], Request(k=k))
    assert asked == [4, 4]


def test_points_that_are_just_being_written_take_nobodys_place(platform: Platform) -> None:
    """The nearest points, as many as the first query asks for, are written but not yet applied; others replace them."""
    platform.add_model()
    platform.put("q.dcm", header(0, patient_id="Q"), b"query")
    for n in range(1, 61):
        platform.put(f"{n}.dcm", header(n, study_instance_uid=f"1.2.9.{n}", patient_id=f"P{n}"))
    platform.scan()
    platform.encode()
    platform.project()
    nearest = [one.study_uid for one in ask(platform, k=50).studies]
    with platform.begin() as db:
        db.execute(
            sa.text(
                "UPDATE ledger SET state = 'pending', applied_at = NULL FROM image i JOIN study s ON s.id = i.study_id "
                "WHERE ledger.image_id = i.id AND s.uid = ANY(CAST(:uids AS text[]))"
            ),
            {"uids": nearest[:42]},
        )
    answer = ask(platform, k=10)
    assert answer.next is not None
    assert [one.study_uid for one in answer.studies][:8] == nearest[42:]
    assert len(answer.studies) == 10
