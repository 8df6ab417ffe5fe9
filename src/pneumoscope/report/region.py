"""The region of an image with the strongest evidence: the outline of a heat map around its maximum."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation
from pneumoscope.report.overlay import CONTOUR_AT

__all__ = ["Region", "strongest_region"]

FINE = 512  # pixels on the longer side of the map that is outlined
TOLERANCE = 1.0  # of the outline, in pixels of that map


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """Where in an image the evidence is strongest.

    Coordinates are those of a DICOM SCOORD (PS3.3 C.18.6): in pixels of the image, (0, 0) is the corner of
    the first pixel and (0.5, 0.5) its centre.

    Parameters
    ----------
    outline : ndarray of float64, shape (N, 2)
        Columns and rows of a closed polygon whose last point is its first; 4 points or more.
    peak : tuple of float
        Column and row of the strongest evidence.
    place : str
        Where the peak lies, such as ``left half of the image, lower third``.
    """

    outline: npt.NDArray[np.float64]
    peak: tuple[float, float]
    place: str


def strongest_region(explanation: Explanation, height: int, width: int) -> Region | None:
    """Return the connected region of evidence above `CONTOUR_AT` that holds the strongest evidence.

    Parameters
    ----------
    explanation : Explanation
        The heat map.
    height, width : int
        Of the image, in pixels.

    Returns
    -------
    Region or None
        None where all evidence is weaker than that.
    """
    rows, columns = explanation.heatmap.shape
    scale = FINE / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    fine = cv2.resize(explanation.heatmap, size, interpolation=cv2.INTER_LINEAR)
    if fine.max() < CONTOUR_AT:
        return None
    # Maps of 8 bits have several strongest places: the one in their middle.
    strongest = np.argwhere(fine == fine.max())
    row, column = strongest[np.abs(strongest - strongest.mean(axis=0)).sum(axis=1).argmin()]
    _, labels = cv2.connectedComponents((fine >= CONTOUR_AT).astype(np.uint8))
    part = (labels == labels[row, column]).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = cv2.approxPolyDP(contours[0], TOLERANCE, True)[:, 0].astype(np.float64)
    if len(contour) < 3:  # one pixel or a line: the square around it
        (left, top), (right, bottom) = contour.min(axis=0) - 0.5, contour.max(axis=0) + 0.5
        contour = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    top, left, bottom, right = explanation.region

    def in_image(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # Indices are centres of pixels of the map.
        shares = (points + 0.5) / size * (right - left, bottom - top) + (left, top)
        scaled: npt.NDArray[np.float64] = np.clip(shares, 0, 1) * (width, height)
        return scaled

    peak = in_image(np.array([column, row], np.float64))
    outline = in_image(contour)
    return Region(
        outline=np.vstack([outline, outline[:1]]),
        peak=(float(peak[0]), float(peak[1])),
        place=_place(float(peak[0]) / width, float(peak[1]) / height),
    )


def _place(across: float, down: float) -> str:
    half = "left" if across < 0.5 else "right"
    third = ("upper", "middle", "lower")[min(2, int(down * 3))]
    return f"{half} half of the image, {third} third"
