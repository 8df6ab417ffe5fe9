"""Where in the image the evidence for the target finding lies: class activation and occlusion maps.

Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016: in a network whose head is
linear on pooled features, the weights that score the pooled features score each location as well. No
gradient is needed, and the map comes from the same pass as the probabilities.

A location without evidence does not score 0 but what the network takes from normal lung. So the map is drawn
relative to the mean features of chests without the finding, averaged over all locations as well. How the map
is made of them was chosen by measurement; see ``docs/explanation/heat-maps.md``.

Occlusion sensitivity (Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014)
darkens a patch, as if it contained more air, and measures by how much the log-odds of the target fall. It
does not depend on the network's structure and so checks the class activation map, at the cost of two hundred
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation
from pneumoscope.image.standardise import Standardised, crop, rotated_box
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate

__all__ = [
    "MAP_STYLE",
    "LogOdds",
    "MapStyle",
    "blurred",
    "explain",
    "heat_map",
    "occlusion_evidence",
    "target_evidence",
]

Floats = npt.NDArray[np.float32]

LogOdds = Callable[[Floats], npt.NDArray[np.float64]]
"""From inputs, shape (N, C, S, S), to the calibrated log-odds of the target, shape (N,)."""

PATCH = 0.2  # of the input's side
GRID = 14  # patches along a side
BATCH = 28
# A black patch, or one without detail, is no healthy lung: networks tend to call it pneumonia.
DARKER = 0.7
BLUR = 0.1  # standard deviation, of the input's side

# Weaker evidence, in logits, stays faint: a clear chest gets no bright spot. Activation maps of the shipped
# network peak at 3.5 in normal children and 6.2 in normal adults (medians of 50 validation images; 90% below
# 8.2 and 10.9), at 19 and 21 in pneumonia (90% above 12.5): they say what the log-odds would be if the whole
# image were like this place. Those of a network trained by `make demo` peak at 6 in pneumonia. Occlusion
# speaks of a patch.
LEAST_SCALE = {"cam": 9.0, "occlusion": 1.0}
# Of the distance between two locations: a map of three by three would show where one ends. That of the
# shipped network has ten by ten, so that this is the smoothing that scored best for it.
LEAST_SMOOTHING = 0.3
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
        Standard deviation of a Gaussian over the linearly upsampled evidence, as a share of the input's side;
        more where the locations of the evidence are far apart, and none if 0. Together they are smooth and,
        unlike a cubic, make no evidence that is not there.
    lung_margin : float or None
        Keep the map to the lung fields and this margin, a share of the image's side, where the segmenter
        found two plausible lungs; lungs that a consolidation hides are often missed in part. None keeps it
        to nothing.
    """

    smoothing: float = 0.03
    lung_margin: float | None = 0.03


MAP_STYLE = MapStyle()
"""The style that scored best on validation patients."""


def target_evidence(
    features: Floats,
    weight: Floats,
    probabilities: npt.NDArray[np.float64],
    target_mask: npt.NDArray[np.bool_],
    scale: npt.ArrayLike = 1.0,
    *,
    against: npt.NDArray[np.float64] | None = None,
) -> Floats:
    """Return the evidence for the target against the other classes at each location, in calibrated logits.

    The classes of the target are averaged by their share in its probability, and the others by their share in
    theirs. By those of the image, that is how its log-odds of the target depend on the features.

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps.
    weight : ndarray of float32, shape (K, D)
        The head.
    probabilities : ndarray of float64, shape (K,)
        Calibrated.
    target_mask : ndarray of bool, shape (K,)
        The classes that count as the target.
    scale : array_like, shape () or (1,) or (K,)
        The calibrator's scale.
    against : ndarray of float64, shape (K,), optional
        Probabilities by which the other classes are averaged; those of the image if not given.

    Returns
    -------
    ndarray of float32, shape (h, w)
        Without `against`, its mean over all locations is the log-odds of the target, except for the biases.
    """
    scaled = weight * np.broadcast_to(np.asarray(scale, np.float64), len(weight))[:, None]
    inside, outside = (
        shares[mask] / max(float(shares[mask].sum()), np.finfo(np.float64).tiny) @ scaled[mask]
        for shares, mask in (
            (probabilities, target_mask),
            (probabilities if against is None else against, ~target_mask),
        )
    )
    return np.tensordot(inside - outside, features, axes=1).astype(np.float32)


def explain(
    features: Floats,
    weight: Floats,
    probabilities: npt.NDArray[np.float64],
    standardised: Standardised,
    calibrator: Calibrator,
    *,
    target: str,
    target_mask: npt.NDArray[np.bool_],
    bias: Floats | None = None,
    background: Floats | None = None,
    style: MapStyle = MAP_STYLE,
) -> Explanation:
    """Make the class activation map for the target over the part of the image that the network saw.

    With background and bias the other classes are averaged by the probabilities of the mean chest without the
    finding. By those of the image, one that is surely abnormal would show nothing but what tells the target
    from other abnormal chests.

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps for this image.
    weight : ndarray of float32, shape (K, D)
        The head.
    probabilities : ndarray of float64, shape (K,)
        Calibrated.
    standardised : Standardised
        The network's input and where in the image it came from.
    calibrator : Calibrator
        Its scale makes the evidence comparable with the probabilities.
    target : str
        Name of the finding.
    target_mask : ndarray of bool, shape (K,)
        The classes that count as it.
    bias : ndarray of float32, shape (K,), optional
        Of the head.
    background : ndarray of float32, shape (D, h, w), optional
        Mean features of chests without the finding; the map is drawn relative to their mean over all places.
    style : MapStyle
        How the map is made of the evidence.
    """
    beyond, against = features, None
    if background is not None:
        mean = background.mean(axis=(1, 2))
        beyond = features - mean[:, None, None]
        if bias is not None:
            against = calibrate(weight @ mean + bias, calibrator, target_mask)
    scale = calibrator.odds_scale * np.asarray(calibrator.scale)
    evidence = target_evidence(beyond, weight, probabilities, target_mask, scale, against=against)
    return heat_map(evidence, standardised, target, style)


def heat_map(
    evidence: Floats,
    standardised: Standardised,
    finding: str,
    style: MapStyle = MAP_STYLE,
    *,
    method: Literal["cam", "occlusion"] = "cam",
) -> Explanation:
    """Map evidence on a grid over the network's input to the frame of the image.

    Only evidence for the finding is shown; evidence against it is 0. The strongest location is 1, unless it
    is weak: see `LEAST_SCALE`.

    Parameters
    ----------
    evidence : ndarray of float32, shape (h, w)
        In logits.
    standardised : Standardised
        The network's input.
    finding : str
        The finding that the evidence is for.
    style : MapStyle
        How the map is made of it.
    method : {"cam", "occlusion"}
        How the evidence was found.
    """
    side = standardised.pixels.shape[-1]
    fine: Floats = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    if style.smoothing > 0:
        share = max(style.smoothing, LEAST_SMOOTHING / min(evidence.shape))
        fine = cv2.GaussianBlur(fine, (0, 0), share * side, borderType=cv2.BORDER_REFLECT)
    top, left, bottom, right = (round(edge * side) for edge in standardised.content)
    part: Floats = np.maximum(fine[top:bottom, left:right], np.float32(0))
    if style.lung_margin is not None:
        field = _lung_field(standardised, part.shape, style.lung_margin)
        part = part if field is None else part * field
    scaled: Floats = part / np.float32(max(float(part.max(initial=0)), LEAST_SCALE[method]))
    # In the orientation of the image, which is the one that readers have.
    back = -standardised.quarter_turns
    heatmap = np.ascontiguousarray(np.rot90(scaled, back))
    return Explanation(finding, heatmap, rotated_box(standardised.region, back), method)


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


def blurred(pixels: Floats) -> Floats:
    """Return the input without detail: a Gaussian with a standard deviation of a tenth of the side.

    Parameters
    ----------
    pixels : ndarray of float32, shape (C, S, S)
        Grey levels in [0, 1].
    """
    sigma = BLUR * pixels.shape[-1]
    channels = [cv2.GaussianBlur(one, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) for one in pixels]
    return np.stack(channels).astype(np.float32)


def occlusion_evidence(log_odds: LogOdds, pixels: Floats) -> Floats:
    """Return how much the log-odds of the target depend on each location.

    Parameters
    ----------
    log_odds : callable
        The network.
    pixels : ndarray of float32, shape (C, S, S)
        One input.

    Returns
    -------
    ndarray of float32, shape (S, S)
        Mean fall of the log-odds over the patches that cover a pixel; a patch is a fifth of the side wide,
        with a soft rim, and shows the image at 0.7 of its grey levels.
    """
    side = pixels.shape[-1]
    centres = (np.arange(GRID, dtype=np.float32) + 0.5) * side / GRID
    places = np.arange(side, dtype=np.float32) + 0.5
    # One axis of a soft square: 1 inside, 0 outside, a rim of an eighth of the patch between.
    half, rim = PATCH * side / 2, max(1.0, PATCH * side / 8)
    cover = np.clip((half - np.abs(places - centres[:, None])) / rim + 0.5, 0, 1).astype(np.float32)
    total, weight = np.zeros((side, side)), np.zeros((side, side))
    whole = float(log_odds(pixels[None])[0])
    patches = [(row, column) for row in range(GRID) for column in range(GRID)]
    for start in range(0, len(patches), BATCH):
        masks = np.stack(
            [np.outer(cover[row], cover[column]) for row, column in patches[start : start + BATCH]]
        )
        occluded = pixels * (1 - (1 - DARKER) * masks[:, None])
        falls = whole - log_odds(occluded.astype(np.float32))
        total += np.tensordot(falls, masks, axes=1)
        weight += masks.sum(axis=0)
    # The patches stand closer than they are wide, so every pixel is covered.
    return (total / weight).astype(np.float32)
