"""Boxes that radiologists drew: their tables, in either of two layouts, and how heat maps agree with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from pneumoscope.data.manifest import Record, parse_boxes
from pneumoscope.data.tables import parse_text, read_rows
from pneumoscope.domain import Explanation
from pneumoscope.errors import DataError
from pneumoscope.evaluation.scores import BoolArray

__all__ = [
    "IOU_AT",
    "TOLERANCE",
    "Box",
    "inside_boxes",
    "match_boxes",
    "measure_boxes",
    "point_of",
    "points_at",
    "read_boxes",
]

TOLERANCE = 15 / 224
"""Distance from a box that still counts as inside, as a share of the image's shorter side."""

IOU_AT = 0.5
"""Share of a map's maximum above which a place counts, for the overlap with boxes."""

_GRID = 224  # pixels on the shorter side, for areas
_SIDES = ("x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the original image.

    Parameters
    ----------
    x, y : float
        Left and upper edge.
    width, height : float
        Greater than 0.
    """

    x: float
    y: float
    width: float
    height: float


def read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    """Read a table of boxes.

    The layout of the RSNA Pneumonia Detection Challenge (2018) has the columns
    ``patientId,x,y,width,height,Target``, where ``patientId`` is the stem of the image's file name and a
    row with ``Target`` 0 has no box; the plain layout has ``path,x,y,width,height``. An image with several
    boxes has several rows; a row without numbers has no box. A manifest with the column ``boxes`` is one too.

    Returns
    -------
    dict of str to tuple of Box
        By the name that the table gives the image; only images with a box.

    Raises
    ------
    DataError
        If the file is no such table, or a box is not valid; the line names file and row.
    """
    columns, rows = read_rows(path)
    if {"path", "boxes"} <= set(columns):
        named = (_boxes_of_row(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))
        return {name: boxes for name, boxes in named if boxes}
    key = next((name for name in ("patientid", "path") if name in columns), None)
    missing = [name for name in _SIDES if name not in columns]
    if key is None or missing:
        raise DataError(
            f"{path}: not a table of boxes; it needs the columns path,x,y,width,height, or those of RSNA: "
            "patientId,x,y,width,height,Target"
        )
    found: dict[str, list[Box]] = {}
    for number, row in enumerate(rows, start=1):
        box = _box(row, f"{path}, row {number}")
        if box is not None:
            found.setdefault(str(row[key]), []).append(box)
    # RSNA's table of classes joined with its boxes repeats rows.
    return {name: tuple(dict.fromkeys(boxes)) for name, boxes in found.items()}


def _boxes_of_row(row: Mapping[str, Any], where: str) -> tuple[str, tuple[Box, ...]]:
    """Return path and boxes of a row of a manifest, whose boxes are in shares of the image."""
    name = parse_text(row["path"])
    shares = parse_boxes(where, parse_text(row["boxes"]))
    try:
        width, height = (int(float(parse_text(row.get(side)) or 0)) for side in ("width", "height"))
    except ValueError as error:
        raise DataError(f"{where}: width and height of the image must be numbers") from error
    if shares and min(width, height) < 1:
        raise DataError(f"{where}: boxes need the width and height of the image in pixels")
    return name, tuple(Box(x * width, y * height, w * width, h * height) for x, y, w, h in shares)


def _box(row: Mapping[str, Any], where: str) -> Box | None:
    cells = [parse_text(row.get(name)) for name in _SIDES]  # numbers, in Parquet
    target = parse_text(row.get("target"))
    if target in {"0", "0.0"} or (not any(cells) and target in {"", "nan"}):
        return None
    try:
        x, y, width, height = map(float, cells)
    except ValueError as error:
        raise DataError(f"{where}: x, y, width and height must be numbers") from error
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise DataError(f"{where}: a box needs finite numbers, and a width and height above 0")
    return Box(x, y, width, height)


def match_boxes(
    boxes: Mapping[str, tuple[Box, ...]], records: Sequence[Record]
) -> tuple[dict[str, tuple[Box, ...]], int]:
    """Find the image of each entry.

    An entry with a folder belongs to the image whose path ends in it, or whose path it ends in: another
    image's file of the same name is none of it. An entry without a folder is a file name or its stem.

    Returns
    -------
    matched : dict of str to tuple of Box
        By the path of the record.
    unmatched : int
        Entries for which there is no image.

    Raises
    ------
    DataError
        If none has an image, a name matches several images, or names of several images match one.
    """
    paths: dict[str, list[str]] = {}
    for record in records:
        path = PurePosixPath(record.path)
        for name in dict.fromkeys((path.name, path.stem)):
            paths.setdefault(name, []).append(record.path)
    matched: dict[str, tuple[Box, ...]] = {}
    entries: dict[str, str] = {}
    unmatched = 0
    for name, entry in boxes.items():
        found = [one for one in paths.get(PurePosixPath(name).name, []) if _ends_in(one, name)]
        found = [one for one in found if one == name] or found
        if len(found) > 1:
            raise DataError(
                f"{name}: this name in the table of boxes matches {len(found)} images; write their paths"
            )
        if not found:
            unmatched += 1
            continue
        if not _ends_in(before := entries.setdefault(found[0], name), name):
            raise DataError(
                f"{name}: the table of boxes names {before} too, and both match the image {found[0]}; give "
                "data whose paths have the folders"
            )
        matched[found[0]] = (*matched.get(found[0], ()), *entry)
    if not matched:
        named = next(iter(boxes), "no image")
        image = records[0].path if records else "no image"
        raise DataError(
            f"no box belongs to an image of this set: the table of boxes names {named}, the set {image}; "
            "patientId must be the file name without its ending, path the path below the data's folder"
        )
    return matched, unmatched


def _ends_in(path: str, other: str) -> bool:
    """Return whether the folders of the shorter of two paths are the last ones of the longer."""
    own, others = (PurePosixPath(one).parts[-2::-1] for one in (path, other))
    return all(one == another for one, another in zip(own, others, strict=False))


def point_of(explanation: Explanation, height: int, width: int) -> tuple[float, float]:
    """Return x and y of the map's maximum in an image of `height` by `width` pixels."""
    heat = explanation.heatmap
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    top, left, bottom, right = explanation.region
    y = top + (int(row) + 0.5) / heat.shape[0] * (bottom - top)
    x = left + (int(column) + 0.5) / heat.shape[1] * (right - left)
    return x * width, y * height


def points_at(x: float, y: float, boxes: Sequence[Box], reach: float) -> bool:
    """Return whether a point lies in a box, or no further than `reach` pixels from one."""
    for box in boxes:
        dx = max(box.x - x, 0.0, x - (box.x + box.width))
        dy = max(box.y - y, 0.0, y - (box.y + box.height))
        if dx * dx + dy * dy <= reach * reach:
            return True
    return False


def inside_boxes(boxes: Sequence[Box], height: int, width: int, reach: float = 0.0) -> BoolArray:
    """Return which places of an image lie in a box or within `reach` pixels, on a grid of its aspect.

    Parameters
    ----------
    boxes : sequence of Box
        In pixels of the image.
    height, width : int
        Of the image.
    reach : float
        In pixels of the image.

    Returns
    -------
    ndarray of bool, shape (h, w)
        The shorter side has 224 places.
    """
    scale = _GRID / min(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    y = ((np.arange(rows) + 0.5) / rows * height)[:, None]
    x = ((np.arange(columns) + 0.5) / columns * width)[None]
    inside = np.zeros((rows, columns), np.bool_)
    for box in boxes:
        dx = np.maximum(np.maximum(box.x - x, x - (box.x + box.width)), 0)
        dy = np.maximum(np.maximum(box.y - y, y - (box.y + box.height)), 0)
        inside |= dx**2 + dy**2 <= reach**2
    return inside


def measure_boxes(
    explanation: Explanation, boxes: Sequence[Box], height: int, width: int
) -> dict[str, float]:
    """Return how a heat map agrees with boxes.

    The pointing game asks whether the map's maximum falls inside a box, give or take 15 pixels on an image
    whose shorter side is 224 (Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018). An
    empty map is a miss.

    Parameters
    ----------
    explanation : Explanation
        The map.
    boxes : sequence of Box
        In pixels of the image.
    height, width : int
        Of the image.

    Returns
    -------
    dict of str to float
        ``pointing_game``, ``pointing_game_strict``, ``pointing_chance``, ``iou``, ``box_area``; and
        ``energy_in_boxes`` where the map is not empty.
    """
    reach = TOLERANCE * min(height, width)
    inside = inside_boxes(boxes, height, width)
    row = {
        "pointing_game": 0.0,
        "pointing_game_strict": 0.0,
        "pointing_chance": float(inside_boxes(boxes, height, width, reach).mean()),
        "iou": 0.0,
        "box_area": float(inside.mean()),
    }
    heat = explanation.heatmap
    if not heat.any():
        return row
    x, y = point_of(explanation, height, width)
    whole = np.zeros(inside.shape, np.float32)
    top, left, bottom, right = (
        round(edge * side) for edge, side in zip(explanation.region, inside.shape * 2, strict=True)
    )
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    whole[top:bottom, left:right] = cv2.resize(
        heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
    )
    hot = whole >= IOU_AT * whole.max()
    return row | {
        "pointing_game": float(points_at(x, y, boxes, reach)),
        "pointing_game_strict": float(points_at(x, y, boxes, 0.0)),
        "iou": float((hot & inside).sum() / (hot | inside).sum()),
        "energy_in_boxes": float(whole[inside].sum() / whole.sum()),
    }
