"""The data of the engine benchmark: truth, filters, hardness."""

import json

import numpy as np
import pytest
import sqlalchemy as sa

from benchmarks import gallery
from benchmarks.clustered import clustered, local_dimension
from benchmarks.gallery import Gallery
from benchmarks.latency import datasets
from benchmarks.latency.data import DEEPEST, FILTERS, Data, prepare
from benchmarks.latency.datasets import codes
from shared.encoder.build import build
from shared.errors import Invalid, NotFound
from shared.index.memory import MemoryStore
from shared.pipeline import lifecycle
from shared.store import generations
from shared.store.session import Store


@pytest.fixture(scope="module", params=["clustered:16:400", "codes:64:400"])
def data(request, tmp_path_factory) -> Data:
    return Data.load(prepare(request.param, tmp_path_factory.mktemp("cache"), 12, 7))


def test_the_truth_is_what_plain_loops_find_under_every_filter(data: Data) -> None:
    for name in FILTERS:
        for row in range(0, len(data.queries), 4):
            clauses = data.clauses(name)
            found = []
            for n in range(len(data.rows)):
                clause = None if clauses is None else clauses[row]
                if clause and (int(data.columns[clause.field][n]) == clause.value) == clause.exclude:
                    continue
                a, b = data.queries[row].tolist(), data.rows[n].tolist()
                coded = data.rows.dtype == np.uint8
                pairs = zip(a, b, strict=True)
                found.append(-sum((x ^ y).bit_count() for x, y in pairs) if coded else sum(x * y for x, y in pairs))
            found = sorted(found, reverse=True)[:DEEPEST]
            assert np.allclose(data.truth[name][row, : len(found)], found, atol=1e-6), name
            assert np.isneginf(data.truth[name][row, len(found) :]).all()


def test_hiding_the_patient_hides_the_nearest_row(data: Data) -> None:
    every, hidden = data.truth["all"][:, 0], data.truth["patient"][:, 0]
    assert (hidden <= every).all()
    assert (hidden < every).any()


def test_the_truth_is_made_once(tmp_path) -> None:
    folder = prepare("clustered:8:100", tmp_path, 5, 7)
    held = folder / "about.json"
    held.write_text(held.read_text().replace("}", ', "mark": 1}'))
    assert json.loads((prepare("clustered:8:100", tmp_path, 5, 7) / "about.json").read_text())["mark"] == 1
    assert prepare("clustered:8:100", tmp_path, 5, 8) != folder


def test_codes_are_full_of_copies_and_say_so(tmp_path) -> None:
    about = json.loads((prepare("codes:256:2000", tmp_path, 10, 7) / "about.json").read_text())
    assert 0.25 < about["copies"] < 0.35


def test_queries_of_codes_are_of_the_mixtures_of_the_rows(monkeypatch) -> None:
    monkeypatch.setattr(codes, "PART", 2000)  # 14,000 distinct codes in seven mixtures
    made = datasets.make("codes:256:20000", 60, 7)
    asked = np.array([n % 3 != 0 for n in range(60)])  # every third query is a copy
    apart = [
        np.sort(np.bitwise_count(made.rows ^ code).sum(axis=1, dtype=np.int64))
        for code in [*made.queries[asked], *made.rows[:100]]
    ]
    nearest = [min((far for far in one if far), default=0) for one in apart]
    assert np.median(nearest[:40]) < 1.2 * np.median(nearest[40:])


def test_other_contents_of_a_file_are_other_data(tmp_path) -> None:
    rows = np.random.default_rng(1).standard_normal((40, 8), dtype=np.float32)
    np.save(tmp_path / "own.npy", rows)
    name = f"file:{tmp_path / 'own.npy'}"
    first = prepare(name, tmp_path / "cache", 5, 7)
    assert prepare(name, tmp_path / "cache", 5, 7) == first
    np.save(tmp_path / "own.npy", rows[::-1])
    assert prepare(name, tmp_path / "cache", 5, 7) != first


def test_copies_of_a_query_do_not_spoil_its_intrinsic_dimension() -> None:
    vectors = clustered(1200, 64, 3)
    plain = local_dimension(vectors[:1000], vectors[1000:], 50)
    copied = np.concatenate([vectors[:1000], np.repeat(vectors[1000:1010], 20, axis=0)])
    assert local_dimension(copied, vectors[1000:1010], 50) == pytest.approx(plain, rel=0.5)
    assert local_dimension(3 * vectors[:1000], 7 * vectors[1000:], 50) == pytest.approx(plain, rel=0.01)
    assert np.isnan(local_dimension(np.repeat(vectors[:1], 60, axis=0), vectors[:1], 50))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".parquet"])
def test_vectors_of_a_file_are_read_and_queries_held_out(tmp_path, suffix) -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 8), dtype=np.float32)
    path = tmp_path / f"own{suffix}"
    match suffix:
        case ".npy":
            np.save(path, vectors)
        case ".npz":
            np.savez(path, own=vectors)
        case ".h5":
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                file["own"] = vectors
        case ".parquet":
            pa = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pa.table({"own": pa.array(vectors.tolist(), pa.list_(pa.float32(), 8))}), path)
    key = "" if suffix == ".npy" else ":own"
    made = datasets.make(f"file:{path}{key}", 20, 7)
    assert (made.rows.shape, made.queries.shape) == ((40, 8), (10, 8))
    together = np.concatenate([made.rows, made.queries])
    assert np.array_equal(np.unique(together, axis=0), np.unique(vectors, axis=0))
    if key:
        with pytest.raises(NotFound, match="own"):
            datasets.make(f"file:{path}:another", 20, 7)


def test_the_published_vectors_of_a_similis_come_with_patients_and_modality(database_url: str, tmp_path) -> None:
    store = Store(database_url)
    indexes = MemoryStore()
    card = build(tmp_path / "null", "null", "null", "random:0", dim=16)
    with store.transaction() as db:
        lifecycle.add_model(db, indexes, "null", card)
        live = generations.published(db)
    vectors = np.random.default_rng(1).standard_normal((80, 16), dtype=np.float32)
    gallery.write(store, live, Gallery(vectors, 5))
    before = datasets.fingerprint(f"similis:{database_url}")
    made = datasets.make(f"similis:{database_url}", 10, 7)
    with store.reading() as connection:
        assert datasets.fingerprint(f"similis:{database_url}") == before
        keys = connection.execute(sa.text("SELECT DISTINCT patient_key FROM study")).scalars().all()
    store.close()
    assert (len(made.rows), len(made.queries)) == (70, 10)
    patients = np.concatenate([made.columns["patient"], made.patients])
    assert sorted(np.unique(patients, return_counts=True)[1]) == [8] * 10
    assert patients.max() == len(keys)  # ranks, not pseudonyms


@pytest.mark.parametrize("name", ["clustered:x:1", "codes:60:10", "real:somewhere"])
def test_data_that_cannot_be_made_are_refused(name) -> None:
    with pytest.raises(Invalid):
        datasets.make(name, 5, 7)


def test_an_unknown_kind_of_data_names_the_known() -> None:
    with pytest.raises(NotFound, match="clustered, codes, file, real, similis"):
        datasets.make("nothing:1", 5, 7)


def test_codes_of_a_file_that_are_no_whole_words_are_refused(tmp_path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((20, 4), np.uint8))
    with pytest.raises(Invalid, match="64 bits"):
        prepare(f"file:{tmp_path / 'short.npy'}", tmp_path / "cache", 2, 7)


@pytest.mark.parametrize("name", ["own.npy", "own.npz", "own.h5", "own.parquet"])
def test_a_file_that_holds_no_vectors_is_refused(name, tmp_path) -> None:
    for content in (b"", b"PK\x03\x04 damaged"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Invalid):
            datasets.make(f"file:{tmp_path / name}", 5, 7)


def test_words_are_no_vectors(tmp_path) -> None:
    np.save(tmp_path / "own.npy", np.full((20, 4), "a"))
    with pytest.raises(Invalid, match="numbers"):
        datasets.make(f"file:{tmp_path / 'own.npy'}", 5, 7)


def test_a_zero_vector_is_refused(tmp_path) -> None:
    np.save(tmp_path / "zero.npy", np.zeros((20, 4), np.float32))
    with pytest.raises(Invalid, match="zero"):
        prepare(f"file:{tmp_path / 'zero.npy'}", tmp_path / "cache", 2, 7)
