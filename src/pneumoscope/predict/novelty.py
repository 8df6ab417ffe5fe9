"""How far a image is from the chest radiographs that a bundle knows.

A image is described by what is seen around the lungs that the segmenter found: coarse grey levels and where
the lungs lie. Its novelty is the squared Mahalanobis distance from the chest radiographs that the statistics
were fitted on, divided by the number of dimensions: about 1 for a chest.
Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks*,
NeurIPS 2018. The description needs no network but the segmenter, so a new classifier leaves it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import LungField
from pneumoscope.image.resample import resample

__all__ = ["DIMENSIONS", "Novelty", "describe"]

Floats = npt.NDArray[np.float32]

# The lungs and this much around them: shoulders, neck and belly tell a chest from a slice through one.
MARGIN = 0.2
SIDE = 15
# Added to what grey levels are divided by, so that a flat image is not blown up to noise.
LEAST_SPREAD = 0.05
PLACE = 7
DIMENSIONS = SIDE**2 + PLACE


@dataclass(frozen=True, eq=False, slots=True)
class Novelty:
    """Statistics of the chest radiographs that a bundle knows.

    Parameters
    ----------
    mean : ndarray of float32, shape (D,)
        Mean description.
    whitener : ndarray of float32, shape (D, D)
        Takes a centred description to uncorrelated values of variance 1: the transposed Cholesky factor
        of the inverse covariance.
    """

    mean: Floats
    whitener: Floats

    def __call__(self, description: Floats) -> float:
        """Return the squared Mahalanobis distance over D, 0 or more."""
        white = self.whitener @ (description - self.mean)
        return float(white @ white) / len(white)


def describe(lungs: LungField) -> Floats:
    """Describe a image by the surroundings of its lungs.

    Parameters
    ----------
    lungs : LungField
        What the segmenter found, with the image as it saw it.

    Returns
    -------
    ndarray of float32, shape (D,)
        Grey levels in standard deviations, 15 by 15; place, size, balance and certainty of the lungs.

    Raises
    ------
    ValueError
        If the field does not hold what the segmenter saw.
    """
    if lungs.view is None:
        raise ValueError("this lung field does not hold what the segmenter saw: make it with a view")
    grey = resample(lungs.view, SIDE, SIDE, region=lungs.padded_box(MARGIN))
    grey = (grey - grey.mean()) / (grey.std() + LEAST_SPREAD)
    return np.concatenate([grey.ravel(), _place(lungs)]).astype(np.float32)


def _place(lungs: LungField) -> Floats:
    """Return box, area, balance of left and right, and certainty."""
    columns = lungs.columns
    total = float(columns.sum())
    if total == 0:
        return np.zeros(PLACE, np.float32)
    found = np.flatnonzero(columns)
    left, right = int(found[0]), int(found[-1]) + 1
    middle = (left + right) // 2
    balance = (float(columns[:middle].sum()) - float(columns[middle:].sum())) / total
    return np.array([*lungs.box, total / lungs.mask.size, balance, lungs.certainty], np.float32)
