"""How well heat maps point: at lungs, at radiologists' boxes, and at what the network depends on.

* Energy: the share of a map's sum that lies inside a mask or boxes (Wang et al., Score-CAM, CVPRW 2020).
* Boxes: see `pneumoscope.evaluation.boxes`.
* Insertion and deletion curves (Petsiuk et al., *RISE: Randomized Input Sampling for Explanation of Black-box
  Models*, BMVC 2018): the area under the probability while the image is uncovered, or covered, from the map's
  maximum to its minimum. Covered parts show another patient's chest without the finding, in the same frame.
  RISE covers with a heavy blur; these curves are made too, but a chest without detail is no healthy chest:
  networks tend to predict pneumonia, and then little rises or falls.

The chance level of each stands beside it: the share of the area, and the curves of another patient's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Estimate, Explanation, Target
from pneumoscope.errors import DataError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.boxes import IOU_AT, TOLERANCE, Box, match_boxes, measure_boxes
from pneumoscope.evaluation.scores import BoolArray, FloatArray
from pneumoscope.image.lungs import mask_path, read_lung_mask
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.measures import BoxMeasures, CurveMeasures, Localisation, LungMeasures
from pneumoscope.parallel import Progress
from pneumoscope.predict.explain import LogOdds, blurred
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.predictor import Predictor

__all__ = ["CURVES", "CURVE_IMAGES", "STEPS", "MapTruth", "check_masks", "curve", "energy_inside", "localise"]

Floats = npt.NDArray[np.float32]

CURVE_IMAGES = 100
"""Images with the target that curves are made for; each takes 126 passes."""

STEPS = 20
"""Steps of a curve."""

CURVES = ("insertion", "insertion_other", "insertion_blur", "deletion", "deletion_other", "deletion_blur")
"""What is measured: with the image's own map, another patient's, and its own under blur."""

_COVERS = 12  # chests to cover with, in turn

_REASONS = {
    "energy_in_lungs": "no evaluated image with {target} has a lung mask",
    "pointing_game": "no evaluated image has a box",
    "insertion": "needs evaluated images with and without {target}",
    "deletion": "needs evaluated images with and without {target}",
}


@dataclass(frozen=True)
class MapTruth:
    """What maps are compared with.

    Parameters
    ----------
    masks : Path, optional
        Folder of lung masks, PNG, under the images' relative names; lung pixels are above zero.
    boxes : mapping of str to tuple of Box, optional
        From `pneumoscope.evaluation.boxes.read_boxes`.
    curves : int
        Images with the target, drawn at random, that insertion and deletion curves are made for.
    """

    masks: Path | None = None
    boxes: Mapping[str, tuple[Box, ...]] | None = None
    curves: int = CURVE_IMAGES

    def __bool__(self) -> bool:
        """Whether there is anything to measure."""
        return self.masks is not None or self.boxes is not None or self.curves > 0


def localise(
    predictor: Predictor,
    manifest: Manifest,
    truth: MapTruth,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Localisation:
    """Measure the heat maps of a bundle.

    Energy and curves are of the evaluated images that are labelled with the target and whose map is not
    empty; pointing game and overlap are of all evaluated images with a box, an empty map being a miss.

    Parameters
    ----------
    predictor : Predictor
        Makes the maps.
    manifest : Manifest
        Images that the network was not trained on.
    truth : MapTruth
        What they are compared with.
    n_boot, seed : int
        Resamples of the patients for the intervals, and their seed.
    progress : Progress, optional
        Receives the number of images done.

    Returns
    -------
    Localisation
        As far as requested.

    Raises
    ------
    DataError
        If no box, or no mask, belongs to an image, or a mask shows no lung.
    """
    boxes, unmatched = ({}, 0) if truth.boxes is None else match_boxes(truth.boxes, manifest.records)
    target = predictor.bundle.manifest.target
    positive = [index for index, record in enumerate(manifest.records) if target.includes(record.label)]
    drawn = np.random.default_rng(seed).permutation(positive)[: truth.curves]
    covers = _covers(predictor, manifest, seed) if truth.curves else []
    with_cover = {}
    for number, index in enumerate(drawn.tolist()):
        patient = manifest.records[index].patient_id
        if others := [seen for owner, seen in covers if owner != patient]:
            with_cover[index] = others[number % len(others)]
    rows = _measured(predictor, manifest, truth, boxes, with_cover, progress or Progress())
    patients = [record.patient_id for record in manifest.records]

    def section(*names: str) -> dict[str, Any]:
        return {name: _estimate(name, rows, patients, n_boot, seed, target.name) for name in names}

    lungs = box = curves = None
    if truth.masks is not None:
        names = ("energy_in_lungs", "lung_area")
        lungs = LungMeasures(images=_count(rows, "energy_in_lungs"), **section(*names))
    if truth.boxes is not None:
        box = BoxMeasures(
            images=_count(rows, "pointing_game"),
            not_evaluated=len(boxes) - _count(rows, "pointing_game"),
            without_image=unmatched,
            tolerance=TOLERANCE,
            iou_at=IOU_AT,
            **section("pointing_game", "pointing_game_strict", "pointing_chance", "iou", "energy_in_boxes"),
            **section("box_area"),
        )
    if truth.curves:
        images = _count(rows, "insertion")
        estimates = section(*CURVES, "p_blurred")
        curves = CurveMeasures(images=images, steps=STEPS, mean=_mean_curves(rows), **estimates)
    return Localisation(lungs=lungs, boxes=box, curves=curves)


_Row = dict[str, Any]


def _measured(
    predictor: Predictor,
    manifest: Manifest,
    truth: MapTruth,
    boxes: Mapping[str, tuple[Box, ...]],
    covers: Mapping[int, Standardised],
    progress: Progress,
) -> list[_Row]:
    """Measure every image; a row holds what is defined for it. Images with a cover get curves."""
    rows: list[_Row] = []
    masks_found = 0
    others: list[tuple[str, Floats]] = []
    target = predictor.bundle.manifest.target
    explained = predictor.explain_iter(input_items(manifest))
    for index, (record, one) in enumerate(zip(manifest.records, explained, strict=True)):
        progress.update(index + 1, len(manifest))
        row: _Row = {}
        rows.append(row)
        explanation, radiograph, seen = one.explanation, one.radiograph, one.standardised
        if explanation is None or radiograph is None or seen is None:
            continue
        if found := boxes.get(record.path):
            row |= measure_boxes(explanation, found, radiograph.height, radiograph.width)
        if not target.includes(record.label) or not explanation.heatmap.any():
            continue
        if truth.masks is not None and (mask := _mask(truth.masks, record.path)) is not None:
            masks_found += 1
            energy, area = energy_inside(explanation, mask)
            row |= {"energy_in_lungs": energy, "lung_area": area}
        if index in covers:
            other = next((heat for patient, heat in reversed(others) if patient != record.patient_id), None)
            log_odds = predictor.log_odds_like(one)
            # The map is in the orientation of the file, the network's input is upright.
            heat = np.ascontiguousarray(np.rot90(explanation.heatmap, seen.quarter_turns))
            row |= _all_curves(log_odds, seen, covers[index], heat, other)
            others = [*others, (record.patient_id, heat)][-20:]
    if truth.masks is not None and not masks_found:
        raise _no_mask(truth.masks, target)
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


def _mask(folder: Path, path: str) -> BoolArray | None:
    file = mask_path(folder, path)
    if not file.is_file():
        return None
    mask: BoolArray = read_lung_mask(file)
    if not mask.any():
        raise DataError(
            f"{file}: this mask shows no lung; save it as PNG with lung pixels above zero, or remove it"
        )
    return mask


def check_masks(folder: Path, manifest: Manifest, target: Target) -> None:
    """Raise DataError if no image with the target has a mask, or if one, which is named, shows no lung."""
    with_target = (record.path for record in manifest.records if target.includes(record.label))
    # Every mask is read, not only those up to the first that is found.
    if not sum(_mask(folder, path) is not None for path in with_target):
        raise _no_mask(folder, target)


def _no_mask(folder: Path, target: Target) -> DataError:
    return DataError(
        f"{folder}: no mask belongs to an evaluated image with {target.name}; a mask is a PNG with "
        "the image's path below the data's folder"
    )


def _covers(predictor: Predictor, manifest: Manifest, seed: int) -> list[tuple[str, Standardised]]:
    """Return patient and network's input of images without the target, those of the lowest probability."""
    target = predictor.bundle.manifest.target
    without = [record for record in manifest if not target.includes(record.label)]
    order = np.random.default_rng(seed).permutation(len(without))[: 2 * _COVERS]
    chosen = manifest.with_records(without[index] for index in order)
    found = [
        (one.prediction.p_target, record.patient_id, one.standardised)
        for record, one in zip(chosen, predictor.explain_iter(input_items(chosen)), strict=True)
        if one.standardised is not None and one.prediction.p_target is not None
    ]
    return [(patient, seen) for _, patient, seen in sorted(found, key=lambda row: row[0])[:_COVERS]]


def _estimate(
    name: str, rows: Sequence[_Row], patients: Sequence[str], n_boot: int, seed: int, target: str
) -> Estimate:
    """Mean over the images that have this value, with its interval over resampled patients."""
    kept = [index for index, row in enumerate(rows) if name in row]
    if not kept:
        reason = next((text for key, text in _REASONS.items() if name.startswith(key)), "nothing to measure")
        return Estimate(None, reason=reason.format(target=target))
    values = np.array([rows[index][name] for index in kept], np.float64)
    _, clusters = np.unique(np.array([patients[index] for index in kept], np.str_), return_inverse=True)
    means = weighted.replicates(
        clusters.astype(np.int64),
        n_boot,
        seed,
        lambda weights: {name: weighted.ratio(weights @ values, weights.sum(axis=1))},
    )
    return weighted.estimate(means[name], int(clusters.max()) + 1)


def _count(rows: Sequence[_Row], name: str) -> int:
    return sum(name in row for row in rows)


def _mean_curves(rows: Sequence[_Row]) -> dict[str, tuple[float, ...]]:
    curves = {name: [row[f"{name}_curve"] for row in rows if f"{name}_curve" in row] for name in CURVES}
    return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in curves.items() if values}


def _all_curves(
    log_odds: LogOdds, seen: Standardised, chest: Standardised, heat: Floats, other: Floats | None
) -> _Row:
    """Return areas and curves of one map by name, and the probability that the blurred image gets.

    `chest` is an image of another patient to cover with, `other` the map of another patient for comparison.
    """
    blur = blurred(seen.pixels)
    row: _Row = {"p_blurred": float(_probability(log_odds(blur[None]))[0])}
    cover = _in_frame_of(seen, chest)
    for suffix, one, covered in (("", heat, cover), ("_other", other, cover), ("_blur", heat, blur)):
        if one is None:
            continue
        for name in ("insertion", "deletion"):
            values = curve(log_odds, seen, covered, one, insert=name == "insertion")
            row[f"{name}{suffix}"] = float(np.trapezoid(values, dx=1 / STEPS))
            row[f"{name}{suffix}_curve"] = values
    return row


def _in_frame_of(seen: Standardised, chest: Standardised) -> Floats:
    """Bring a chest's content to where another input has its own."""
    (top, left, bottom, right), (rows, columns) = _content(seen), _slices(chest)
    cover, shape = seen.pixels.copy(), (right - left, bottom - top)
    for channel, source in zip(cover, chest.pixels, strict=True):
        channel[top:bottom, left:right] = cv2.resize(source[rows, columns], shape)
    return cover


def _content(seen: Standardised) -> tuple[int, int, int, int]:
    top, left, bottom, right = (round(edge * seen.pixels.shape[-1]) for edge in seen.content)
    return top, left, bottom, right


def _slices(seen: Standardised) -> tuple[slice, slice]:
    top, left, bottom, right = _content(seen)
    return slice(top, bottom), slice(left, right)


def curve(log_odds: LogOdds, seen: Standardised, cover: Floats, heat: Floats, *, insert: bool) -> FloatArray:
    """Return the probability of the target while the image is uncovered or covered along a map.

    Parameters
    ----------
    log_odds : callable
        The network.
    seen : Standardised
        Its input.
    cover : ndarray of float32, shape (C, S, S)
        What shows where the image is covered.
    heat : ndarray of float32, shape (h, w)
        The map over the content of the input. Where it is constant, the order is random but fixed.
    insert : bool
        Uncover the image; else cover it.

    Returns
    -------
    ndarray of float64, shape (`STEPS` + 1,)
        At 0, 1/STEPS, …, 1 of the content's area.
    """
    side = seen.pixels.shape[-1]
    rows, columns = _slices(seen)
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    fitting: Floats = cv2.resize(heat, shape, interpolation=cv2.INTER_LINEAR)
    ties = np.random.default_rng(0).permutation(fitting.size)
    rank = np.empty(fitting.size, np.int64)
    rank[np.lexsort((ties, -fitting.ravel()))] = np.arange(fitting.size)
    depth = np.full((side, side), 2.0)  # borders never change
    depth[rows, columns] = (rank.reshape(fitting.shape) + 0.5) / fitting.size
    reached = (depth <= np.linspace(0, 1, STEPS + 1)[:, None, None])[:, None]
    images = np.where(reached == insert, seen.pixels, cover).astype(np.float32)
    return _probability(log_odds(images))


def _probability(log_odds: FloatArray) -> FloatArray:
    p: FloatArray = 1 / (1 + np.exp(-log_odds))
    return p
