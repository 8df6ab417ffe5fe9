"""From logits to calibrated probabilities, a decision and a prediction set."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import OperatingPoint, Target
from pneumoscope.errors import BundleError
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import BundleManifest, Calibration, Calibrator

__all__ = [
    "LEAST_PREVALENCE",
    "assumed_prevalence",
    "at_prevalence",
    "bundle_at_prevalence",
    "calibrate",
    "calibrated_logits",
    "decide",
    "is_uncertain",
    "log_odds",
    "prediction_set",
    "target_probability",
    "without_shift",
]

Mask = npt.NDArray[np.bool_]

Floats = npt.NDArray[np.float64]

NO_SHIFT = 1e-9
"""Log-odds that differ by less are of the same prevalence, but for rounding."""

LEAST_PREVALENCE = 1e-12
"""Nearer to 0 or to 1, log-odds lose their digits."""


def calibrated_logits(
    logits: npt.ArrayLike, calibrator: Calibrator, target_mask: Mask
) -> npt.NDArray[np.float64]:
    """Return scale * logits + bias, shifted so that the log-odds of the target are calibrated as well.

    They are those at the prevalence of the calibration, or at the one that `at_prevalence` was given.

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
    offset = calibrator.odds_bias + calibrator.prior_shift
    if (calibrator.odds_scale, offset) != (1.0, 0.0):
        odds = log_odds(scaled, target_mask)
        shift = odds - (calibrator.odds_scale * odds + offset)
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


def at_prevalence(manifest: BundleManifest, prevalence: float) -> BundleManifest:
    """Return the manifest for images of which another share has the target than at calibration.

    The log-odds of the target are shifted by the difference of the log-odds of both prevalences, and the
    thresholds of the operating points with them (Saerens et al., *Adjusting the Outputs of a Classifier to
    New a Priori Probabilities*, Neural Computation 2002): the probabilities change; decisions, sensitivity,
    specificity and prediction sets do not.

    Parameters
    ----------
    manifest : BundleManifest
    prevalence : float
        Expected share of images with the target, above 0 and below 1 by at least `LEAST_PREVALENCE`.

    Raises
    ------
    BundleError
        If the bundle does not state the prevalence that it was calibrated at.
    ValueError
        If the prevalence is not in this range.
    """
    if not LEAST_PREVALENCE <= prevalence <= 1 - LEAST_PREVALENCE:
        raise ValueError(f"the prevalence must be above 0 and below 1, not {prevalence}")
    shifted = tuple(_shifted(manifest.name, one, prevalence) for one in manifest.calibrations)
    return manifest.model_copy(update={"calibrations": shifted})


def bundle_at_prevalence(bundle: Bundle, prevalence: float) -> Bundle:
    """Return a bundle for another prevalence; see `at_prevalence`.

    Results name the bundle as their parent and the hash of its calibration, as of a recalibrated one.
    """
    manifest = at_prevalence(bundle.manifest, prevalence)
    if manifest == bundle.manifest:
        return bundle
    provenance = manifest.provenance.model_copy(update={"parent": bundle.identity})
    return replace(bundle, manifest=manifest.model_copy(update={"provenance": provenance}))


def _shifted(bundle: str, calibration: Calibration, prevalence: float) -> Calibration:
    stated, calibrator = calibration.prevalence, calibration.calibrator
    if stated is None or not 0 < stated < 1:
        raise BundleError(
            f"{bundle}: does not state the prevalence that it was calibrated at; recalibrate it"
        )
    shift = _logit(prevalence) - _logit(stated)
    added = shift - calibrator.prior_shift
    if abs(added) < NO_SHIFT:
        return calibration
    points = tuple(
        replace(point, threshold=_moved(point.threshold, added)) for point in calibration.operating_points
    )
    moved = calibrator.model_copy(update={"prior_shift": shift})
    return calibration.model_copy(update={"calibrator": moved, "operating_points": points})


def assumed_prevalence(calibration: Calibration) -> float | None:
    """Return the prevalence that probabilities are for; None where it is not stated."""
    stated, shift = calibration.prevalence, calibration.calibrator.prior_shift
    return stated if stated is None or not shift else _moved(stated, shift)


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _moved(p: float, shift: float) -> float:
    # Both ends stay: everything, or nothing, is the target at any prevalence.
    return 1 / (1 + math.exp(-_logit(p) - shift)) if 0 < p < 1 else p


def without_shift(calibrator: Calibrator) -> Calibrator:
    """Return the calibrator at the prevalence that it was fitted at, for prediction sets."""
    return calibrator.model_copy(update={"prior_shift": 0.0})


def target_probability(probabilities: Floats, target_mask: Mask) -> Floats:
    """Return the probability of the target, shape (...): the sum over its classes, in [0, 1].

    Parameters
    ----------
    probabilities : ndarray of float64, shape (..., K)
    target_mask : ndarray of bool, shape (K,)
        The classes that count as the target.
    """
    # By rounding, a sum may exceed 1.
    return np.asarray(np.minimum(probabilities[..., target_mask].sum(axis=-1), 1.0))


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
