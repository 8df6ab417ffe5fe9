"""Tables of boxes that radiologists drew, in either of two layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pneumoscope.data.manifest import Record
from pneumoscope.data.tables import read_rows
from pneumoscope.errors import DataError

__all__ = ["Box", "match_boxes", "read_boxes"]

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
    row with ``Target`` 0 has no box; the plain layout has ``path,x,y,width,height``. A image with several
    boxes has several rows; rows without numbers say that there is no box.

    Returns
    -------
    dict of str to tuple of Box
        By the name that the table gives the image; only images with a box.

    Raises
    ------
    DataError
        If the file is no such table, or a box is no box; the line names file and row.
    """
    columns, rows = read_rows(path)
    key = next((name for name in ("patientId", "path") if name in columns), None)
    missing = [name for name in _SIDES if name not in columns]
    if key is None or missing:
        raise DataError(
            f"{path}: no table of boxes; it needs the columns path,x,y,width,height, or those of RSNA: "
            "patientId,x,y,width,height,Target"
        )
    found: dict[str, list[Box]] = {}
    for number, row in enumerate(rows, start=1):
        box = _box(row, f"{path}, row {number}")
        if box is not None:
            found.setdefault(str(row[key]).strip().replace("\\", "/"), []).append(box)
    # RSNA's table of classes joined with its boxes repeats rows.
    return {name: tuple(dict.fromkeys(boxes)) for name, boxes in found.items()}


def _box(row: Mapping[str, Any], where: str) -> Box | None:
    cells = [str(row.get(name) or "").strip() for name in _SIDES]
    target = str(row.get("Target") or "").strip()
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
    """Find the image of each entry: by path, else by file name, else by the file name's stem.

    Returns
    -------
    matched : dict of str to tuple of Box
        By the path of the record.
    unmatched : int
        Entries for which there is no image.

    Raises
    ------
    DataError
        If none has a image, or a name stands for several images.
    """
    paths: dict[str, list[str]] = {}
    for record in records:
        path = PurePosixPath(record.path)
        for name in dict.fromkeys((record.path, path.name, path.stem)):
            paths.setdefault(name, []).append(record.path)
    matched: dict[str, tuple[Box, ...]] = {}
    unmatched = 0
    for name, entry in boxes.items():
        found = paths.get(name) or paths.get(PurePosixPath(name).name, [])
        if len(found) > 1:
            raise DataError(
                f"{name}: this name in the table of boxes fits {len(found)} images; write their paths"
            )
        if not found:
            unmatched += 1
            continue
        matched[found[0]] = (*matched.get(found[0], ()), *entry)
    if not matched:
        raise DataError(
            "no box belongs to a image of this set; patientId must be the file name without its ending, "
            "path the path below the data's folder"
        )
    return matched, unmatched
