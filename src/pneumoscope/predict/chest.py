"""The frontal-chest classifier: the gate's last check, on features that the network computes anyway.

Logistic regression on mean and spread of the network's features, the texture of the image and the certainty
of its lungs. It is fitted on chest radiographs of several sources against many kinds of other images
(`pneumoscope.evaluation.chest`), so that it rejects drawings, blurred images and other body parts without
rejecting the unusual chest, as a distance from known chests alone does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import LungField

__all__ = ["NOT_A_CHEST", "TEXTURES", "ChestClassifier", "chest_features", "texture"]

Floats = npt.NDArray[np.float32]

TEXTURES = 10
"""Number of texture measures."""

NOT_A_CHEST = (
    "Not a frontal chest radiograph (its texture and features resemble none): give a frontal chest X-ray."
)
"""The line for people that goes with a rejection."""

# Differences of neighbouring grey levels that count as detail: one level of 255.
DETAIL = 1 / 255
FINE, COARSE = 1.5, 6.0  # standard deviations of the Gaussians that divide fine from coarse detail, in pixels
BINS = 32
# Added before the logarithm: of the shares, and of the standard deviations.
LEAST_DETAIL = np.array([0.02, 0.02, 1e-4, 1e-4])


@dataclass(frozen=True, eq=False, slots=True)
class ChestClassifier:
    """Logistic regression on standardised features.

    Parameters
    ----------
    mean, scale : ndarray of float32, shape (F,)
        Of the features that it was fitted on.
    weight : ndarray of float32, shape (F,)
    bias : float
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: float

    @classmethod
    def of(cls, arrays: Mapping[str, Floats]) -> ChestClassifier:
        """Return the classifier that a bundle stores; the arrays are named like the parameters."""
        return cls(arrays["mean"], arrays["scale"], arrays["weight"], float(arrays["bias"]))

    def __call__(self, features: Floats) -> float:
        """Return the probability of a frontal chest radiograph, in [0, 1]."""
        score = float((features - self.mean) / self.scale @ self.weight) + self.bias
        return float(1 / (1 + np.exp(-np.clip(score, -50, 50))))


def chest_features(moments: Floats, lungs: LungField) -> Floats:
    """Return the features of the classifier for one image.

    Parameters
    ----------
    moments : ndarray of float32, shape (2 D,)
        `feature_moments` of the network's last feature maps.
    lungs : LungField
        The detected lungs, with the view of the segmenter.

    Returns
    -------
    ndarray of float32, shape (2 D + `TEXTURES` + 1,)
        Mean and standard deviation of each feature map, the texture, the certainty of the lungs.

    Raises
    ------
    ValueError
        If the lung field was made without a view.
    """
    if lungs.view is None:
        raise ValueError("this lung field was made without a view")
    parts = (moments, texture(lungs.view), [lungs.certainty])
    return np.concatenate(parts).astype(np.float32)


def texture(pixels: Floats) -> Floats:
    """Return measures of texture.

    Parameters
    ----------
    pixels : ndarray of float32, shape (H, W)
        Grey levels in [0, 1], at the size of the lung segmenter.

    Returns
    -------
    ndarray of float32, shape (`TEXTURES`,)
        Share of pixels with a gradient, share with fine detail, standard deviation of fine and of coarse
        detail, entropy of the grey levels, share of the most frequent grey level; then the logarithms of the
        first four, since an image without any detail differs from a smooth one by factors.
    """
    across, down = (cv2.Sobel(pixels, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    smooth = cv2.GaussianBlur(pixels, (0, 0), FINE)
    fine = cv2.subtract(pixels, smooth)
    coarse = cv2.subtract(smooth, cv2.GaussianBlur(pixels, (0, 0), COARSE))
    counts = cv2.calcHist([pixels], [0], None, [BINS], [0, 1 + 1e-6]).ravel()
    share = counts / np.float32(pixels.size)
    present = share[share > 0]
    detail = np.array(
        [
            _share_above(cv2.magnitude(across, down), DETAIL),
            _share_above(cv2.absdiff(pixels, smooth), DETAIL / 2),
            _deviation(fine),
            _deviation(coarse),
        ]
    )
    levels = np.array([-(present * np.log(present)).sum(), share.max(initial=0)])
    return np.concatenate([detail, levels, np.log(detail + LEAST_DETAIL)]).astype(np.float32)


def _share_above(values: Floats, limit: float) -> float:
    return cv2.countNonZero(cv2.compare(values, limit, cv2.CMP_GT)) / values.size


def _deviation(values: Floats) -> float:
    return float(cv2.meanStdDev(values)[1][0, 0])
