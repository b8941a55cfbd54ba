"""The published sets that there are importers for. It stands alone: the command line names them and loads none."""

from typing import Literal

DatasetName = Literal["cdd-cesm", "vindr-mammo", "inbreast", "cbis-ddsm"]
