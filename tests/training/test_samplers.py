import numpy as np
import pytest

from shared.errors import Invalid
from shared.training.samplers import ClassBalanced, Triplets

LABELS = np.repeat([0, 1, 2, 3], [40, 9, 6, 2])
GROUPS = np.arange(len(LABELS)) // 3


def batches(seed=0, classes=3, per_class=4, labels=LABELS, groups=GROUPS):
    return list(ClassBalanced(classes=classes, per_class=per_class).batches(labels, groups, seed))


def test_every_batch_holds_as_many_images_of_each_of_its_classes():
    made = batches()
    assert len(made) == len(LABELS) // 12
    for rows in made:
        counts = np.bincount(LABELS[rows], minlength=4)
        assert sorted(counts.tolist()) == [0, 4, 4, 4]


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    assert np.array_equal(batches(5), batches(5))
    assert not np.array_equal(batches(5), batches(6))


def test_an_image_comes_again_only_when_all_of_its_class_have_come():
    drawn = np.concatenate(batches(classes=4, per_class=2, labels=np.tile(LABELS, 1)))
    for label in (0, 1):
        mine = drawn[LABELS[drawn] == label]
        size = (label == LABELS).sum()
        assert len(set(mine[:size].tolist())) == min(len(mine), size)


def test_pairs_come_from_different_groups_while_there_are_any():
    drawn = np.concatenate(batches(classes=4, per_class=4))
    first_round = drawn[LABELS[drawn] == 0][: len(np.unique(GROUPS[LABELS == 0]))]
    assert len(first_round) > 8
    assert len(set(GROUPS[first_round].tolist())) == len(first_round)


def test_fewer_classes_than_asked_for_are_all_taken():
    (first, *_) = batches(classes=9, per_class=2)
    assert set(LABELS[first].tolist()) == {0, 1, 2, 3}


def test_a_single_class_is_refused():
    with pytest.raises(Invalid, match="two classes"):
        batches(labels=np.zeros(8, int), groups=np.arange(8))


def test_triplets_are_anchors_then_positives_then_negatives_from_all_images():
    seen, anchors = set(), []
    for seed in range(20):
        for rows in Triplets(batch=8).batches(LABELS, GROUPS, seed):
            anchor, near, far = np.split(rows, 3)
            assert (LABELS[anchor] == LABELS[near]).all()
            assert (LABELS[anchor] != LABELS[far]).all()
            assert (anchor != near).all()
            seen |= {*near.tolist(), *far.tolist()}
            anchors += anchor.tolist()
    assert len(LABELS) % 8 == 1  # the last batch would hold a single anchor
    assert len(anchors) == 20 * (len(LABELS) - 1)
    assert set(anchors) == set(range(len(LABELS)))
    assert seen == set(range(len(LABELS)))


def test_triplets_follow_their_seed_and_a_lone_image_is_its_own_positive():
    labels, groups = np.array([0, 0, 1]), np.zeros(3, np.int64)
    drawn = [[rows.tolist() for rows in Triplets(batch=2).batches(labels, groups, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert [len(rows) for rows in drawn[0]] == [6]
    for rows in Triplets(batch=8).batches(labels, groups, 0):
        anchor, near, _ = np.split(rows, 3)
        assert near[anchor == 2].tolist() == [2]
    with pytest.raises(Invalid):
        next(Triplets(batch=2).batches(np.zeros(3, np.int64), groups, 0))
