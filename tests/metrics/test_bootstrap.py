import numpy as np
import pytest

from shared.errors import Invalid
from shared.metrics.bootstrap import compare, holm, interval, intervals, paired_effect


class TestInterval:
    def test_it_is_the_one_of_a_plain_loop_over_patients(self):
        rng = np.random.default_rng(0)
        clusters, values = rng.integers(12, size=80), rng.random(80)
        found = interval(values, clusters, resamples=4000)
        patients = np.unique(clusters)
        means = []
        for _ in range(4000):
            drawn = rng.choice(patients, size=len(patients))
            means.append(np.concatenate([values[clusters == p] for p in drawn]).mean())
        assert found.mean == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)

    def test_copies_of_the_same_patients_images_do_not_make_it_narrower(self):
        rng = np.random.default_rng(1)
        values, clusters = rng.random(40), np.arange(40)
        once = interval(values, clusters)
        tenfold = interval(np.repeat(values, 10), np.repeat(clusters, 10))
        by_image = interval(np.repeat(values, 10), np.arange(400))
        assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low)
        assert by_image.high - by_image.low < 0.5 * (once.high - once.low)

    def test_ninety_five_of_a_hundred_hold_the_truth(self):
        rng = np.random.default_rng(2)
        clusters = np.repeat(np.arange(60), 5)
        held = 0
        for seed in range(100):
            values = rng.normal(size=60)[clusters] + rng.normal(size=300)
            found = interval(values, clusters, resamples=1000, seed=seed)
            held += found.low <= 0 <= found.high
        assert 86 <= held <= 99

    def test_macro_weighs_classes_and_survives_draws_without_one(self):
        values, labels = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1])
        found = interval(values, np.arange(4), labels=labels)
        assert found.mean == 0.5
        assert found.high == 1.0

    def test_the_same_seed_gives_the_same_interval(self):
        values = np.random.default_rng(3).random(30)
        assert interval(values, np.arange(30), seed=1) == interval(values, np.arange(30), seed=1)
        assert interval(values, np.arange(30), seed=1) != interval(values, np.arange(30), seed=2)

    def test_figures_of_the_same_queries_share_their_draws(self):
        rng = np.random.default_rng(7)
        values = {name: rng.random(50) for name in "ab"}
        clusters, labels = rng.integers(20, size=50), rng.integers(3, size=50)
        together = intervals(values, clusters, labels=labels)
        assert {name: interval(v, clusters, labels=labels) for name, v in values.items()} == together

    def test_figures_that_lack_different_queries_have_no_common_draws(self):
        with pytest.raises(Invalid):
            intervals({"a": np.array([1.0, np.nan]), "b": np.array([1.0, 1.0])}, np.arange(2))

    def test_queries_that_cannot_be_answered_are_left_out(self):
        assert interval(np.array([1.0, np.nan, 1.0]), np.arange(3)).mean == 1.0

    @pytest.mark.parametrize(("values", "resamples"), [([np.nan, np.nan], 1000), ([1.0, 2.0], 999)])
    def test_nothing_to_draw_and_too_few_draws_are_refused(self, values, resamples):
        with pytest.raises(Invalid):
            interval(np.array(values), np.arange(2), resamples=resamples)

    def test_blocks_of_draws_do_not_change_the_mean(self, monkeypatch):
        values = np.random.default_rng(4).random(50)
        whole = interval(values, np.arange(50))
        monkeypatch.setattr("shared.metrics.bootstrap._BLOCK", 700)
        parts = interval(values, np.arange(50))
        assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)


class TestComparison:
    def test_a_difference_of_all_patients_is_found(self):
        rng = np.random.default_rng(5)
        base = rng.random(200)
        found = compare(base + 0.1 + rng.normal(size=200) * 0.1, base, np.arange(200) // 4)
        assert found.p < 0.01
        assert found.difference.low > 0
        assert found.effect > 1

    def test_without_a_difference_p_values_are_uniform(self):
        rng = np.random.default_rng(6)
        clusters = np.repeat(np.arange(30), 3)
        p = [
            compare(rng.normal(size=30)[clusters], rng.normal(size=30)[clusters], clusters, resamples=1000, seed=s).p
            for s in range(100)
        ]
        assert np.mean(np.array(p) < 0.05) < 0.12
        assert 0.35 < np.mean(p) < 0.65

    def test_it_flips_patients_as_a_plain_enumeration_does(self):
        differences = np.array([0.3, 0.1, 0.4, -0.1, 0.2, 0.5, 0.6])
        clusters = np.array([0, 0, 1, 2, 3, 4, 5])
        sums = np.array([0.4, 0.4, -0.1, 0.2, 0.5, 0.6])
        signs = np.array([[1 - 2 * (i >> b & 1) for b in range(6)] for i in range(64)])
        exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12)
        found = compare(differences, np.zeros(7), clusters, resamples=20_000)
        assert found.p == pytest.approx(exact, abs=0.01)

    def test_p_is_never_zero(self):
        found = compare(np.ones(40) + np.arange(40) * 1e-3, np.zeros(40), np.arange(40), resamples=1000)
        assert found.p == pytest.approx(1 / 1001)

    def test_systems_that_answered_different_queries_cannot_be_compared(self):
        with pytest.raises(Invalid):
            compare(np.array([1.0, np.nan]), np.array([1.0, 1.0]), np.arange(2))

    def test_paired_effect_is_in_deviations_of_the_patients_means(self):
        assert paired_effect(np.array([1.0, 3.0, 2.0]), np.array([0, 0, 1])) == pytest.approx(np.inf)
        assert paired_effect(np.array([1.0, 3.0]), np.array([0, 1])) == pytest.approx(2 / np.sqrt(2))
        assert paired_effect(np.zeros(3), np.arange(3)) == 0


def test_holm_against_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
