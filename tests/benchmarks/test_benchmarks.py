"""The benchmarks' parts on real engines with small sizes, and their arithmetic by hand."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from benchmarks import files, gallery, load, memory, processes, real, report
from benchmarks import search as searches
from benchmarks.gallery import Gallery
from benchmarks.ingest import decode, parts
from benchmarks.ingest.intake import Round, Taken
from benchmarks.ingest.parts import Part
from benchmarks.witness import Witness
from shared.encoder.build import build
from shared.encoder.runtime import load as load_encoder
from shared.errors import NotFound
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.index.memory import MemoryStore
from shared.pipeline import lifecycle, project, search
from shared.pipeline.question import Request
from shared.store import generations, ledger
from shared.store.session import Store


def taken(per_s: float, core_ms: float) -> Taken:
    return Taken(10, per_s, per_s, per_s, {"worker-ingest": core_ms}, 0.0)


def test_the_limit_adds_up_the_times_per_image() -> None:
    both = Round(Part(60.0, 20.0), Part(30.0, 40.0), taken(18.0, 75.0))
    assert both.limit == pytest.approx(20.0)
    assert both.ratio == pytest.approx(0.9)
    assert both.core_ratio == pytest.approx(60 / 75)


def test_the_stack_is_compared_with_what_eager_torch_would_allow() -> None:
    both = Round(Part(60.0, 20.0), Part(30.0, 40.0), taken(18.0, 75.0), Part(15.0, 80.0))
    assert both.times_eager == pytest.approx(18 / 12)
    assert both.ratio == pytest.approx(0.9)  # relative to the stack's own runtime
    assert Round(Part(60.0, 20.0), None, taken(30.0, 25.0)).times_eager is None


def test_without_a_forward_pass_decoding_alone_is_the_limit() -> None:
    null = Round(Part(60.0, 20.0), None, taken(30.0, 25.0))
    assert null.limit == pytest.approx(60.0)
    assert null.core_ratio == pytest.approx(0.8)


def test_a_leak_shows_as_a_slope_and_one_jump_does_not() -> None:
    images = list(range(0, 5000, 50))
    assert memory.slope(images, [100 + 0.01 * n for n in images]) == pytest.approx(10.0)
    assert memory.slope(images, [100.0 if n < 2000 else 160.0 for n in images]) < 1.0 or pytest.fail(
        "a jump is no trend"
    )
    assert memory.slope([5, 5, 5], [1.0, 2.0, 3.0]) == 0.0


def test_small_files_pass_the_gates_and_each_has_its_own_uid(tmp_path: Path) -> None:
    paths = files.small(tmp_path / "in", 8, 3)
    with Sandbox() as sandbox:
        headers = [answer.header for answer in sandbox.decode_many(paths, Recipe()) if hasattr(answer, "header")]
    assert len({header.sop_instance_uid for header in headers}) == 8
    assert len({header.study_instance_uid for header in headers}) == 2


def test_a_folder_of_files_is_gone_afterwards_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.gone_afterwards(tmp_path / "x") as folder:
        (folder / "file").write_text("x")
        raise RuntimeError
    assert not (tmp_path / "x").exists()


def test_decoding_is_counted_in_images_and_in_processor_time(tmp_path: Path) -> None:
    part = parts.decoding(files.small(tmp_path / "in", 24, 3), Recipe(), slots=2)
    assert part.per_s > 0
    assert 0 < part.core_ms < 1000


def test_every_step_of_the_pipeline_has_its_time(tmp_path: Path) -> None:
    files.small(tmp_path / "in", 12, 3)
    build(tmp_path / "null", "null", "null", "random:0")
    steps = parts.steps(tmp_path / "engines", tmp_path / "in", tmp_path / "null")
    assert {name.partition(":")[0] for name in steps} == {"scan", "encode", "project"}
    assert all(0 < step["ms"] < 60_000 and step["core_ms"] > 0 for step in steps.values()), steps


@pytest.fixture
def store(database_url: str):
    opened = Store(database_url)
    yield opened
    opened.close()


def test_a_gallery_is_projected_and_found_like_an_archive_that_was_decoded(store: Store, tmp_path: Path) -> None:
    indexes = MemoryStore()
    card = build(tmp_path / "null", "null", "null", "random:0", dim=16)
    with store.transaction() as db:
        lifecycle.add_model(db, indexes, "null", card)
        live = generations.published(db)
    vectors = np.random.default_rng(1).standard_normal((80, 16), dtype=np.float32)
    gallery.write(store, live, Gallery(vectors[:64], 5))
    gallery.write(store, live, Gallery(vectors[64:], 5, first=16))
    assert project.drain(store.transaction, indexes.open) == (80, False)
    with store.reading() as connection:
        assert ledger.point_counts(connection, live.generation_id).ratio == 1.0
        patients = connection.execute(sa.text("SELECT count(DISTINCT patient_key) FROM study")).scalar_one()
        uid = Gallery(vectors, 5).uid(17)
        (ranking,) = search.by_studies(connection, indexes.open, [uid], Request(k=5, exact=True))
    assert patients == 10
    assert len(ranking.studies) == 5
    assert (ranking.hidden_studies, ranking.hidden_images) == (2, 8)


def test_percentiles_are_those_of_what_the_clients_saw() -> None:
    seen = load.Asked(ms=[float(ms) for ms in range(1, 101)], failed=2)
    assert (seen.latency.p50, seen.latency.p99, seen.latency.worst) == (50.5, 99.01, 100.0)
    assert (seen.latency.n, seen.latency.failed) == (100, 2)


def test_where_the_slowest_answer_spent_its_time_does_not_count_what_it_waited_for_a_client() -> None:
    bodies = [
        json.dumps({"timings_ms": {"total": total, "before_index": 1, "index": 3, "engine": 2, "after_index": 4}})
        for total in (8, 10)
    ]
    seen = load.Asked(ms=[40.0, 15.0], waited=[30.0, 0.0], bodies=[body.encode() for body in bodies])
    assert [sum(parts.values()) for parts in seen.parts()] == [10, 13]
    assert list(seen.slowest().values()) == [5.0, 1, 1, 2, 4]


def test_of_several_rounds_the_worst_is_told_and_the_p99_of_each() -> None:
    rounds = [{"p99": p99, "s": 4.0, "what": "files"} for p99 in (22.0, 237.0, 29.0)]
    worst = searches.worst(rounds)
    assert (worst["p99"], worst["rounds"]) == (237.0, rounds)
    assert searches.how(worst).endswith("files; the worst of 3 rounds, p99 22, 237, 29")


def test_each_round_has_studies_that_no_other_has() -> None:
    vectors = np.arange(100 * gallery.IMAGES, dtype=np.float32).reshape(-1, 1)
    held, later = searches.parted(vectors, 10, 3)
    assert (len(held), [len(more) for more in later]) == (70, [10, 10, 10])
    uids = [uid for one in (held, *later) for uid in one.uids()]
    assert len(set(uids)) == 100
    assert np.concatenate([one.vectors for one in (held, *later)]).tolist() == vectors.tolist()


def test_the_same_phantoms_are_lossless_in_every_syntax(tmp_path: Path) -> None:
    made = decode.write(tmp_path, 1, 512, 400, decode.SYNTAXES)
    with Sandbox() as sandbox:
        decoded = {name: sandbox.decode(paths[0], Recipe(size=256)) for name, paths in made.items()}
    syntaxes = {answer.header.transfer_syntax_uid for answer in decoded.values()}
    assert len(syntaxes) == len(decode.SYNTAXES)
    for name, answer in decoded.items():
        assert np.array_equal(answer.pixels, decoded[decode.RAW].pixels), name


def test_reduced_and_full_decoding_are_compared_on_the_same_codestreams(tmp_path: Path) -> None:
    made = decode.write(tmp_path, 1, 1148, 958, {decode.J2K: decode.SYNTAXES[decode.J2K]})
    found = decode.reduced_against_full(made[decode.J2K], rounds=2)
    assert found.factor >= 2
    assert found.ratio.median > 1


def test_overlap_does_not_count_the_image_itself() -> None:
    gallery_ = np.eye(12, dtype=np.float32)
    assert decode.overlap(gallery_, gallery_) == 1.0
    turned = np.roll(np.eye(12, dtype=np.float32) + 0.1, 1, axis=1)
    assert decode.overlap(gallery_ + 0.01 * np.arange(12, dtype=np.float32)[:, None], turned) < 1.0


def test_real_images_keep_their_order_through_two_encoders(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (130, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", train_images=images, train_labels=np.zeros(130))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    vectors, what = real.encode_radiographs(tmp_path, "squeezenet1_0", scratch)
    encoder = load_encoder(scratch / "real-model")
    for place in (0, 64, 129):
        pixels = real.enlarged(images[place : place + 1], encoder.card.recipe.size)
        assert np.allclose(encoder.encode(pixels).embeddings[0], vectors[place], atol=1e-4)
    assert "130 real images of some" in what


def test_a_folder_without_images_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        real.encode_radiographs(tmp_path, "densenet121", tmp_path)


def test_processor_time_of_a_process_grows_when_it_works() -> None:
    before, until = processes.cpu_s(os.getpid()), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert processes.cpu_s(os.getpid()) >= before + 0.05
    assert processes.pss_mib(os.getpid()) >= processes.anonymous_mib(os.getpid()) / 2 > 1
    assert processes.cpu_s(2**22 + 1) == processes.pss_mib(2**22 + 1) == 0.0


def test_the_witness_tells_for_how_long_it_could_not_run() -> None:
    with Witness() as witness:
        witness.sleepers[-1].send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        witness.sleepers[-1].send_signal(signal.SIGCONT)
    assert witness.saw.stood_still_ms > 300
    assert witness.saw.stolen_ms >= 0


def test_a_report_says_where_when_and_how(tmp_path: Path) -> None:
    about = report.facts("decode", {"phantoms": 30})
    report.write(
        "x", about, {"figure": 1}, ["# Title", *report.table(["a"], [[report.Spread.of([3, 1, 2])]])], tmp_path
    )
    text, data = (tmp_path / "x.md").read_text(), json.loads((tmp_path / "x.json").read_text())
    assert "| 2 (1 to 3) |" in text
    assert data["figure"] == 1
    for part in (about["command"], about["commit"], about["machine"], "phantoms 30"):
        assert part in text
