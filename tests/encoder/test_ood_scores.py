import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared.encoder.ood import (
    AXES,
    Calibration,
    Gaussian,
    Mahalanobis,
    calibrate,
    data_digest,
    held_out,
    knn_distance,
)
from shared.errors import Invalid

RNG = np.random.default_rng(0)
SCORES = np.random.default_rng(1).lognormal(0, 0.5, 400)


def test_the_papers_rule_is_mean_plus_three_deviations() -> None:
    found = calibrate(SCORES, "d")
    mean = sum(SCORES) / 400
    std = math.sqrt(sum((s - mean) ** 2 for s in SCORES) / 399)
    assert found.threshold == pytest.approx(mean + 3 * std)
    assert (found.rule, found.n, found.data_sha256) == ("mean+3sd", 400, "d")
    assert found.mean == pytest.approx(mean)


def test_the_quantile_rule_stops_one_in_a_hundred() -> None:
    found = calibrate(SCORES, "", "quantile")
    assert found.exceeded(SCORES).sum() == 4
    assert found.threshold == found.quantiles["0.99"]
    assert found.quantiles["0.5"] == pytest.approx(np.median(SCORES))


def test_the_log_rule_suits_skewed_scores_better_than_the_papers() -> None:
    fresh = np.random.default_rng(9).lognormal(0, 0.5, 200_000)
    alarms = {rule: calibrate(fresh, "", rule).exceeded(fresh).mean() for rule in ("mean+3sd", "log")}
    assert alarms["log"] == pytest.approx(0.00135, abs=3e-4)
    assert alarms["mean+3sd"] == pytest.approx(0.015, abs=3e-3)  # the value in acir.md for sigma 0.5


def test_a_score_at_the_threshold_passes_and_one_that_is_no_number_does_not() -> None:
    c = calibrate(SCORES, "")
    assert c.exceeded([c.threshold, c.threshold + 1e-6, math.nan, math.inf, 0]).tolist() == [
        False, True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "rule"),
    [
        (SCORES[:19], "mean+3sd"),
        (np.append(SCORES, np.nan), "mean+3sd"),
        (SCORES.reshape(20, 20), "quantile"),
        (np.append(SCORES, 0.0), "log"),
        (SCORES, "guess"),
    ],
    ids=["few", "nan", "shape", "zero", "rule"],
)
def test_scores_that_calibrate_nothing_are_refused(scores: np.ndarray, rule: str) -> None:
    with pytest.raises(Invalid):
        calibrate(scores, "", rule)


@given(st.lists(st.floats(0.01, 100), min_size=20, max_size=60), st.floats(0.1, 10))
@settings(max_examples=50)
def test_scaled_scores_have_a_scaled_threshold(scores: list[float], factor: float) -> None:
    for rule in ("mean+3sd", "quantile", "log"):
        one, two = calibrate(scores, "", rule), calibrate(np.asarray(scores) * factor, "", rule)
        assert two.threshold == pytest.approx(one.threshold * factor, rel=1e-6)


def test_a_calibration_survives_json() -> None:
    found = calibrate(SCORES, data_digest(["a"]))
    again = TypeAdapter(Calibration).validate_json(json.dumps(asdict(found)))
    assert again == found


def test_the_digest_knows_the_set_and_not_its_order() -> None:
    assert data_digest(["a", "b"]) == data_digest(["b", "a"]) != data_digest(["a", "c"])
    assert len(data_digest([])) == 64


def test_the_distance_to_the_kth_neighbour_is_that_of_plain_loops() -> None:
    known, features = RNG.standard_normal((30, 6), np.float32), RNG.standard_normal((7, 6), np.float32)
    for k in (1, 5, 30):
        wanted = []
        for row in features:
            u = row / np.linalg.norm(row)
            wanted.append(sorted(np.linalg.norm(u - v / np.linalg.norm(v)) for v in known)[k - 1])
        np.testing.assert_allclose(knn_distance(features, known, k), wanted, rtol=1e-4)
    np.testing.assert_allclose(knn_distance(features * 9, known), knn_distance(features, known), atol=1e-6)


def test_many_vectors_are_compared_in_blocks_with_the_same_result() -> None:
    known, features = RNG.standard_normal((50, 3), np.float32), RNG.standard_normal((2500, 3), np.float32)
    whole = knn_distance(features, known)
    np.testing.assert_allclose(whole[2000:2010], knn_distance(features[2000:2010], known), atol=1e-6)


def test_neighbours_that_are_not_there_and_vectors_without_direction_are_refused() -> None:
    rows = np.ones((3, 2), np.float32)
    with pytest.raises(Invalid):
        knn_distance(rows, rows, 4)
    with pytest.raises(Invalid):
        knn_distance(np.zeros((1, 2), np.float32), rows, 1)


def test_mahalanobis_is_the_distance_to_the_nearest_centre_under_the_shared_covariance() -> None:
    from sklearn.covariance import LedoitWolf

    classes = np.repeat([4, 7], 60)
    known = (RNG.standard_normal((120, 3)) * (1, 2, 3) + classes[:, None]).astype(np.float32)
    features = RNG.standard_normal((9, 3)).astype(np.float32) * 5
    means = [known[classes == c].astype(np.float64).mean(0) for c in (4, 7)]
    centred = np.concatenate([known[classes == c] - m for c, m in zip((4, 7), means, strict=True)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    wanted = [min((x - m) @ np.linalg.solve(covariance, x - m) for m in means) for x in features]
    np.testing.assert_allclose(Mahalanobis.fit(known, classes).scores(features), wanted, rtol=1e-4)


def test_strangers_are_farther_than_fresh_known_ones_even_with_few_images() -> None:
    known = RNG.standard_normal((40, 64), np.float32)  # fewer images than dimensions
    fresh, strange = RNG.standard_normal((50, 64), np.float32), 3 + RNG.standard_normal((50, 64), np.float32)
    fitted = Mahalanobis.fit(known)
    assert fitted.scores(strange).min() > np.quantile(fitted.scores(fresh), 0.95)
    assert np.isfinite(fitted.scores(known)).all()
    with pytest.raises(Invalid):
        Mahalanobis.fit(known[:1])


def directions(n: int, dim: int, seed: int, lean: float = 4.0) -> np.ndarray:
    """Vectors of random length that lean in one direction and vary most in a few others."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, dim)) * np.where(np.arange(dim) < 4, 1.5, 0.3)
    rows[:, 0] += lean
    return (rows * random.uniform(1, 5, (n, 1))).astype(np.float32)


@pytest.mark.parametrize(("n", "dim"), [(300, 40), (30, 40)], ids=["many", "fewer than dimensions"])
def test_a_gaussian_with_all_its_axes_is_the_shrunk_covariance_of_directions(n: int, dim: int) -> None:
    from sklearn.covariance import LedoitWolf

    known, features = directions(n, dim, 0), directions(9, dim, 1, lean=-4)
    rows, asked = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (known.astype(np.float64), features))
    mean = rows.mean(0)
    precision = LedoitWolf(assume_centered=True).fit(rows - mean).precision_
    wanted = [np.sqrt((one - mean) @ precision @ (one - mean)) for one in asked]
    np.testing.assert_allclose(Gaussian.fit(known).distances(features), wanted, rtol=1e-4)


def test_directions_beyond_the_leading_axes_share_their_variance() -> None:
    from sklearn.covariance import LedoitWolf

    known, features = directions(500, 200, 0), directions(9, 200, 1)
    rows, asked = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (known.astype(np.float64), features))
    mean = rows.mean(0)
    variances, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(rows - mean).covariance_)
    variances[:-AXES] = variances[:-AXES].mean()
    wanted = [np.sqrt((((one - mean) @ axes) ** 2 / variances).sum()) for one in asked]
    found = Gaussian.fit(known)
    assert found.axes.shape == (AXES, 200)
    np.testing.assert_allclose(found.distances(features), wanted, rtol=1e-4)


def test_a_gaussian_is_the_same_after_it_was_stored_and_in_whatever_company() -> None:
    known, features = directions(60, 96, 2), directions(50, 96, 3)
    found = Gaussian.fit(known)
    again = Gaussian.unpack(found.pack())
    assert again.distances(features) == found.distances(features)
    assert [found.distances([one])[0] for one in features] == found.distances(features)
    assert len(found.pack()) == 4 * (2 + 96 * (1 + len(found.axes)))
    assert Gaussian.fit(known).pack() == found.pack()


def test_distances_do_not_depend_on_length_and_are_no_number_without_a_direction() -> None:
    known = directions(60, 96, 2)
    found = Gaussian.fit(known)
    np.testing.assert_allclose(found.distances(known * 7), found.distances(known), rtol=1e-5)
    for odd in (known[0] * 0, known[0] * np.nan, known[0, :5]):
        assert math.isnan(found.distances([odd])[0])
    with pytest.raises(Invalid):
        Gaussian.fit(known * 0)
    with pytest.raises(Invalid):
        Gaussian.fit(known[:1])


def test_a_threshold_of_distances_that_were_held_out_does_not_stop_fresh_images() -> None:
    """Distances of known images from their own Gaussian are too small."""
    known, fresh, strange = directions(40, 256, 4), directions(400, 256, 5), directions(400, 256, 6, lean=-6)
    fitted = Gaussian.fit(known)
    own = calibrate(fitted.distances(known), "")
    apart = calibrate(held_out(known, range(len(known))), "")
    alarms = {name: one.exceeded(fitted.distances(fresh)).mean() for name, one in (("own", own), ("apart", apart))}
    assert alarms["own"] > 0.5
    assert alarms["apart"] < 0.03
    assert apart.exceeded(fitted.distances(strange)).all()


def test_a_patients_images_do_not_vouch_for_each_other() -> None:
    """Eight nearly equal images per patient: each would seem near if another of them were among the known."""
    patients = np.repeat(np.arange(10), 8)
    known = directions(10, 128, 7)[patients] + directions(80, 128, 8, lean=0) * 0.02
    known = known.astype(np.float32)
    together, alone = held_out(known, list(patients)), held_out(known, range(80))
    assert min(together) > 3 * max(alone)
    assert held_out(known, [0] * 79 + [1]) == alone  # one patient has nearly all, so single images are held out
    with pytest.raises(Invalid):
        held_out(known[:3], range(3))
