import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score

from shared.errors import Invalid
from shared.metrics import vote
from shared.metrics.baselines import lift, majority_figures, random_figures
from shared.metrics.ranking import Side
from shared.metrics.retrieval import measure


class TestVote:
    @pytest.mark.parametrize(
        ("labels", "winner"), [([2, 1, 1], 1), ([2, 1, 0], 2), ([0], 0), ([1, 2, 2], 2), ([2, 2, 1, 1], 2)]
    )
    def test_the_commonest_label_wins_and_the_nearest_breaks_ties(self, labels, winner):
        found = vote.votes(*on_a_line(labels), metric="l2", ks=(1, 10))
        assert (found[1][0], found[10][0]) == (labels[0], winner)

    def test_a_query_without_a_neighbour_has_no_vote(self):
        queries, gallery = on_a_line([1, 0], keys=[7, 7])
        assert vote.votes(queries, gallery, metric="l2", ks=(1,))[1][0] == -1

    def test_items_at_one_distance_vote_by_their_shares_in_whatever_order_they_are_stored(self):
        rng = np.random.default_rng(0)
        codes, labels = rng.integers(0, 4, size=(60, 1)).astype(np.uint8), rng.integers(0, 3, size=60)
        queries = Side(vectors=np.arange(4, dtype=np.uint8)[:, None], labels=np.zeros(4, int))
        found = []
        for order in (np.arange(60), np.argsort(labels), np.argsort(-labels)):
            gallery = Side(vectors=codes[order], labels=labels[order])
            found.append(vote.votes(queries, gallery, metric="hamming", ks=(1, 5, 20)))
        for k in (1, 5, 20):
            assert np.array_equal(found[0][k], found[1][k])
            assert np.array_equal(found[0][k], found[2][k])
        same = [np.bincount(labels[codes[:, 0] == code]).argmax() for code in range(4)]
        assert list(found[0][1]) == same

    def test_figures_equal_those_of_scikit_learn(self):
        rng = np.random.default_rng(0)
        truth = rng.integers(5, size=300)
        predicted = np.where(rng.random(300) < 0.5, truth, rng.integers(5, size=300))
        grades = np.arange(1, 6)
        found = vote.figures(truth, predicted, 5, grades)
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
        assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))
        halves = balanced_accuracy_score(grades[truth] >= 4, grades[predicted] >= 4)
        assert found["balanced_accuracy_456"] == pytest.approx(halves)

    def test_unequal_steps_between_grades_weigh_by_their_square(self):
        table = np.array([[1, 0, 1], [0, 2, 0], [0, 0, 2]])
        grades = np.array([1, 2, 5])
        seen, expected = 16, 0.0
        for i in range(3):
            for j in range(3):
                expected += table[i].sum() * table[:, j].sum() / 6 * (grades[i] - grades[j]) ** 2
        assert vote.quadratic_kappa(table, grades) == pytest.approx(1 - seen / expected)

    def test_queries_without_a_neighbour_have_no_vote(self):
        found = vote.figures(np.array([0, 1]), np.array([0, -1]), 2)
        assert found == {"balanced_accuracy": 1.0, "macro_f1": 1.0}

    def test_a_label_of_no_class_is_refused(self):
        with pytest.raises(Invalid):
            vote.confusion(np.array([3]), np.array([0]), 2)


def on_a_line(labels, keys=None):
    """A query at 0 and a gallery at 1, 2, 3 ..."""
    places = np.arange(len(labels) + 1, dtype=np.float32)[:, None]
    own = None if keys is None else np.array(keys)
    query = Side(vectors=places[:1], labels=np.array([0]), keys=None if own is None else own[:1])
    return query, Side(vectors=places[1:], labels=np.array(labels), keys=own)


def side(labels):
    return Side(vectors=np.zeros((len(labels), 1), np.uint8), labels=labels)


class TestBaselines:
    def test_chance_is_what_random_vectors_score(self):
        rng = np.random.default_rng(1)
        labels = rng.choice(4, size=1500, p=[0.6, 0.2, 0.15, 0.05])
        queries, gallery = labels[:700], labels[700:]
        found = measure(
            Side(vectors=rng.normal(size=(700, 200)), labels=queries),
            Side(vectors=rng.normal(size=(800, 200)), labels=gallery),
            ks=(100,),
        )
        shares = np.array([(gallery == c).mean() for c in range(4)])
        for micro, macro in ((shares[queries].mean(), shares.mean()), (found.micro("P@100"), found.macro("P@100"))):
            chance = random_figures(side(queries), side(gallery), ks=(100,))
            assert chance.micro("P@100") == pytest.approx(micro, abs=0.01)
            assert chance.macro("P@100") == pytest.approx(macro, abs=0.01)

    def test_every_figure_of_a_random_list_is_the_mean_over_drawn_ones(self):
        rng = np.random.default_rng(2)
        labels, keys = rng.choice(3, size=40, p=[0.6, 0.3, 0.1]), np.arange(40) // 4

        def side(vectors, rows=slice(None)):
            return Side(vectors=vectors[rows], labels=labels[rows], keys=keys[rows])

        exact = random_figures(side(np.zeros((40, 1))), side(np.zeros((40, 1))), ks=(5,))
        drawn = []
        for _ in range(400):
            vectors = rng.normal(size=(40, 60))
            drawn.append(measure(side(vectors), side(vectors), ks=(5,)))
        for name in ("mAP", "MRR", "hit@5", "P@5", "nDCG@5"):
            assert exact.micro(name) == pytest.approx(np.mean([d.micro(name) for d in drawn]), abs=0.01), name
        np.testing.assert_allclose(exact.values["P@5"], exact.relevant / exact.length)  # each query has its own gallery

    def test_the_papers_own_ndcg_has_no_expectation_here(self):
        side = Side(vectors=np.zeros((2, 1)), labels=np.array([0, 1]))
        assert not [name for name in random_figures(side, side).values if "ideal" in name]

    def test_the_majority_retriever_shows_its_class_to_everybody(self):
        queries = Side(vectors=np.zeros((3, 1)), labels=np.array([0, 0, 1]))
        gallery = Side(vectors=np.zeros((5, 1)), labels=np.array([1, 0, 0, 1, 0]))
        found = majority_figures(queries, gallery, ks=(3,))
        assert list(found.values["P@3"]) == [1, 1, 0]
        assert found.micro("P@3") == pytest.approx(2 / 3)
        assert found.macro("P@3") == 0.5

    def test_lift_is_a_ratio(self):
        assert lift(0.35, 0.25) == pytest.approx(1.4)
        assert np.isnan(lift(0.35, 0))
