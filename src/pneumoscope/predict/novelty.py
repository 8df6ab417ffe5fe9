"""Novelty: how far an image is from the chest radiographs that a bundle was fitted on.

An image is described by coarse grey levels around the lungs and the position of the lungs; its novelty is the
squared Mahalanobis distance from those radiographs, divided by the number of dimensions: about 1 for a chest.
Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks*,
NeurIPS 2018. The description needs no network but the segmenter: it does not depend on the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import LungField
from pneumoscope.image.resample import resample

__all__ = ["DIMENSIONS", "POSITION", "Novelty", "describe"]

Floats = npt.NDArray[np.float32]

# The lungs and this much around them: shoulders, neck and abdomen tell a chest from a slice through one.
MARGIN = 0.2
SIDE = 15
# Added to the divisor of grey levels, so that a flat image is not amplified to noise.
LEAST_SPREAD = 0.05
POSITION = 7
DIMENSIONS = SIDE**2 + POSITION


@dataclass(frozen=True, eq=False, slots=True)
class Novelty:
    """Statistics of the chest radiographs that a gate was fitted on.

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
    """Describe an image by the surroundings of its lungs.

    Parameters
    ----------
    lungs : LungField
        The detected lungs, with the image at the size of the segmenter.

    Returns
    -------
    ndarray of float32, shape (D,)
        Grey levels in standard deviations, 15 by 15; place, size, balance and certainty of the lungs.

    Raises
    ------
    ValueError
        If the field was made without the view of the segmenter.
    """
    if lungs.view is None:
        raise ValueError("this lung field was made without a view")
    grey = resample(lungs.view, SIDE, SIDE, region=lungs.padded_box(MARGIN))
    grey = (grey - grey.mean()) / (grey.std() + LEAST_SPREAD)
    return np.concatenate([grey.ravel(), _position(lungs)]).astype(np.float32)


def _position(lungs: LungField) -> Floats:
    """Return box, area, balance of left and right, and certainty."""
    columns = lungs.columns
    total = float(columns.sum())
    if total == 0:
        return np.zeros(POSITION, np.float32)
    found = np.flatnonzero(columns)
    left, right = int(found[0]), int(found[-1]) + 1
    middle = (left + right) // 2
    balance = (float(columns[:middle].sum()) - float(columns[middle:].sum())) / total
    return np.array([*lungs.box, total / lungs.mask.size, balance, lungs.certainty], np.float32)
