"""Where in the image the evidence for pneumonia lies, asked of the network one place at a time.

Occlusion sensitivity: Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014.
A patch is darkened, as if there were more air in it, and the log-odds of pneumonia fall by what it was worth.
It knows nothing of the network's inside, so it is a check on the class activation map, at the price of two
hundred passes.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["LogOdds", "blurred", "occlusion_evidence"]

Floats = npt.NDArray[np.float32]
LogOdds = Callable[[Floats], npt.NDArray[np.float64]]
"""From inputs, shape (N, C, S, S), to the calibrated log-odds of pneumonia, shape (N,)."""

PATCH = 0.2  # of the input's side
GRID = 14  # patches along a side
BATCH = 28
# A black patch, or one without detail, is no healthy lung: networks tend to call it pneumonia.
DARKER = 0.7
BLUR = 0.1  # standard deviation, of the input's side


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
    """Return how much the log-odds of pneumonia owe to each place.

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
