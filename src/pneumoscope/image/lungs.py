"""Lung fields: from a segmenter's probability map to a mask, a box and a check of plausibility.

The segmenter itself is a model (`pneumoscope.model.lungs`); this module only has its interface, so that the
preprocessing does not depend on a runtime.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.errors import DataError

__all__ = [
    "LUNG_INPUT_SIZE",
    "WHOLE",
    "Box",
    "LungField",
    "LungSegmenter",
    "image_stem",
    "lung_field",
    "mask_path",
    "read_lung_mask",
]

LUNG_INPUT_SIZE = 128
"""Height and width at which a segmenter sees the whole image, squashed."""

Box = tuple[float, float, float, float]
"""Top, left, bottom, right as fractions of the image's height and width."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# Bounds for a frontal chest radiograph, from the reference masks (1st and 99th percentiles of
# 5,210 children are 0.20 and 0.52 of the area), widened for adults and wide collimation.
MIN_AREA, MAX_AREA = 0.06, 0.72
MIN_BOX_SIDE = 0.28
# A component smaller than this share of the lungs is a speck, not a lung.
MIN_COMPONENT = 0.08


class LungSegmenter(Protocol):
    """A function from an image to a map of lung probability."""

    def __call__(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probability of lung over the whole image, at the segmenter's own size.

        Parameters
        ----------
        pixels : ndarray of float32, shape (128, 128)
            The whole image, grey levels in [0, 1].

        Returns
        -------
        ndarray of float32, shape (h, w)
            Probabilities in [0, 1].
        """
        ...


@dataclass(frozen=True, eq=False, slots=True)
class LungField:
    """The lung fields of one image.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Lung or not, over the whole image, at the segmenter's size.
    box : Box
        Smallest box around the mask; the whole image where the mask is not plausible.
    plausible : bool
        Whether area and box are those of a frontal chest radiograph.
    certainty : float
        Mean probability over the mask, in [0, 1]; 0 for an empty one. It is low where the segmenter
        finds lungs in something else.
    view : ndarray of float32, shape (h, w), or None
        The segmenter's input, grey levels in [0, 1]; None where it was not kept.
    """

    mask: npt.NDArray[np.bool_]
    box: Box
    plausible: bool
    certainty: float = 0.0
    view: npt.NDArray[np.float32] | None = None

    @property
    def columns(self) -> npt.NDArray[np.uint32]:
        """Pixels of lung in each column, shape (w,)."""
        total: npt.NDArray[np.uint32] = np.add.reduce(self.mask.view(np.uint8), axis=0, dtype=np.uint32)
        return total

    @property
    def bridge(self) -> float:
        """How much lung joins left and right, in [0, 1]: about 0 for two lungs, near 1 for a single field.

        The lowest column of the middle third of the lungs' width, over the highest of all.
        """
        columns = self.columns
        found = np.flatnonzero(columns)
        if found.size == 0:
            return 0.0
        left, right = int(found[0]), int(found[-1]) + 1
        middle, sixth = (left + right) // 2, max(1, (right - left) // 6)
        return float(columns[max(left, middle - sixth) : middle + sixth].min() / columns.max())

    @property
    def cut_off(self) -> float:
        """Largest share of a side of their box along which the lungs lie at the image's edge, in [0, 1]."""
        if not self.mask.any():
            return 0.0
        height, width = (np.count_nonzero(self.mask.any(axis)) for axis in (1, 0))
        across = max(np.count_nonzero(self.mask[row]) for row in (0, -1)) / width
        down = max(np.count_nonzero(self.mask[:, column]) for column in (0, -1)) / height
        return float(max(across, down))

    def padded_box(self, margin: float) -> Box:
        """Return the box widened on each side by `margin` times its size, kept inside the image."""
        if not self.plausible:
            return WHOLE
        top, left, bottom, right = self.box
        dy, dx = (bottom - top) * margin, (right - left) * margin
        return (max(0.0, top - dy), max(0.0, left - dx), min(1.0, bottom + dy), min(1.0, right + dx))


def lung_field(
    probability: npt.NDArray[np.float32],
    *,
    threshold: float = 0.5,
    view: npt.NDArray[np.float32] | None = None,
) -> LungField:
    """Remove specks from a segmenter's map and take its box; at most the two largest components stay.

    Parameters
    ----------
    probability : ndarray of float32, shape (h, w)
        Lung probability in [0, 1] over the whole image.
    threshold : float
        Probability from which a pixel is lung.
    view : ndarray of float32, shape (h, w), optional
        The segmenter's input; kept for the gate.

    Returns
    -------
    LungField
        With the whole image as box where the mask is not plausible for a frontal chest.
    """
    raw = (probability >= threshold).view(np.uint8)
    stats: npt.NDArray[np.int32]
    _, components, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(raw, 8, cv2.CV_32S, cv2.CCL_BBDT)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = [i for i in np.argsort(areas)[::-1][:2] if areas[i] >= MIN_COMPONENT * areas.sum()]
    mask: npt.NDArray[np.bool_] = raw.view(np.bool_)
    if len(kept) < len(areas):
        mask = np.isin(components, np.array(kept) + 1)
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    if rows == 0:
        return LungField(mask, WHOLE, plausible=False, view=view)
    height, width = mask.shape
    box = (top / height, left / width, (top + rows) / height, (left + columns) / width)
    area = np.count_nonzero(mask) / mask.size
    sides_fit = min(box[2] - box[0], box[3] - box[1]) >= MIN_BOX_SIDE
    plausible = bool(MIN_AREA <= area <= MAX_AREA and sides_fit)
    certainty = float(probability[mask].mean())
    return LungField(mask, box if plausible else WHOLE, plausible, certainty, view)


def image_stem(path: Path) -> str:
    """Return the name of an image without its suffix.

    A DICOM file is often named by its UID; the last number of that is no suffix, and stays.
    """
    return path.name if path.suffix[1:].isdigit() else path.stem


def mask_path(folder: Path, image: str) -> Path:
    """Return where the mask of an image lies: under its relative name without suffix, ending in ``.png``."""
    path = folder / image
    return path.with_name(f"{image_stem(path)}.png")


def read_lung_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a reference mask, shape (H, W): lungs are where it is above zero, as programs write 1 or 255.

    Raises
    ------
    DataError
        If it is no image.
    """
    levels = None
    with suppress(OSError):
        # Not by its name, which OpenCV takes in ASCII only on Windows; of 16 bits, 1 must not become 0.
        data = np.frombuffer(path.read_bytes(), np.uint8)
        if data.size:
            levels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if levels is None:
        raise DataError(
            f"{path}: not a readable mask; save it as PNG with lung pixels above zero, or remove it"
        )
    inside: npt.NDArray[np.bool_] = levels > 0
    return inside
