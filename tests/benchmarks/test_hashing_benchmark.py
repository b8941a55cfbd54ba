"""The hashing and OOD benchmarks on stripes: heads, resumption, tables, shares above thresholds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.retrieval import hashing, hashing_tables, ood
from benchmarks.retrieval.heads import Head, codes, grid, measured
from benchmarks.retrieval.trunk import Seen, Trunk
from shared.datasets.collection import Collection
from shared.metrics.hashing import unique_codes
from shared.training.hashing import METHODS
from tests.training.small_set import stripes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def collection() -> Collection:
    made = stripes(128, 32, 0)
    return replace(made, sources=np.where(made.labels < 2, "first", "second"))


@pytest.fixture(scope="module")
def seen(collection) -> Seen:
    """Noisy features that separate the classes."""
    rng = np.random.default_rng(0)
    features = np.eye(4, 24, dtype=np.float32)[collection.labels] * 3 + rng.standard_normal((128, 24), np.float32)
    return Seen(torch.from_numpy(features), features, None)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_of_any_method_retrieves_what_its_features_know(method, collection, seen):
    found = codes(Head(method=method, bits=16), seen, collection, 0, seed=0)
    figures, average = measured(found, collection, "hamming")
    assert found.shape == (128, 2)
    assert figures["mAP"] > 0.7
    assert figures["mAP_low"] <= figures["mAP"] <= figures["mAP_high"]
    assert figures["bytes"] == 2
    assert figures["unique_codes"] == unique_codes(found[collection.split != "test"])
    assert figures["ball"]["R@H<=4"] >= figures["ball"]["R@H<=0"]
    assert average.shape == ((collection.split == "test").sum(),)


def test_a_head_comes_from_its_seed_and_each_change_is_another_head(collection, seen):
    usual = codes(Head(bits=16), seen, collection, 20, seed=1)
    np.testing.assert_array_equal(usual, codes(Head(bits=16), seen, collection, 20, seed=1))
    changes = {"gamma": 0.4}, {"marks": "random"}, {"layer": "linear"}, {"darf": False}, {"optimiser": "sgd"}
    for change in changes:
        assert not np.array_equal(usual, codes(Head(bits=16, **change), seen, collection, 20, seed=1)), change


def test_the_grid_has_every_method_at_every_length_and_every_change_once():
    heads = grid((16, 64), METHODS)
    assert len(set(heads)) == len(heads)
    assert {(h.method, h.bits) for h in heads} >= {(method, bits) for method in METHODS for bits in (16, 64)}
    changes = [h.changed for h in heads]
    for name, values in {"alpha": {0.25, 0.75}, "prints": {8, 32}, "marks": {"random", "uniform"}}.items():
        assert {change[name] for change in changes if name in change} == values
    optimisers = {(h.optimiser, h.weight_decay) for h in heads if h.method == "acir" and h.labels == "fine"}
    assert optimisers == {(kind, decay) for kind in ("adamw", "adam", "sgd") for decay in (0.0, 1e-4)}


def test_what_stands_in_the_log_is_not_run_again(tmp_path):
    runs = []

    def run():
        runs.append(1)
        return {"mAP": 0.5}, np.array([0.5])

    for _ in range(2):
        log = hashing.Log(tmp_path / "runs.jsonl")
        log.once({"kind": "head", "bits": 8}, run)
    assert len(runs) == 1
    log.once({"kind": "head", "bits": 16}, run)
    assert len(runs) == 2
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["key"]["bits"] for line in lines] == [8, 16]
    assert {"commit", "date", "machine", "cpu_s"} <= lines[0].keys()
    again = hashing.Log(tmp_path / "runs.jsonl")
    assert again.average_precision({"kind": "head", "bits": 8}).tolist() == [0.5]
    assert log.average_precision({"kind": "head", "bits": 9}) is None


def test_tables_are_made_of_the_records_alone(tmp_path, collection, seen):
    log = hashing.Log(tmp_path / "runs.jsonl")
    key = {"kind": "trunk", "widths": "xs", "epochs": 1, "objective": "acir", "darf": True, "seed": 0}
    rival = {**key, "objective": "csq"}
    for search, factor in (("float", 1), ("features", 2)):
        for own in (key, {**key, "seed": 1}, rival):
            vectors = seen.embeddings * factor if own is rival else seen.embeddings + factor
            log.once({**own, "search": search}, lambda v=vectors: measured(v, collection, "cosine"))
    heads = [
        Head(),
        Head(method="csq"),
        Head(bits=16),
        Head(alpha=0.25),
        Head(labels="coarse"),
        Head(method="csq", bits=16),
    ]
    for seed in (0, 1):
        hashing._heads(f"xs-{seed}", seen, collection, 20, heads, seed, log)
    hashing._heads("mobilenet_v2:random", seen, collection, 20, [Head()], 0, log)
    hashing._heads("mobilenet_v2:imagenet on stripes", seen, collection, 20, [Head(prints=8)], 0, log)
    log.once({"kind": "search", "bits": 64}, lambda: (hashing.search_time(64), None))
    text = "\n".join(hashing_tables.body(log.records, log.average_precision, collection))
    for row in (
        "| acir |",
        "| csq |",
        "| alpha 0.25 |",
        "| mobilenet_v2:random |",
        "| stripes | 8 |",
        "*acir, end to end, float, content*",
        "*acir, end to end, float, z*",
        "| acir | K/16 |",
        "| 64 | 8 |",
    ):
        assert row in text
    both = [r["figures"]["mAP"] for r in log.records if r["key"].get("method") == "csq" and r["key"]["bits"] == 16]
    assert f"{np.mean(both):.3f} ± {np.std(both, ddof=1):.3f}" in text
    recalls = [
        r["figures"]["ball"]["R@H<=2"]
        for r in log.records
        if r["key"].get("method") == "csq" and r["key"]["bits"] == 16
    ]
    recall = next(line for line in text.splitlines() if line.startswith("| csq | K/8 |"))
    assert recall.startswith(f"| csq | K/8 | {np.mean(recalls):.3f}")
    floats = {tuple(r["key"].values()): r["figures"]["mAP"] for r in log.records if r["key"].get("search") == "float"}
    gap = floats[(*key.values(), "float")] - floats[(*rival.values(), "float")]
    assert f"| csq | 1 | {gap:.3f} |" in text  # paired by the one seed that both have
    assert any(line.startswith(f"| csq | 1 | {gap:.3f} [") for line in text.splitlines())  # and paired by queries
    bare = hashing_tables.body(log.records, lambda _: None, collection)
    assert f"| csq | 1 | {gap:.3f} |" in "\n".join(bare)  # without average precisions
    hashing_tables.flat(log.records, tmp_path / "figures.csv")
    assert (tmp_path / "figures.csv").read_text().count("mAP_macro") == len(log.records) - 1


@pytest.mark.parametrize(("bits", "size"), [(16, 2), (512, 64), (0, 4608)])
def test_searches_are_timed_by_bits(bits, size, monkeypatch):
    monkeypatch.setattr(hashing, "GALLERY", 2_000)
    found = hashing.search_time(bits)
    assert 0 < found["p50_cpu_ms"] <= found["p95_cpu_ms"]
    assert found["bytes"] == size


def test_a_profiles_trunks_have_names_of_their_own():
    for name in ("quick", "full"):
        trunks = hashing.profile(name).trunks
        assert len({trunk.name for trunk in trunks}) == len(trunks)
        assert len({trunk.experiment.digest for trunk in trunks}) == len(trunks)
    assert Trunk(widths="xs", epochs=1).experiment.method.shape.side == 112


def test_the_committed_outliers_are_of_the_trunk_that_the_command_trains():
    said = json.loads((ood.OUT / "ood.json").read_text())
    assert said["trunk"] == ood.TRUNKS["quick"].name


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    known, foreign = rng.integers(0, 6, 30), rng.integers(2, 8, 20)
    pairs = [1.0 if f > k else 0.5 if f == k else 0.0 for f in foreign for k in known]
    assert ood.auroc(known, foreign) == pytest.approx(np.mean(pairs))


def test_shares_above_the_threshold_of_each_modality(collection):
    """Errors are 1 for known images and 5 for foreign ones; the content of modality b lies far from that of a."""
    rng = np.random.default_rng(0)
    large = stripes(512, 32, 0)
    known = replace(large, name="known", sources=np.where(large.groups % 2, "b", "a"))
    foreign = replace(large.where(np.arange(20)), name="foreign", classes=("blank", "text", "noise", "photo"))

    def looked(n, error, axis):
        content = np.eye(2, 6, dtype=np.float32)[axis] * 4 + rng.standard_normal((n, 6), np.float32) * 0.3
        noise = rng.random(n).astype(np.float32)
        return {"relative": error + noise, "squared": noise + 1, "content": content}

    inside = looked(512, 1, (known.groups % 2).astype(int))
    outside = looked(20, 5, np.zeros(20, int))
    rows = list(ood._rows(known, foreign, {"known": inside, "foreign": outside}))
    found = {(r["modality"], r["score"], r["rule"], r["kind"]): r for r in rows}
    usual = "mean + 3 sd"
    assert found["a", "relative error", usual, "blank"]["above"] == 1
    assert found["a", "relative error", usual, "blank"]["auroc"] == 1
    assert found["a", "relative error", usual, "known"]["above"] < 0.05
    assert found["a", "relative error", usual, "other: b"]["above"] < 0.05
    assert found["a", "kNN distance", usual, "other: b"]["above"] == 1
    assert found["a", "Mahalanobis", usual, "other: b"]["above"] == 1
    assert (ood.EVERYTHING, "relative error", usual, "other: b") not in found
    assert found[ood.EVERYTHING, "relative error", usual, "known"]["n"] == (known.split == "test").sum()
    values = inside["relative"][(known.sources == "a") & (known.split == "val")]
    assert found["a", "relative error", usual, "known"]["threshold"] == pytest.approx(
        values.mean() + 3 * values.std(ddof=1)
    )
    shares = [found["a", "squared error", f"mean + {m} sd", "known"]["above"] for m in (1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    text = "\n".join(ood._tables(rows))
    assert "**known** (false alarms)" in text
    assert "## a (calibrated on" in text
    kinds = [found["a", "Mahalanobis", "mean + 2 sd", kind]["above"] for kind in ("blank", "text", "noise", "photo")]
    alarms, others = (found["a", "Mahalanobis", "mean + 2 sd", kind]["above"] for kind in ("known", "other: b"))
    wanted = f"{alarms:.3f} / {np.mean(kinds):.2f} / {others:.2f}"
    swept = text.split("## a (")[1].split("All scores")[1]
    assert wanted in next(line for line in swept.splitlines() if line.startswith("| Mahalanobis"))


def test_the_committed_tables_of_outliers_are_those_of_the_committed_rows():
    rows = [json.loads(line) for line in (ood.OUT / "runs.jsonl").read_text().splitlines()]
    assert "\n".join([ood.INTRODUCTION, *ood._tables(rows)]) in (ood.OUT / "ood.md").read_text()
