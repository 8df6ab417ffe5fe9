"""Where in the image the evidence for pneumonia lies: class activation maps.

Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016: in a network whose head is
pooled-linear, the weights that score the pooled features score each place as well. No gradient is needed,
and the map comes from the same pass as the probabilities.

A place that says nothing does not score 0 but whatever the network takes from that place in every chest. So
the map is drawn against the mean features of normal chests: for a linear head these differences are the
Shapley values of the places (Lundberg and Lee, *A Unified Approach to Interpreting Model Predictions*, 2017).
How the map is made of them was chosen by measurement; see ``docs/explanation/heat-maps.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation
from pneumoscope.image.standardise import Standardised, crop
from pneumoscope.model.manifest import Calibrator

__all__ = ["MAP_STYLE", "MapStyle", "explain", "heat_map", "pneumonia_evidence"]

Floats = npt.NDArray[np.float32]

# Weaker evidence, in logits, stays faint: a clear chest gets no red spot. Activation maps of the default
# recipe peak at 1.8 in normal chests (median of 25 validation images; 95% below 3.6), at 12.5 in pneumonia:
# they say what the log-odds would be if the whole image were like this place. Occlusion speaks of a patch.
LEAST_SCALE = {"cam": 6.0, "occlusion": 1.0}
# A consolidation can hide a lung from the segmenter as a whole: where one is less than this share of the
# other, the map is not kept to them.
LEAST_LUNG_RATIO = 0.3
# Lungs that touch are one component, and its box is wider than this share of the image.
LEAST_WIDTH_OF_TWO = 0.5


@dataclass(frozen=True, slots=True)
class MapStyle:
    """How a map is made of the evidence.

    Parameters
    ----------
    smoothing : float
        Standard deviation of a Gaussian over the linearly upsampled evidence, as a share of the input's side.
        Together they are smooth and, unlike a cubic, make no evidence that is not there.
    lung_margin : float or None
        Keep the map to the lung fields and this margin, a share of the image's side, where the segmenter
        found two plausible lungs; lungs that a consolidation hides are often missed in part. None keeps it
        to nothing.
    """

    smoothing: float = 0.06
    lung_margin: float | None = 0.03


MAP_STYLE = MapStyle()
"""The style that scored best on validation patients."""


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
    background: Floats | None = None,
    style: MapStyle = MAP_STYLE,
) -> Explanation:
    """Make the class activation map for pneumonia over the part of the image that the network saw.

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps for this image.
    weight : ndarray of float32, shape (K, D)
        The head.
    probabilities : ndarray of float64, shape (K,)
        Calibrated.
    standardised : Standardised
        What the network saw; says where in the image that was.
    calibrator : Calibrator
        Its scale makes the evidence comparable with the probabilities.
    background : ndarray of float32, shape (D, h, w), optional
        Mean features of normal chests; the map shows what goes beyond them.
    style : MapStyle
        How the map is made of the evidence.
    """
    beyond = features if background is None else features - background
    scale = calibrator.odds_scale * np.asarray(calibrator.scale)
    evidence = pneumonia_evidence(beyond, weight, probabilities, scale)
    return heat_map(evidence, standardised, style)


def heat_map(
    evidence: Floats,
    standardised: Standardised,
    style: MapStyle = MAP_STYLE,
    *,
    method: Literal["cam", "occlusion"] = "cam",
) -> Explanation:
    """Bring evidence on a grid over the network's input into the frame of the image.

    Only evidence for pneumonia is shown; what speaks against it is 0. The strongest place is 1, unless
    it is weak: see `LEAST_SCALE`.

    Parameters
    ----------
    evidence : ndarray of float32, shape (h, w)
        In logits.
    standardised : Standardised
        What the network saw.
    style : MapStyle
        How the map is made of it.
    method : {"cam", "occlusion"}
        Where the evidence comes from.
    """
    side = standardised.pixels.shape[-1]
    fine: Floats = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    if style.smoothing > 0:
        fine = cv2.GaussianBlur(fine, (0, 0), style.smoothing * side, borderType=cv2.BORDER_REFLECT)
    top, left, bottom, right = (round(edge * side) for edge in standardised.content)
    part: Floats = np.maximum(fine[top:bottom, left:right], np.float32(0))
    if style.lung_margin is not None:
        field = _lung_field(standardised, part.shape, style.lung_margin)
        part = part if field is None else part * field
    scaled: Floats = part / np.float32(max(float(part.max(initial=0)), LEAST_SCALE[method]))
    return Explanation("pneumonia", scaled, standardised.region, method)


def _lung_field(standardised: Standardised, shape: tuple[int, ...], margin: float) -> Floats | None:
    """Return 1 in and near the lungs, falling to 0 outside, in the frame of the map; None where unsure."""
    lungs = standardised.lungs
    if lungs is None or not lungs.plausible:
        return None
    mask = lungs.mask.astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(mask, connectivity=8)[2]
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    if areas.size < 2:
        if lungs.box[3] - lungs.box[1] < LEAST_WIDTH_OF_TWO:
            return None
    elif areas[1] < LEAST_LUNG_RATIO * areas[0]:
        return None
    reach = max(1, round(margin * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    # Room on all sides, so that the rim does not know where the image ends.
    roomy = cv2.copyMakeBorder(mask, *(3 * reach,) * 4, cv2.BORDER_CONSTANT, value=0)
    wider = cv2.dilate(cv2.morphologyEx(roomy, cv2.MORPH_CLOSE, disc), disc).astype(np.float32)
    soft = cv2.GaussianBlur(wider, (0, 0), reach / 2)[3 * reach : -3 * reach, 3 * reach : -3 * reach]
    height, width = shape
    part = crop(soft, standardised.region)
    field: Floats = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return field
