import numpy as np
import pytest

from shared.errors import Invalid
from shared.metrics.hashing import ball, unique_codes, within_class_ndcg
from shared.metrics.ranking import Side
from tests.metrics.lists import discounted


def codes(*values):
    return np.array(values, np.uint8)[:, None]


def side(values, labels, keys=None):
    return Side(vectors=codes(*values), labels=np.array(labels), keys=None if keys is None else np.array(keys))


def test_ball_against_plain_counting():
    rng = np.random.default_rng(0)
    bits = rng.integers(2, size=(60, 16)).astype(np.uint8)
    labels, keys = rng.integers(3, size=60), np.arange(60) // 2
    whole = Side(vectors=np.packbits(bits, axis=1), labels=labels, keys=keys)
    found = ball(whole, whole, (0, 2, 5, 7))
    for q in range(60):
        others = [i for i in range(60) if keys[i] != keys[q]]
        relevant = [i for i in others if labels[i] == labels[q]]
        for radius in (0, 2, 5, 7):
            inside = [i for i in others if (bits[i] != bits[q]).sum() <= radius]
            hits = [i for i in inside if labels[i] == labels[q]]
            precision = len(hits) / len(inside) if inside else 0
            assert found.values[f"P@H<={radius}"][q] == pytest.approx(precision)
            assert found.values[f"R@H<={radius}"][q] == pytest.approx(len(hits) / len(relevant))
            assert found.values[f"empty@H<={radius}"][q] == (not inside)
            assert found.values[f"size@H<={radius}"][q] == len(inside)


def test_an_empty_ball_scores_zero_and_is_counted():
    found = ball(side([0], [1]), side([255, 254], [1, 1]), (2,))
    assert found.micro("P@H<=2") == 0
    assert found.micro("empty@H<=2") == 1


def test_a_query_without_a_relevant_item_is_not_scored():
    found = ball(side([0], [5]), side([0], [1]), (2,))
    assert np.isnan(found.values["P@H<=2"][0])
    assert found.unanswerable == 1


@pytest.mark.parametrize("radii", [(), (-1,)])
def test_a_radius_is_a_number_of_bits(radii):
    with pytest.raises(Invalid):
        ball(side([0], [1]), side([0], [1]), radii)


def test_unique_codes_counts_each_code_once():
    assert unique_codes(codes(1, 1, 2, 255)) == 3


class TestOrderWithinAClass:
    GALLERY = side([1, 3, 7, 0], [0, 0, 0, 1])
    QUERY = side([0], [0])
    #: similarity to the query's fingerprint; the item of the other class is most similar and does not count
    STRUCTURES = (np.array([[1.0, 0.0]], np.float32), np.array([[0.2, 0], [0.9, 0], [-0.5, 0], [1.0, 0]], np.float32))

    def test_gain_is_the_similarity_of_structure_and_never_negative(self):
        found = within_class_ndcg(self.QUERY, self.GALLERY, self.STRUCTURES)
        assert found[0] == pytest.approx(discounted([0.2, 0.9, 0]) / discounted([0.9, 0.2, 0]))

    def test_codes_that_follow_the_structure_score_one(self):
        found = within_class_ndcg(self.QUERY, side([3, 1, 7, 0], [0, 0, 0, 1]), self.STRUCTURES)
        assert found[0] == pytest.approx(1)

    def test_one_code_for_the_whole_class_scores_the_mean_of_all_orders(self):
        found = within_class_ndcg(self.QUERY, side([0, 0, 0, 0], [0, 0, 0, 1]), self.STRUCTURES)
        mean = (0.2 + 0.9) / 3
        assert found[0] == pytest.approx(discounted([mean] * 3) / discounted([0.9, 0.2]))

    def test_a_class_that_nowhere_resembles_the_query_is_unknown(self):
        found = within_class_ndcg(self.QUERY, side([1], [0]), (self.STRUCTURES[0], np.array([[-1.0, 0]], np.float32)))
        assert np.isnan(found[0])
