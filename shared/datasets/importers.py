"""The importers of published sets, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from shared.datasets import cbis_ddsm, cdd_cesm, inbreast, vindr
from shared.datasets.record import Imported
from shared.errors import Invalid, NotFound, Unavailable

IMPORTERS: Mapping[str, Callable[[Path], Imported]] = {
    module.DATASET: module.read for module in (cdd_cesm, vindr, inbreast, cbis_ddsm)
}


def read(dataset: str, root: Path) -> Imported:
    """Read a download of a published set into the common form.

    Raises:
        NotFound: there is no importer of that name.
        Invalid: `root` is a file, or not that set; the message says what is missing.
        Unavailable: `root` does not exist, as when a share is not mounted.
    """
    if dataset not in IMPORTERS:
        raise NotFound(f"no data set of that name; there are {', '.join(IMPORTERS)}")
    if not root.exists():
        raise Unavailable("the folder of the data set cannot be reached")
    if not root.is_dir():
        raise Invalid("the data set must be a folder")
    return IMPORTERS[dataset](root)
