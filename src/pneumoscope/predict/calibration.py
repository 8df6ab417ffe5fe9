"""From logits to calibrated probabilities, a decision and a prediction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import OperatingPoint, Target
from pneumoscope.model.manifest import Calibrator

__all__ = ["calibrate", "calibrated_logits", "decide", "is_uncertain", "log_odds", "prediction_set"]

Mask = npt.NDArray[np.bool_]


def calibrated_logits(
    logits: npt.ArrayLike, calibrator: Calibrator, target_mask: Mask
) -> npt.NDArray[np.float64]:
    """Return scale * logits + bias, shifted so that the log-odds of the target are calibrated as well.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        The network's outputs.
    calibrator : Calibrator
        Its scale and bias have one value, or K.
    target_mask : ndarray of bool, shape (K,)
        The classes that count as the target.

    Returns
    -------
    ndarray of float64, shape (..., K)
    """
    scale, bias = np.asarray(calibrator.scale), np.asarray(calibrator.bias)
    scaled: npt.NDArray[np.float64] = scale * np.asarray(logits, dtype=np.float64) + bias
    if (calibrator.odds_scale, calibrator.odds_bias) != (1.0, 0.0):
        odds = log_odds(scaled, target_mask)
        shift = odds - (calibrator.odds_scale * odds + calibrator.odds_bias)
        # Only the other classes are shifted, all alike: shares within the target and within the rest stay.
        scaled[..., ~target_mask] += shift[..., None]
    return scaled


def log_odds(logits: npt.NDArray[np.float64], target_mask: Mask) -> npt.NDArray[np.float64]:
    """Return the log-odds of the target against the other classes, shape (...), of logits (..., K)."""
    inside, outside = (
        np.logaddexp.reduce(logits[..., mask], axis=-1) for mask in (target_mask, ~target_mask)
    )
    odds: npt.NDArray[np.float64] = inside - outside
    return odds


def calibrate(logits: npt.ArrayLike, calibrator: Calibrator, target_mask: Mask) -> npt.NDArray[np.float64]:
    """Return the softmax of `calibrated_logits` over the last axis.

    Parameters
    ----------
    logits, calibrator, target_mask
        As for `calibrated_logits`.

    Returns
    -------
    ndarray of float64, shape (..., K)
        Probabilities in [0, 1] that add up to 1.
    """
    scaled = calibrated_logits(logits, calibrator, target_mask)
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return probabilities


def decide(p_target: float, point: OperatingPoint, target: Target) -> str:
    """Compare the calibrated probability of the target with the threshold of an operating point.

    The threshold itself counts as the target.
    """
    return target.name if p_target >= point.threshold else target.absent


def prediction_set(probabilities: npt.ArrayLike, conformal: tuple[float, ...] | None) -> tuple[int, ...]:
    """Return the classes that cannot be ruled out at the level the thresholds were chosen for.

    Class-conditional split conformal prediction: Vovk, *Conditional validity of inductive conformal
    predictors*, Machine Learning 2013.

    Parameters
    ----------
    probabilities : array_like, shape (K,)
        Calibrated probabilities.
    conformal : tuple of float or None
        Per class, the least probability at which the class enters the set.

    Returns
    -------
    tuple of int
        Class numbers in the order of the outputs; empty where no class reaches its threshold, or where
        the bundle has no thresholds.
    """
    if conformal is None:
        return ()
    reached = np.asarray(probabilities) >= np.asarray(conformal)
    return tuple(int(index) for index in np.flatnonzero(reached))


def is_uncertain(kept: tuple[int, ...], target_mask: Mask, conformal: tuple[float, ...] | None) -> bool:
    """Return whether a prediction set leaves the target open.

    It holds classes of the target and others; or none at all, although there are thresholds: the image
    resembles no class.
    """
    if not kept:
        return conformal is not None
    inside = target_mask[list(kept)]
    return bool(inside.any() and not inside.all())
