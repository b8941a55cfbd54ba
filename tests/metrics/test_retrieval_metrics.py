import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Invalid
from shared.metrics import retrieval
from shared.metrics.ranking import Side, chunks, hamming, rank, ties
from shared.metrics.retrieval import measure
from tests.metrics.lists import as_ranking, average_precision, discounted, on_a_line


def value(hits, name, total=None, k=5):
    return measure(*on_a_line(hits, total), metric="l2", ks=(k,)).values[name][0]


class TestAgainstPlainLoops:
    @given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 15), st.integers(0, 4))
    def test_every_figure_of_a_list_without_ties(self, hits, k, beyond):
        hits = [int(h) for h in hits]
        relevant = sum(hits) + beyond
        if not relevant:
            return
        figures = measure(*on_a_line(hits, relevant), metric="l2", ks=(k,)).values
        full = hits + [1] * beyond
        top = (full + [0] * k)[:k]
        assert figures[f"P@{k}"][0] == pytest.approx(sum(top) / k)
        assert figures[f"P_adj@{k}"][0] == pytest.approx(sum(top) / min(k, relevant))
        assert figures[f"R@{k}"][0] == pytest.approx(sum(top) / relevant)
        assert figures[f"nDCG@{k}"][0] == pytest.approx(discounted(top) / discounted([1] * min(k, relevant)))
        own_ideal = discounted(sorted(top, reverse=True))
        assert figures[f"nDCG_retrieved_ideal@{k}"][0] == pytest.approx(discounted(top) / own_ideal if own_ideal else 0)
        assert figures["mAP"][0] == pytest.approx(average_precision(full))
        cut = sum(sum(top[: i + 1]) / (i + 1) for i in range(k) if top[i])
        assert figures[f"mAP@{k}"][0] == pytest.approx(cut / min(k, relevant))
        assert figures["MRR"][0] == pytest.approx(1 / (full.index(1) + 1))
        assert figures[f"hit@{k}"][0] == (1 in top)

    def test_the_rankings_of_all_metrics_are_those_of_a_full_sort(self):
        rng = np.random.default_rng(0)
        left, right = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
        labels = np.zeros(40, np.int64)
        queries, gallery = Side(vectors=left, labels=labels[:7]), Side(vectors=right, labels=labels)
        cosine = left @ right.T / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
        euclid = np.linalg.norm(left[:, None] - right, axis=2)
        for metric, expected in (("cosine", -cosine), ("l2", euclid)):
            ((_, ranking),) = chunks(queries, gallery, metric)
            assert np.array_equal(ranking.order, np.argsort(expected, axis=1))

    def test_hamming_counts_the_bits_that_differ(self):
        rng = np.random.default_rng(1)
        bits = rng.integers(2, size=(2, 30, 72)).astype(np.uint8)  # 9 bytes: not a whole number of words
        found = hamming(np.packbits(bits[0], axis=1), np.packbits(bits[1], axis=1))
        assert np.array_equal(found, (bits[0][:, None] != bits[1]).sum(axis=2))

    def test_graded_gain_prefers_the_neighbouring_category(self):
        queries = Side(vectors=np.zeros((1, 1), np.float32), labels=np.array([3]))
        gallery = Side(vectors=np.array([[1], [2], [3]], np.float32), labels=np.array([0, 4, 3]))
        grades = np.array([1, 2, 3, 4, 5])
        figures = measure(queries, gallery, metric="l2", ks=(2, 3), grades=grades).values
        gains = [1 - 3 / 4, 1 - 1 / 4, 1.0]
        assert figures["graded_nDCG@3"][0] == pytest.approx(discounted(gains) / discounted([1, 0.75, 0.25]))
        assert figures["graded_nDCG@2"][0] == pytest.approx(discounted(gains[:2]) / discounted([1, 0.75]))
        assert figures["grade_difference@2"][0] == pytest.approx((3 + 1) / 2)


class TestTies:
    def test_average_precision_is_the_mean_over_twenty_thousand_shuffles(self):
        rng = np.random.default_rng(2)
        for _ in range(3):
            distances = np.sort(rng.integers(0, 4, size=14))
            hits = rng.integers(2, size=14).astype(bool)
            hits[0] = True
            ranking = as_ranking(distances)
            exact = retrieval.average_precision(hits[None], ties(ranking))[0]
            orders = np.lexsort((rng.random((20_000, 14)), np.broadcast_to(distances, (20_000, 14))), axis=1)
            shuffled = hits[orders]
            single = retrieval.average_precision(shuffled, None)
            assert single.max() - single.min() > 0.05  # the order of ties affects a single list
            assert abs(exact - single.mean()) < 3 * single.std() / math.sqrt(20_000) + 1e-9

    def test_all_figures_of_codes_are_their_means_over_shuffled_galleries(self):
        rng = np.random.default_rng(3)
        labels = rng.integers(3, size=30)
        codes = np.packbits(rng.integers(2, size=(30, 8)) & (labels[:, None] > 0), axis=1)
        queries = Side(vectors=codes[:4], labels=labels[:4])
        exact = measure(queries, Side(vectors=codes, labels=labels), metric="hamming", ks=(1, 5))
        names = ["mAP", "mAP@5", "MRR", "hit@1", "hit@5", "P@5", "R@5", "nDCG@5"]
        sums = dict.fromkeys(names, 0.0)
        rounds = 3000
        distances = hamming(codes[:4], codes)
        for _ in range(rounds):
            order = np.argsort(distances + rng.random(30) * 0.5, axis=1)
            hits = labels[order] == labels[:4, None]
            place = hits.argmax(axis=1)
            top, relevant = hits[:, :5], hits.sum(axis=1)
            precision = hits * np.cumsum(hits, axis=1) / np.arange(1, 31)
            sums["mAP"] += precision.sum(axis=1) / relevant
            sums["mAP@5"] += precision[:, :5].sum(axis=1) / np.minimum(relevant, 5)
            sums["MRR"] += 1 / (place + 1)
            sums["hit@1"] += hits[:, 0]
            sums["hit@5"] += top.any(axis=1)
            sums["P@5"] += top.mean(axis=1)
            sums["R@5"] += top.sum(axis=1) / relevant
            sums["nDCG@5"] += top @ (1 / np.log2(np.arange(2, 7))) / [discounted([1] * min(5, r)) for r in relevant]
        for name in names:
            assert exact.values[name] == pytest.approx(sums[name] / rounds, abs=0.035), name

    @given(st.permutations(range(12)))
    @settings(max_examples=30)
    def test_the_order_of_the_gallery_changes_no_figure(self, order):
        labels = np.array([0, 1, 2] * 4)
        codes = np.array([0, 0, 1, 1, 3, 3, 0, 7, 7, 1, 3, 0], np.uint8)[:, None]
        queries = Side(vectors=codes[:3], labels=labels[:3])
        plain = measure(queries, Side(vectors=codes, labels=labels), metric="hamming", ks=(1, 3))
        moved = measure(
            queries, Side(vectors=codes[list(order)], labels=labels[list(order)]), metric="hamming", ks=(1, 3)
        )
        for name, values in plain.values.items():
            if "ideal" in name:  # the papers' own ideal: the list as retrieved
                continue
            assert moved.values[name] == pytest.approx(values), name

    def test_one_bucket_of_everything_scores_what_chance_would(self):
        hits = np.array([[True, False, False, False]])
        tied = ties(as_ranking([5, 5, 5, 5]))
        assert retrieval.average_precision(hits, tied)[0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


class TestExclusion:
    def test_cutting_first_and_dropping_afterwards_is_another_and_worse_answer(self):
        """The released code of paper 2 searches k, drops the query's patient, and divides by what is left."""
        queries, gallery = on_a_line([1, 1, 0, 1, 1, 0])
        own = Side(vectors=queries.vectors, labels=queries.labels, keys=np.array([7]))
        keys = np.array([7, 7, 7, 1, 2, 3])  # the three nearest belong to the query's own patient
        figures = measure(own, Side(vectors=gallery.vectors, labels=gallery.labels, keys=keys), metric="l2", ks=(3,))
        order = np.argsort(np.abs(gallery.vectors[:, 0]))[:3]
        cut_first = [gallery.labels[i] for i in order if keys[i] != 7]
        assert cut_first == []  # no result is left
        assert figures.values["P@3"][0] == pytest.approx(2 / 3)
        assert figures.values["mAP"][0] == 1.0
        assert figures.relevant[0] == 2
        assert figures.length[0] == 3

    def test_a_short_list_is_recorded_and_still_divided_by_k(self):
        figures = measure(*on_a_line([1, 1]), metric="l2", ks=(5,))
        assert figures.values["P@5"][0] == pytest.approx(2 / 5)
        assert figures.length[0] == 2

    def test_a_query_without_a_relevant_item_is_counted_and_not_scored(self):
        vectors = np.array([[0.0], [1.0]], np.float32)
        queries = Side(vectors=vectors, labels=np.array([0, 2]))
        figures = measure(queries, Side(vectors=vectors, labels=np.array([0, 0])), metric="l2", ks=(1,))
        assert figures.unanswerable == 1
        assert all(np.isnan(values[1]) for values in figures.values.values())
        assert figures.micro("P@1") == figures.macro("P@1") == 1.0
        assert figures.per_class("P@1") == {0: 1.0}

    def test_excluded_items_count_as_no_ties_and_no_hits_in_a_hamming_ranking(self):
        codes = np.array([[0], [0], [255]], np.uint8)
        keys = np.array([1, 1, 2])
        queries = Side(vectors=codes[:1], labels=np.array([0]), keys=keys[:1])
        figures = measure(
            queries, Side(vectors=codes, labels=np.zeros(3, np.int64), keys=keys), metric="hamming", ks=(2,)
        )
        assert figures.relevant[0] == 1
        assert figures.values["P@2"][0] == 0.5
        assert figures.values["mAP"][0] == 1.0


class TestMeans:
    def test_micro_counts_queries_and_macro_counts_classes(self):
        vectors = np.array([[0.0], [0.1], [0.2], [9.0]], np.float32)
        labels = np.array([0, 0, 0, 1])
        gallery = Side(vectors=np.array([[0.0], [5.0]], np.float32), labels=np.array([0, 1]))
        figures = measure(Side(vectors=vectors, labels=labels), gallery, metric="l2", ks=(1,))
        wrong = measure(Side(vectors=vectors * 0, labels=labels), gallery, metric="l2", ks=(1,))
        assert figures.micro("P@1") == figures.macro("P@1") == 1.0
        assert wrong.micro("P@1") == 0.75
        assert wrong.macro("P@1") == 0.5

    def test_queries_in_chunks_score_as_queries_at_once(self, monkeypatch):
        rng = np.random.default_rng(4)
        labels = rng.integers(4, size=60)
        side = Side(vectors=rng.normal(size=(60, 6)), labels=labels, keys=np.arange(60) // 3)
        whole = measure(side, side)
        monkeypatch.setattr("shared.metrics.ranking.ELEMENTS", 60 * 7)
        parts = measure(side, side)
        for name, values in whole.values.items():
            assert np.allclose(parts.values[name], values, equal_nan=True), name
        assert np.array_equal(parts.clusters, whole.clusters)


class TestInvalid:
    @pytest.mark.parametrize(
        ("vectors", "metric"),
        [
            (np.array([[np.nan, 1.0]]), "cosine"),
            (np.array([[0.0, 0.0]]), "cosine"),
            (np.array([[1, 2]], np.uint8), "cosine"),
            (np.array([[1.0, 2.0]]), "hamming"),
            (np.empty((0, 2)), "l2"),
        ],
    )
    def test_what_cannot_be_ranked_is_refused(self, vectors, metric):
        good = Side(vectors=np.ones((1, 2), vectors.dtype), labels=np.zeros(1, np.int64))
        with pytest.raises(Invalid):
            measure(Side(vectors=vectors, labels=np.zeros(len(vectors), np.int64)), good, metric=metric)

    def test_keys_on_one_side_only_are_refused(self):
        side = Side(vectors=np.ones((2, 2)), labels=np.zeros(2, np.int64))
        with pytest.raises(Invalid):
            measure(Side(vectors=side.vectors, labels=side.labels, keys=np.arange(2)), side)

    def test_a_list_of_no_place_is_refused(self):
        side = Side(vectors=np.ones((2, 2)), labels=np.zeros(2, np.int64))
        with pytest.raises(Invalid):
            measure(side, side, ks=(0,))


def test_equal_distances_keep_the_order_of_the_gallery():
    ranking = rank(np.array([[1.0, 0.0, 1.0, 0.0]]))
    assert list(ranking.order[0]) == [1, 3, 0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "hamming"])
def test_five_thousand_by_five_thousand_takes_seconds_and_bounded_memory(metric):
    import tracemalloc

    rng = np.random.default_rng(5)
    vectors = rng.integers(256, size=(5_000, 8), dtype=np.uint8)
    if metric == "cosine":
        vectors = rng.normal(size=(5_000, 128)).astype(np.float32)
    side = Side(vectors=vectors, labels=rng.integers(16, size=5_000), keys=np.arange(5_000) // 4)
    started = time.process_time()
    tracemalloc.start()
    figures = measure(side, side, metric=metric)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert figures.micro("P@10") == pytest.approx(1 / 16, abs=0.005)
    assert peak < 300e6
    assert time.process_time() - started < 45  # 3 s on a quiet machine; processor time, because machines are shared
