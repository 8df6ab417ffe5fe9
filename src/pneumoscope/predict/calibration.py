"""From raw logits to calibrated probabilities, a decision and a prediction set."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import OperatingPoint
from pneumoscope.model.manifest import Calibrator

__all__ = ["Decision", "calibrate", "calibrated_logits", "decide", "log_odds", "prediction_set"]

Decision = Literal["pneumonia", "no pneumonia"]


def calibrated_logits(logits: npt.ArrayLike, calibrator: Calibrator) -> npt.NDArray[np.float64]:
    """Return scale * logits + bias, the first moved so that the log-odds of pneumonia are as calibrated.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        The network's outputs; the first is normal.
    calibrator : Calibrator
        Its scale and bias have one value, or K.

    Returns
    -------
    ndarray of float64, shape (..., K)
    """
    scale, bias = np.asarray(calibrator.scale), np.asarray(calibrator.bias)
    scaled: npt.NDArray[np.float64] = scale * np.asarray(logits, dtype=np.float64) + bias
    if (calibrator.odds_scale, calibrator.odds_bias) != (1.0, 0.0):
        wanted = calibrator.odds_scale * log_odds(scaled) + calibrator.odds_bias
        # Only the normal logit moves, so the subtypes of pneumonia keep their shares in it.
        scaled[..., 0] = np.logaddexp.reduce(scaled[..., 1:], axis=-1) - wanted
    return scaled


def log_odds(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the log-odds of any pneumonia against normal, shape (...), of logits of shape (..., K)."""
    odds: npt.NDArray[np.float64] = np.logaddexp.reduce(logits[..., 1:], axis=-1) - logits[..., 0]
    return odds


def calibrate(logits: npt.ArrayLike, calibrator: Calibrator) -> npt.NDArray[np.float64]:
    """Return the softmax of `calibrated_logits` over the last axis.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        The network's outputs.
    calibrator : Calibrator
        Its scale and bias have one value, or K.

    Returns
    -------
    ndarray of float64, shape (..., K)
        Probabilities in [0, 1] that add up to 1.
    """
    scaled = calibrated_logits(logits, calibrator)
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return probabilities


def decide(p_pneumonia: float, point: OperatingPoint) -> Decision:
    """Compare the calibrated probability of pneumonia with the threshold of an operating point.

    The threshold itself counts as pneumonia.
    """
    return "pneumonia" if p_pneumonia >= point.threshold else "no pneumonia"


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
