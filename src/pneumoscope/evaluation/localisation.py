"""How well heat maps point: at lungs, at radiologists' boxes, and at what the network itself goes by.

* Energy: the share of a map's sum that lies inside a mask or boxes (Wang et al., Score-CAM, CVPRW 2020).
* Pointing game: whether the map's maximum falls inside a box, give or take 15 pixels on a image whose
  shorter side is 224 (Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018).
* Insertion and deletion curves: see `pneumoscope.evaluation.faithfulness`.

What a map would score by knowing nothing stands beside each: the share of the area, and the curves of another
patient's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Explanation
from pneumoscope.errors import DataError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.boxes import Box, match_boxes, read_boxes
from pneumoscope.evaluation.faithfulness import CURVES, STEPS, faithfulness
from pneumoscope.evaluation.metrics import figure
from pneumoscope.evaluation.scores import BoolArray
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import Standardised
from pneumoscope.predict.predictor import Predictor

__all__ = [
    "CURVE_IMAGES",
    "TOLERANCE",
    "MapTruth",
    "energy_inside",
    "inside_boxes",
    "localise",
    "point_of",
    "points_at",
]

Floats = npt.NDArray[np.float32]

TOLERANCE = 15 / 224
"""Distance from a box that still counts as inside, as a share of the image's shorter side."""

CURVE_IMAGES = 100
"""Images with pneumonia that curves are made for; each takes 126 passes."""

_NORMAL_CHESTS = 12  # to cover with, in turn

_GRID = 224  # pixels on the shorter side, for areas
_IOU_AT = 0.5
_UNDEFINED = {
    "energy_in_lungs": "no evaluated image with pneumonia has a lung mask",
    "pointing_game": "no evaluated image has a box",
    "insertion": "needs evaluated images with and without pneumonia",
    "deletion": "needs evaluated images with and without pneumonia",
}


@dataclass(frozen=True)
class MapTruth:
    """What maps are held against.

    Parameters
    ----------
    masks : Path, optional
        Folder of lung masks, PNG, under the images' relative names.
    boxes : Path, optional
        Table for `read_boxes`.
    curves : int
        Images with pneumonia, drawn at random, that insertion and deletion curves are made for.
    """

    masks: Path | None = None
    boxes: Path | None = None
    curves: int = CURVE_IMAGES

    def __bool__(self) -> bool:
        """Whether there is anything to measure."""
        return self.masks is not None or self.boxes is not None or self.curves > 0


def localise(
    predictor: Predictor, manifest: Manifest, truth: MapTruth, *, n_boot: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Measure the heat maps of a bundle.

    Energy and curves speak of the evaluated images that are labelled pneumonia and whose map is not empty; the
    pointing game and the overlap of all evaluated images with a box, an empty map being a miss.

    Parameters
    ----------
    predictor : Predictor
        Makes the maps.
    manifest : Manifest
        Images that the network was not trained on.
    truth : MapTruth
        What they are held against.
    n_boot, seed : int
        Resamples of the patients for the intervals, and their seed.

    Returns
    -------
    dict
        JSON-ready: sections ``lungs``, ``boxes`` and ``curves``, as far as asked for; figures as in
        `evaluate_scores`.

    Raises
    ------
    DataError
        If no box, or no mask, belongs to a image.
    """
    boxes, unmatched = match_boxes(read_boxes(truth.boxes), manifest.records) if truth.boxes else ({}, 0)
    ill = [index for index, record in enumerate(manifest.records) if record.label != "normal"]
    drawn = np.random.default_rng(seed).permutation(ill)[: truth.curves]
    chests = _normal_chests(predictor, manifest, seed) if truth.curves else []
    rows = _measured(
        predictor, manifest, truth, boxes, dict(zip(drawn.tolist(), cycle(chests), strict=False))
    )
    patients = [record.patient_id for record in manifest.records]

    def section(*names: str) -> dict[str, Any]:
        return {name: _figure(name, rows, patients, n_boot, seed) for name in names}

    out: dict[str, Any] = {}
    if truth.masks is not None:
        out["lungs"] = {
            "images": _count(rows, "energy_in_lungs"),
            **section("energy_in_lungs", "lung_area"),
        }
    if truth.boxes is not None:
        names = (
            "pointing_game",
            "pointing_game_strict",
            "pointing_chance",
            "iou",
            "energy_in_boxes",
            "box_area",
        )
        out["boxes"] = {
            "images": _count(rows, "pointing_game"),
            "not_evaluated": len(boxes) - _count(rows, "pointing_game"),
            "without_image": unmatched,
            "tolerance": TOLERANCE,
            "iou_at": _IOU_AT,
            **section(*names, "box_area"),
        }
    if truth.curves:
        out["curves"] = {
            "images": _count(rows, "insertion"),
            "steps": STEPS,
            **section(*CURVES, "p_blurred"),
            "mean": _mean_curves(rows),
        }
    return out


_Row = dict[str, Any]


def _measured(
    predictor: Predictor,
    manifest: Manifest,
    truth: MapTruth,
    boxes: Mapping[str, tuple[Box, ...]],
    drawn: Mapping[int, Standardised],
) -> list[_Row]:
    """Measure every image; a row holds what is defined for it. `drawn` images get curves."""
    rows: list[_Row] = []
    masks_found = 0
    others: list[tuple[str, Floats]] = []
    paths = [manifest.resolve(record) for record in manifest.records]
    examinations = predictor.examine_iter(paths)
    for index, (record, examined) in enumerate(zip(manifest.records, examinations, strict=True)):
        row: _Row = {}
        rows.append(row)
        explanation, radiograph, seen = examined.explanation, examined.radiograph, examined.standardised
        if explanation is None or radiograph is None or seen is None:
            continue
        if found := boxes.get(record.path):
            row |= _against_boxes(explanation, found, radiograph.height, radiograph.width)
        if record.label == "normal" or not explanation.heatmap.any():
            continue
        if truth.masks is not None and (mask := _mask(truth.masks, record.path)) is not None:
            masks_found += 1
            energy, area = energy_inside(explanation, mask)
            row |= {"energy_in_lungs": energy, "lung_area": area}
        if index in drawn:
            other = next((heat for patient, heat in reversed(others) if patient != record.patient_id), None)
            row |= faithfulness(predictor.log_odds, seen, drawn[index], explanation.heatmap, other)
            others = [*others, (record.patient_id, explanation.heatmap)][-20:]
    if truth.masks is not None and not masks_found:
        raise DataError(
            f"{truth.masks}: no mask belongs to a evaluated image with pneumonia; a mask is a PNG with the "
            "image's path below the data's folder"
        )
    return rows


def energy_inside(explanation: Explanation, mask: BoolArray) -> tuple[float, float]:
    """Return the share of a map's sum inside a mask, and the mask's share of the map's region.

    Parameters
    ----------
    explanation : Explanation
        With a map that is not empty.
    mask : ndarray of bool, shape (h, w)
        Over the whole image; its size is free.
    """
    height, width = explanation.heatmap.shape
    top, left, bottom, right = explanation.region
    # The mask is read at the centre of each pixel of the map.
    rows = ((top + (np.arange(height) + 0.5) / height * (bottom - top)) * mask.shape[0]).astype(int)
    columns = ((left + (np.arange(width) + 0.5) / width * (right - left)) * mask.shape[1]).astype(int)
    inside = mask[np.minimum(rows, mask.shape[0] - 1)][:, np.minimum(columns, mask.shape[1] - 1)]
    total = float(explanation.heatmap.sum(dtype=np.float64))
    return float(explanation.heatmap[inside].sum(dtype=np.float64)) / total, float(inside.mean())


def point_of(explanation: Explanation, height: int, width: int) -> tuple[float, float]:
    """Return x and y of the map's maximum in a image of `height` by `width` pixels."""
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
    """Return which places of a image lie in a box or within `reach` pixels, on a grid of its aspect.

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


def _against_boxes(explanation: Explanation, boxes: Sequence[Box], height: int, width: int) -> _Row:
    reach = TOLERANCE * min(height, width)
    inside = inside_boxes(boxes, height, width)
    row: _Row = {
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
    hot = whole >= _IOU_AT * whole.max()
    return row | {
        "pointing_game": float(points_at(x, y, boxes, reach)),
        "pointing_game_strict": float(points_at(x, y, boxes, 0.0)),
        "iou": float((hot & inside).sum() / (hot | inside).sum()),
        "energy_in_boxes": float(whole[inside].sum() / whole.sum()),
    }


def _mask(folder: Path, path: str) -> BoolArray | None:
    file = (folder / path).with_suffix(".png")
    if not file.is_file():
        return None
    mask: BoolArray = read_radiograph(file).pixels >= 0.5
    return mask


def _normal_chests(predictor: Predictor, manifest: Manifest, seed: int) -> list[Standardised]:
    """Return the clearest of some normal images, in the network's frame."""
    normal = [manifest.resolve(record) for record in manifest.records if record.label == "normal"]
    order = np.random.default_rng(seed).permutation(len(normal))[: 2 * _NORMAL_CHESTS]
    found = [
        (examined.prediction.p_pneumonia, examined.standardised)
        for examined in predictor.examine_iter([normal[index] for index in order])
        if examined.standardised is not None and examined.prediction.p_pneumonia is not None
    ]
    return [seen for _, seen in sorted(found, key=lambda one: one[0])[:_NORMAL_CHESTS]]


def _figure(
    name: str, rows: Sequence[_Row], patients: Sequence[str], n_boot: int, seed: int
) -> dict[str, Any]:
    """Mean over the images that have this value, with its interval over resampled patients."""
    kept = [index for index, row in enumerate(rows) if name in row]
    if not kept:
        reason = next(
            (text for key, text in _UNDEFINED.items() if name.startswith(key)), "nothing to measure"
        )
        return {"value": None, "low": None, "high": None, "reason": reason}
    values = np.array([rows[index][name] for index in kept], np.float64)
    _, clusters = np.unique(np.array([patients[index] for index in kept], np.str_), return_inverse=True)
    weights = weighted.patient_weights(clusters.astype(np.int64), n_boot, np.random.default_rng(seed))
    means = weighted.ratio(weights @ values, weights.sum(axis=1))
    return figure(np.r_[values.mean(), means], int(clusters.max()) + 1, reason="")


def _count(rows: Sequence[_Row], name: str) -> int:
    return sum(name in row for row in rows)


def _mean_curves(rows: Sequence[_Row]) -> dict[str, list[float]]:
    curves = {name: [row[f"{name}_curve"] for row in rows if f"{name}_curve" in row] for name in CURVES}
    return {name: np.mean(values, axis=0).tolist() for name, values in curves.items() if values}
