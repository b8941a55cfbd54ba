"""Development sets by name: grey, square, completely in memory, with each patient on one side of every split.

They are small sets beside the repository, generated phantoms, and downloads of published mammography sets.

The split of a set is kept, and a missing part is held out (`shared.datasets.splits`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shared.datasets.collection import Collection
from shared.datasets.importers import IMPORTERS
from shared.datasets.published import published
from shared.datasets.sets import SETS, Grey, phantoms
from shared.datasets.splits import complete
from shared.errors import Invalid, NotFound
from shared.imaging.recipe import Pad, Recipe


def load(name: str, root: Path, side: int | None = None, *, recipe: Recipe | None = None) -> Collection:
    """Return the named set, in the order of its files.

    Names: radiology_16class, radiology_mednist, cxr, mias (severity), mias-density, mias-lesions (squares around
    lesions), busi, ood, and phantoms:N:SEED (N generated studies; class = BI-RADS of the breast). Also the published
    sets cdd-cesm, vindr-mammo, inbreast and cbis-ddsm (see `published`), with the options NAME:KIND:folded:breast.
    cdd-cesm:DM_low_energy selects the low-energy images; `:folded` counts category 6 as 5; `:breast` gives each image
    the worst category of its breast. KIND may be empty: cdd-cesm::folded.

    Args:
        root: the folder of the development data, unused for phantoms. A published set is in a subfolder of its name,
            or is `root` itself.
        side: pixels; images are shrunk by area, enlarged bilinearly and padded to a square. None keeps their size.
        recipe: the recipe of the model that uses the images, in place of `side`. It decodes published sets; the other
            sets are pictures already, so only its size and padding apply.

    Raises:
        NotFound: the name is unknown, or the set's folder is not under `root`.
        Invalid: not a number of phantoms, images of several sizes and no `side`, or not a download of that set.
    """
    if recipe is None and side is not None:
        recipe = Recipe(size=side, pad="square")
    kind, _, rest = name.partition(":")
    if kind == "phantoms":
        table = phantoms(rest)
    elif kind in IMPORTERS:
        if recipe is None:
            raise Invalid("the images of a published set have several sizes: name a side")
        only, *words = rest.split(":")
        if sorted(words) not in ([], ["breast"], ["folded"], ["breast", "folded"]):
            raise NotFound("name a published set NAME or NAME:KIND:folded:breast; KIND may be empty")
        home = root / kind if (root / kind).is_dir() else root
        table = published(kind, home, recipe, only, folded="folded" in words, breast="breast" in words)
    elif name in SETS:
        folder, read = SETS[name]
        if not (root / folder).is_dir():
            raise NotFound(f"the development data has no folder {folder}")
        table = read(root / folder)
    else:
        raise NotFound(
            f"no development set of that name; there are {', '.join(SETS)}, phantoms:N:SEED, {', '.join(IMPORTERS)}"
        )
    groups = np.unique(np.asarray(table.groups), return_inverse=True)[1].astype(np.int64)
    labels = np.asarray(table.labels, np.int64)
    split = np.asarray(table.split, dtype="<U5")
    return Collection(
        name=name,
        images=_stack(table.images, *((None, "square") if recipe is None else (recipe.size, recipe.pad))),
        labels=labels,
        classes=table.classes,
        groups=groups,
        # that of a published set is complete, and the same for every option of its name
        split=split if kind in IMPORTERS else complete(split, labels, groups),
        sources=np.asarray(table.sources),
        licence=table.licence,
        views=None if table.views is None else np.asarray(table.views),
        note=table.note,
    )


def square(image: Grey, side: int | None = None, pad: Pad = "square") -> Grey:
    """Return a grey (side, side) image, with the shorter axis padded by zeros on both sides or stretched.

    The channels of a colour image are averaged with equal weights, because no colour is closer to an X-ray.
    """
    grey = image if image.ndim == 2 else np.rint(image.mean(axis=-1)).astype(np.uint8)
    rows, cols = grey.shape
    longer = max(rows, cols)
    if rows != cols and pad == "square":
        top, left = (longer - rows) // 2, (longer - cols) // 2
        grey = np.pad(grey, ((top, longer - rows - top), (left, longer - cols - left)))
    side = longer if side is None else side
    if grey.shape == (side, side):
        return grey
    how = Image.Resampling.BOX if side <= min(grey.shape) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(grey).resize((side, side), how))


def _stack(images: Sequence[Grey] | Grey, side: int | None, pad: Pad) -> Grey:
    if isinstance(images, np.ndarray) and images.shape[1:] == (side or images.shape[1],) * 2:
        return images
    squares = [square(image, side, pad) for image in images]
    if len({one.shape for one in squares}) > 1:
        raise Invalid("the images of this set have several sizes: name a side")
    return np.stack(squares)
