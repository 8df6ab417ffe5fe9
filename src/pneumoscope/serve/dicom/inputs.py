"""Measures of an image that the journal keeps, so that a report can say whether the images have changed.

They are few and coarse: mean and spread of the grey levels that the network sees, and how much of the image
the lungs take, how they are balanced and how certain the segmenter is.
"""

from __future__ import annotations

import numpy as np

from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.novelty import DIMENSIONS, POSITION, describe
from pneumoscope.predict.predictor import ExplainedPrediction

__all__ = ["INPUT_MEASURES", "input_measures", "input_reference"]


INPUT_MEASURES = {
    "grey_mean": "mean grey level of the network's input",
    "grey_spread": "standard deviation of its grey levels",
    "lung_area": "share of the image that the lungs take",
    "lung_balance": "left lung against right lung",
    "lung_certainty": "certainty of the lung segmenter",
}
"""Names of the measures, and what they are."""

# Their places among the last elements of what `pneumoscope.predict.novelty.describe` returns.
OF_GATE = {"lung_area": 4, "lung_balance": 5, "lung_certainty": 6}


def input_measures(explained: ExplainedPrediction) -> dict[str, float]:
    """Return the measures of an image; none where it was rejected before it was standardised.

    Parameters
    ----------
    explained : ExplainedPrediction
    """
    standardised = explained.standardised
    if standardised is None:
        return {}
    pixels = standardised.pixels
    measures = {"grey_mean": float(pixels.mean()), "grey_spread": float(pixels.std())}
    lungs = standardised.lungs
    if lungs is not None and lungs.view is not None:
        place = describe(lungs)[-POSITION:]
        measures |= {name: float(place[index]) for name, index in OF_GATE.items()}
    return {name: round(value, 5) for name, value in measures.items()}


def input_reference(bundle: Bundle) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of measures over the chest radiographs that the gate was fitted on.

    Only measures that the gate describes have them, and of these not the certainty, which is far from a
    normal distribution; none where the bundle's gate was not fitted.
    """
    statistics = bundle.gate_statistics
    if statistics is None:
        return {}
    mean, whitener = statistics
    if mean.size != DIMENSIONS:
        return {}
    # whitener = L^T of the inverse covariance L L^T, so the covariance is inv(whitener) inv(whitener)^T.
    inverse = np.linalg.inv(whitener.astype(np.float64))
    spread = np.sqrt(np.einsum("ij,ij->i", inverse, inverse))
    first = mean.size - POSITION
    return {
        name: (float(mean[first + index]), float(spread[first + index]))
        for name, index in OF_GATE.items()
        if name != "lung_certainty"
    }
