"""The published sets with an importer. A module of its own, so that the command line can list them without imports."""

from typing import Literal

DatasetName = Literal["cdd-cesm", "vindr-mammo", "inbreast", "cbis-ddsm"]
