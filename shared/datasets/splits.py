"""Parts of a set, for a set without them: whole groups, about evenly from every class, the same ones each time."""

import numpy as np
from numpy.typing import NDArray

TEST, VAL = 0.2, 0.15  #: shares of the images, for a set without such a part; VAL is a share of the images outside test
SPLIT_SEED = 20


def complete(split: NDArray[np.str_], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.str_]:
    """Assign images without a split to train, then hold out a test and a validation part if the set has none."""
    split = np.where(split == "", "train", split)
    if not (split == "test").any():
        split[hold_out(split == "train", labels, groups, TEST)] = "test"
    if not (split == "val").any() and (split == "train").any():
        split[hold_out(split == "train", labels, groups, VAL)] = "val"
    return split


def hold_out(
    pool: NDArray[np.bool_], labels: NDArray[np.int64], groups: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Return the mask of about `share` of each class in the pool: whole groups, the same ones each time.

    A group counts for the rarest class among its images. All arrays and the result are (n,).
    """
    rarity = np.argsort(np.argsort(np.bincount(labels[pool]), kind="stable"))
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(pool):
        members.setdefault(int(groups[row]), []).append(int(row))
    of_class: dict[int, list[int]] = {}
    for group, rows in members.items():
        of_class.setdefault(int(min(labels[rows], key=lambda label: rarity[label])), []).append(group)
    taken = np.zeros(len(pool), bool)
    for label, found in sorted(of_class.items()):
        order = np.random.default_rng([SPLIT_SEED, label]).permutation(sorted(found))
        sizes = np.array([len(members[int(group)]) for group in order])
        enough = int(np.argmin(np.abs(np.cumsum(sizes) - share * sizes.sum()))) + 1
        for group in order[: min(enough, len(order) - 1)]:  # at least one group of each class stays in the pool
            taken[members[int(group)]] = True
    return taken
