"""The evaluation protocols by name: each defines queries, gallery and excluded items.

    paper1-compat               all images query all images, themselves included (arXiv 2411.01473): leaks by design
    paper1-compat-without-self  the same without the query itself; its patient's other images stay: leaks by design
    paper2-v1-compat            split by image 56/14/30; the gallery is the part that selects models (arXiv 2508.04790
                                v1): leaks by design
    patient                     the main protocol: queries and gallery have different patients
    split                       the collection's own split: gallery = train and val, queries = test. The only valid
                                protocol for a model that was trained on this collection
    lopo                        leave one patient out: all images query the images of all other patients

Each protocol can compare two kinds of images: patient:DM_low_energy:CESM_subtracted queries with images of the first
kind and searches those of the second. A kind is a value of a column, such as a modality, or the end of a source.

Only a protocol with `compat` in its name may search a query's own patient, or the part that selects models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.datasets.collection import Collection
from shared.errors import Invalid, NotFound

Rows = NDArray[np.int64]

SEEDS = (0, 1, 2, 3, 4)
FOLDS = 3  #: of the patient protocol: a third are queries, two thirds the gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """The facts about `n` images; row i of every array belongs to image i."""

    name: str
    labels: Rows  #: (n,) index into `classes`
    classes: tuple[str, ...]
    groups: Rows  #: (n,) the patient
    split: NDArray[np.str_] | None = None  #: (n,) train, val or test
    grades: Rows | None = None  #: (classes,) ordinal value of each class, such as BI-RADS 1 to 6
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)  #: (n,) each: modality, view, ...
    note: str = ""  #: remarks for the reader: licence, unknown patients

    def __post_init__(self) -> None:
        arrays = [self.labels, self.groups, *self.columns.values(), *([] if self.split is None else [self.split])]
        if not len(self.labels) or any(len(array) != len(self.labels) for array in arrays):
            raise Invalid("labels, groups, split and columns need one entry for each image")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise Invalid("every label must be an index into the classes")
        if self.grades is not None and len(self.grades) != len(self.classes):
            raise Invalid("give grades for all classes or for none")

    def __len__(self) -> int:
        return len(self.labels)

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """Return (n,) whether a column of the image has this value, whole or after its last slash."""
        told = np.zeros(len(self), np.bool_)
        for values in self.columns.values():
            told |= [kind in (value, value.rpartition("/")[2]) for value in values.tolist()]
        return told

    @classmethod
    def of(cls, data: Collection, grades: Rows | None = None) -> Self:
        return cls(
            name=data.name,
            labels=data.labels,
            classes=data.classes,
            groups=data.groups,
            split=data.split,
            grades=grades,
            columns={"source": data.sources} | ({} if data.views is None else {"view": data.views}),
            note=f"licence of the images: {data.licence}{'; ' * bool(data.note)}{data.note}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One split into queries and gallery. All arrays except `keys` are row indices of the subjects."""

    seed: int
    queries: Rows
    gallery: Rows
    train: Rows = field(default_factory=lambda: np.empty(0, np.int64))  #: what may be fitted on: no queries
    selects: Rows = field(default_factory=lambda: np.empty(0, np.int64))  #: the part that selects models
    keys: Rows | None = None  #: (n,) items with the query's own key are excluded


@dataclass(frozen=True, slots=True)
class Protocol:
    name: str
    arrange: Callable[[Subjects, Sequence[int]], list[Fold]]

    @property
    def leaks(self) -> bool:
        return "compat" in self.name

    def folds(self, subjects: Subjects, seeds: Sequence[int] = SEEDS) -> list[Fold]:
        """Return the folds: one for each seed if the protocol is random, else one.

        Raises:
            Invalid: a protocol without `compat` in its name leaks (see `check`), or the subjects do not allow this
                protocol.
        """
        folds = self.arrange(subjects, seeds)
        for fold in folds:
            if not len(fold.queries) or not len(fold.gallery):
                raise Invalid(f"{self.name}: there are no queries, or there is no gallery")
            if not self.leaks:
                check(fold, subjects.groups)
        return folds


def check(fold: Fold, groups: Rows) -> None:
    """Check for leaks between queries, gallery and the fitted part.

    Raises:
        Invalid: a query's own patient is in its gallery or in the fitted part, or the gallery selects models.
    """
    keys = np.zeros(len(groups), np.int64) if fold.keys is None else fold.keys
    held: dict[int, set[int]] = {}
    for row in fold.gallery:
        held.setdefault(int(groups[row]), set()).add(int(keys[row]))
    met = 0
    for row in fold.queries:
        hidden = set() if fold.keys is None else {int(keys[row])}
        met += bool(held.get(int(groups[row]), set()) - hidden)
    if met:
        raise Invalid(f"leak: {met} of {len(fold.queries)} queries have their own patient in the gallery")
    if np.isin(groups[fold.train], groups[fold.queries]).any():
        raise Invalid("leak: patients of the queries are in the part that is used for fitting")
    if len(fold.selects) and np.isin(fold.gallery, fold.selects).all():
        raise Invalid("leak: the gallery is the part that selects models")


def protocol(name: str) -> Protocol:
    """Return the protocol of this name. Raises: `NotFound`, with the known names, for any other."""
    match name.split(":"):
        case [base] if base in PROTOCOLS:
            return Protocol(name, PROTOCOLS[base])
        case [base, asked, searched] if base in PROTOCOLS:
            return Protocol(name, partial(_between, PROTOCOLS[base], asked, searched))
    raise NotFound(f"there is no such protocol; there are: {', '.join(PROTOCOLS)}, and each with :QUERIES:GALLERY")


def _between(
    arrange: Callable[[Subjects, Sequence[int]], list[Fold]],
    asked: str,
    searched: str,
    subjects: Subjects,
    seeds: Sequence[int],
) -> list[Fold]:
    """Return the folds with queries of the kind `asked` and a gallery of the kind `searched`."""
    asks, answers = subjects.of_kind(asked), subjects.of_kind(searched)
    return [
        replace(fold, queries=fold.queries[asks[fold.queries]], gallery=fold.gallery[answers[fold.gallery]])
        for fold in arrange(subjects, seeds)
    ]


def _everything(subjects: Subjects, _: Sequence[int]) -> list[Fold]:
    rows = np.arange(len(subjects))
    return [Fold(seed=0, queries=rows, gallery=rows)]


def _without_self(subjects: Subjects, _: Sequence[int]) -> list[Fold]:
    rows = np.arange(len(subjects))
    return [Fold(seed=0, queries=rows, gallery=rows, keys=rows)]


def _lopo(subjects: Subjects, _: Sequence[int]) -> list[Fold]:
    rows = np.arange(len(subjects))
    return [Fold(seed=0, queries=rows, gallery=rows, keys=subjects.groups)]


def _by_image(subjects: Subjects, _: Sequence[int]) -> list[Fold]:
    """Split by class and image with seed 42: 30 % queries, then 20 % of the rest as gallery (602 and 281 of 2,006)."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(subjects.labels)
    # a class too small for all three parts is stratified together with the most common class
    strata = np.where(counts[subjects.labels] < 4, counts.argmax(), subjects.labels)

    def parted(rows: Rows, share: float) -> tuple[Rows, Rows]:
        try:
            kept, taken = train_test_split(rows, test_size=share, random_state=42, stratify=strata[rows])
        except ValueError:  # fewer images than classes
            raise Invalid("the published split by image needs more images of each class") from None
        return np.sort(kept), np.sort(taken)

    rest, queries = parted(np.arange(len(subjects)), 0.3)
    train, gallery = parted(rest, 0.2)
    return [Fold(seed=42, queries=queries, gallery=gallery, train=train, selects=gallery)]


def _by_patient(subjects: Subjects, seeds: Sequence[int]) -> list[Fold]:
    """Return a fold for each seed: a third of the patients are queries; classes are about even on both sides."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    if len(np.unique(subjects.groups)) < FOLDS:
        raise Invalid(f"a split by patient needs at least {FOLDS} patients")
    if np.bincount(subjects.labels).max() < FOLDS:
        raise Invalid(f"a split by patient needs a class of at least {FOLDS} images")
    folds = []
    for seed in seeds:
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # a class with fewer patients than folds is absent from a part: its queries are counted as unanswerable
            warnings.simplefilter("ignore", UserWarning)
            train, queries = next(splitter.split(subjects.labels, subjects.labels, subjects.groups))
        folds.append(Fold(seed=seed, queries=queries, gallery=train, train=train))
    return folds


def _as_given(subjects: Subjects, _: Sequence[int]) -> list[Fold]:
    if subjects.split is None:
        raise Invalid("the collection has no split of its own: use the protocol patient or lopo")
    part = {name: np.flatnonzero(subjects.split == name) for name in ("train", "val", "test")}
    gallery = np.flatnonzero(np.isin(subjects.split, ["train", "val"]))
    return [Fold(seed=0, queries=part["test"], gallery=gallery, train=part["train"], selects=part["val"])]


PROTOCOLS: Mapping[str, Callable[[Subjects, Sequence[int]], list[Fold]]] = {
    "paper1-compat": _everything,
    "paper1-compat-without-self": _without_self,
    "paper2-v1-compat": _by_image,
    "patient": _by_patient,
    "split": _as_given,
    "lopo": _lopo,
}
FITTED = ("paper2-v1-compat", "patient", "split")  #: the protocols with a training part
