"""Regions drawn in the VGG Image Annotator (VIA), as CDD-CESM publishes them: all its shapes, and their mask.

Source: VIA 2 export, columns filename ... region_shape_attributes; shapes polygon, polyline, ellipse, circle, point,
rect. A third of CDD-CESM's regions are not polygons.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shared.datasets.tables import read_csv

POINT_RADIUS = 25.0  #: pixels: the disc that a point stands for in the authors' code
MAX_POINTS = 100_000

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Region:
    """One drawn region in pixels of its image; (x, y), y downwards."""

    shape: str  #: polygon, polyline, rect, ellipse, circle or point
    points: Points  #: the corners, or the centre of an ellipse, circle or point
    radii: tuple[float, float] = (0.0, 0.0)  #: of an ellipse or circle, before rotation
    theta: float = 0.0  #: radians, clockwise on the screen


def read_regions(path: Path, warnings: Counter[str]) -> Mapping[str, tuple[Region, ...]]:
    """Return the regions by image name without extension; rows without a region (`{}`) are skipped.

    A region that cannot be parsed is counted and left out.

    Raises: `Invalid` if the file is not such a table.
    """
    found: dict[str, list[Region]] = {}
    for line in read_csv(path, ("filename", "regionshapeattributes")):
        try:
            region = parse_region(json.loads(line["regionshapeattributes"] or "{}"))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            warnings["region-not-understood"] += 1
            continue
        if region is not None:
            name = re.sub(r"\s*\.\w+$", "", line["filename"])
            found.setdefault(name, []).append(region)
    return {name: tuple(regions) for name, regions in found.items()}


def parse_region(said: Mapping[str, object]) -> Region | None:
    """Return the region; None if nothing is drawn.

    Raises: `ValueError`, `KeyError` or `TypeError` for an invalid or unknown shape.
    """
    if not said:
        return None
    shape = str(said["name"])
    if shape in {"polygon", "polyline"}:
        xs, ys = said["all_points_x"], said["all_points_y"]
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) > MAX_POINTS:
            raise ValueError(f"points must be lists of at most {MAX_POINTS}")
        return Region(shape, tuple((_number(x), _number(y)) for x, y in zip(xs, ys, strict=True)))
    if shape == "rect":
        x, y, width, height = (_number(said[name]) for name in ("x", "y", "width", "height"))
        return Region(shape, ((x, y), (x + width, y), (x + width, y + height), (x, y + height)))
    centre = ((_number(said["cx"]), _number(said["cy"])),)
    if shape == "ellipse":
        return Region(shape, centre, (_number(said["rx"]), _number(said["ry"])), _number(said.get("theta", 0)))
    if shape == "circle":
        return Region(shape, centre, (_number(said["r"]),) * 2)
    if shape == "point":
        return Region(shape, centre)
    raise ValueError("an unknown shape")


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("coordinates must be finite numbers")
    return float(value)


def mask(regions: Iterable[Region], rows: int, cols: int) -> NDArray[np.bool_]:
    """Return the (rows, cols) union of the regions. Polylines are closed; a point is a disc of POINT_RADIUS."""
    picture = Image.new("1", (cols, rows))
    draw = ImageDraw.Draw(picture)
    for region in regions:
        corners = _outline(region)
        if len(corners) > 2:
            draw.polygon(corners, fill=1, outline=1)
        elif corners:
            draw.line(corners, fill=1)
    return np.asarray(picture, bool)


def _outline(region: Region) -> list[tuple[float, float]]:
    if region.shape not in {"ellipse", "circle", "point"}:
        return list(region.points)
    rx, ry = region.radii if region.shape != "point" else (POINT_RADIUS, POINT_RADIUS)
    ((cx, cy),) = region.points
    turn, cos, sin = np.linspace(0, 2 * np.pi, 180, endpoint=False), math.cos(region.theta), math.sin(region.theta)
    x, y = rx * np.cos(turn), ry * np.sin(turn)
    return list(zip((cx + x * cos - y * sin).tolist(), (cy + x * sin + y * cos).tolist(), strict=True))
