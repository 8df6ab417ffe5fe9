"""Where in the picture the evidence for pneumonia lies: class activation maps.

Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016: in a network whose head is
pooled-linear, the weights that score the pooled features score each place as well. No gradient is needed,
and the map comes from the same pass as the probabilities.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.bundle import Calibrator

__all__ = ["explain", "pneumonia_evidence"]

Floats = npt.NDArray[np.float32]

# Evidence that never reaches one logit anywhere stays faint: a clear chest gets no red spot.
LEAST_SCALE = 1.0


def pneumonia_evidence(
    features: Floats, weight: Floats, probabilities: npt.NDArray[np.float64], scale: npt.ArrayLike = 1.0
) -> Floats:
    """Return the evidence for pneumonia against normal at each place, in calibrated logits.

    For two classes the weights are those of pneumonia minus those of normal. For more, the kinds of
    pneumonia are averaged with their share in the probability of pneumonia, which is exactly how the
    log-odds of pneumonia depend on the features.

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps.
    weight : ndarray of float32, shape (K, D)
        The head; class 0 is normal.
    probabilities : ndarray of float64, shape (K,)
        Calibrated.
    scale : array_like, shape () or (1,) or (K,)
        The calibrator's scale.

    Returns
    -------
    ndarray of float32, shape (h, w)
        Its mean over all places is the log-odds of pneumonia, but for the biases.
    """
    share = probabilities[1:] / max(float(probabilities[1:].sum()), np.finfo(np.float64).tiny)
    scaled = weight * np.broadcast_to(np.asarray(scale, np.float64), len(weight))[:, None]
    direction = share @ scaled[1:] - scaled[0]
    return np.tensordot(direction, features, axes=1).astype(np.float32)


def explain(
    features: Floats,
    weight: Floats,
    probabilities: npt.NDArray[np.float64],
    standardised: Standardised,
    calibrator: Calibrator,
) -> Explanation:
    """Make the heat map for pneumonia over the part of the picture that the network saw.

    Only evidence for pneumonia is shown; what speaks against it is 0. The strongest place is 1, unless it
    is worth less than one logit.

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps for this picture.
    weight : ndarray of float32, shape (K, D)
        The head.
    probabilities : ndarray of float64, shape (K,)
        Calibrated.
    standardised : Standardised
        What the network saw; says where in the picture that was.
    calibrator : Calibrator
        Its scale makes the evidence comparable with the probabilities.
    """
    evidence = pneumonia_evidence(features, weight, probabilities, calibrator.scale)
    side = standardised.pixels.shape[-1]
    fine: Floats = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    top, left, bottom, right = (round(edge * side) for edge in standardised.content)
    part: Floats = np.maximum(fine[top:bottom, left:right], np.float32(0))
    heatmap: Floats = part / np.float32(max(float(part.max(initial=0)), LEAST_SCALE))
    return Explanation("pneumonia", heatmap, standardised.region)
