"""Calibrators: fitted after training, on images that neither trained the network nor evaluate it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from pneumoscope.domain import ANY_POPULATION
from pneumoscope.errors import DataError, require_extra
from pneumoscope.evaluation.observe import Observed
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray
from pneumoscope.evaluation.thresholds import (
    check_both_kinds,
    choose_operating_points,
    classes_left_open,
    conformal_thresholds,
)
from pneumoscope.model.manifest import Calibration, Calibrator
from pneumoscope.predict.calibration import (
    calibrate,
    calibrated_logits,
    log_odds,
    target_probability,
    without_shift,
)

__all__ = [
    "CONFORMAL_ALPHA",
    "Method",
    "fit_calibration",
    "fit_offset",
    "fit_temperature",
    "fit_vector",
    "refit_target",
]

Method = Literal["none", "temperature", "vector"]
"""How logits are scaled: not at all, all by one factor, or each class by its own factor and offset.

With one factor the log-odds of the target get an offset, for the right mean of its probability.
"""

CONFORMAL_ALPHA = 0.1

# Temperatures outside are no calibration but the sign of a broken network.
MIN_SCALE, MAX_SCALE = 0.02, 50.0
# Pulls towards plain temperature scaling; without it a separable set sends scales and biases to infinity.
RIDGE = 1e-3


def fit_calibration(
    observed: Observed,
    method: Method,
    *,
    fitted_on: str,
    kept: Calibration | None = None,
    population: str = ANY_POPULATION,
    n_boot: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Fit calibrator, operating points and conformal thresholds on the same images.

    Parameters
    ----------
    observed : Observed
        With augmented copies or without; the rows of an image weigh as one.
    method : {"none", "temperature", "vector"}
        How the logits are scaled.
    fitted_on : str
        What the images are, for the record.
    kept : Calibration, optional
        Whose calibrator method ``none`` leaves in force; the plain softmax if not given.
    population : str
        Name of the population that the images are of.
    n_boot, seed : int
        Resamples of the patients for the intervals of the operating points, and their seed.

    Raises
    ------
    DataError
        If there are no images with, or none without, the target.
    """
    check_both_kinds(observed.is_positive, observed.target.name)
    fitted = _calibrator(observed, method, fitted_on)
    base = kept or Calibration(prevalence=observed.prevalence)
    if fitted is not None:
        base = base.model_copy(update={"calibrator": fitted, "prevalence": observed.prevalence})
    return _with_thresholds(
        observed, base, population=population, chosen_on=fitted_on, n_boot=n_boot, seed=seed
    )


def refit_target(
    observed: Observed,
    method: Method,
    *,
    fitted_on: str,
    parent: Calibration,
    n_boot: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Fit on top of a calibration what labels can tell that do not distinguish the classes of the target.

    The log-odds of the target against the rest are scaled and then shifted (``temperature``), or both at once
    (``vector``: Platt, 1999); the classes of the target keep their shares in it, and the parent's conformal
    thresholds.

    Parameters
    ----------
    observed, method, fitted_on, n_boot, seed
        As for `fit_calibration`.
    parent : Calibration
        Of the bundle that is recalibrated.
    """
    check_both_kinds(observed.is_positive, observed.target.name)
    old, mask = parent.calibrator, observed.target_mask
    odds = log_odds(calibrated_logits(observed.logits, old, mask), mask)
    two = np.c_[np.zeros(len(odds)), odds]
    truth = observed.is_positive.astype(np.int64)
    scale, bias = 1.0, 0.0
    if method == "temperature":
        scale = 1 / fit_temperature(two, truth, observed.weights)
        bias = fit_offset(scale * odds, observed.prevalence, observed.weights)
    elif method == "vector":
        scales, biases = fit_vector(two, truth, observed.weights)
        scale, bias = float(scales[1]), float(biases[1] - biases[0])
    calibrator, prevalence = old, parent.prevalence
    if method != "none":
        before = f"; its classes as before: {old.fitted_on}" if old.fitted_on else ""
        calibrator = old.model_copy(
            update={
                "method": method if old.method == "none" else old.method,
                "odds_scale": scale * old.odds_scale,
                "odds_bias": scale * (old.odds_bias + old.prior_shift) + bias,
                "prior_shift": 0.0,
                "fitted_on": f"{fitted_on}, {observed.target.name} against the rest{before}",
            }
        )
        prevalence = observed.prevalence
    fitted = _with_thresholds(
        observed,
        Calibration(calibrator=calibrator, prevalence=prevalence),
        population=parent.population,
        chosen_on=fitted_on,
        alpha=parent.conformal_alpha or CONFORMAL_ALPHA,
        n_boot=n_boot,
        seed=seed,
    )
    if parent.conformal is None or fitted.conformal is None:
        return fitted.model_copy(update={"conformal": None, "conformal_alpha": None})
    pairs = zip(mask.tolist(), parent.conformal, fitted.conformal, strict=True)
    kept = tuple(before if of_target else now for of_target, before, now in pairs)
    return fitted.model_copy(update={"conformal": kept})


def _with_thresholds(
    observed: Observed,
    base: Calibration,
    *,
    population: str,
    chosen_on: str,
    alpha: float = CONFORMAL_ALPHA,
    n_boot: int,
    seed: int,
) -> Calibration:
    """Return calibrator and prevalence of `base` with thresholds and prediction sets of these images."""
    probabilities = calibrate(observed.logits, base.calibrator, observed.target_mask)
    as_fitted = calibrate(observed.logits, without_shift(base.calibrator), observed.target_mask)
    points = choose_operating_points(
        target_probability(probabilities, observed.target_mask),
        observed.is_positive,
        observed.weights,
        patients=observed.patients,
        target=observed.target.name,
        population=population,
        chosen_on=chosen_on,
        n_boot=n_boot,
        seed=seed,
    )
    return Calibration(
        population=population,
        calibrator=base.calibrator,
        prevalence=base.prevalence,
        operating_points=points,
        conformal=conformal_thresholds(as_fitted, observed.possible, alpha, observed.patients),
        conformal_alpha=alpha,
    )


def _calibrator(observed: Observed, method: Method, fitted_on: str) -> Calibrator | None:
    logits, possible, weights = observed.logits, observed.possible, observed.weights
    classes = logits.shape[1]
    if method == "temperature":
        factor = 1 / fit_temperature(logits, possible, weights)
        odds = log_odds(factor * logits, observed.target_mask)
        return Calibrator(
            method="temperature",
            scale=(factor,) * classes,
            bias=(0.0,) * classes,
            odds_bias=fit_offset(odds, observed.prevalence, weights),
            fitted_on=fitted_on,
        )
    if method == "vector":
        scales, biases = fit_vector(logits, possible, weights)
        scale, bias = tuple(scales.tolist()), tuple(biases.tolist())
        return Calibrator(method="vector", scale=scale, bias=bias, fitted_on=fitted_on)
    return None


def fit_temperature(
    logits: FloatArray, labels: IntArray | BoolArray, weights: FloatArray | None = None
) -> float:
    """Find the temperature that makes ``softmax(logits / T)`` most likely.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The loss is convex in 1/T where every
    label names one class; where some leave several open, this is a local minimum.

    Parameters
    ----------
    logits : ndarray, shape (N, K)
        Raw outputs of the network.
    labels : ndarray of int, shape (N,), or of bool, shape (N, K)
        True classes in 0..K-1; or the classes that each label leaves open, of which one is true.
    weights : ndarray of float64, shape (N,), optional
        How much each row counts; all alike if not given.

    Returns
    -------
    float
        T in [0.02, 50]; above 1 for an over-confident network.

    Raises
    ------
    DataError
        If there are no images, the shapes disagree, or a logit is not finite.
    MissingExtraError
        If scipy is absent.
    """
    logits, possible, weights = _checked(logits, labels, weights)
    with require_extra("evaluate", "Fitting a calibrator"):
        from scipy.optimize import brentq
        from scipy.special import softmax

    def slope(scale: float) -> float:
        excess = softmax(scale * logits, axis=1) - softmax(
            np.where(possible, scale * logits, -np.inf), axis=1
        )
        return float(weights @ (excess * logits).sum(axis=1))

    if slope(MIN_SCALE) >= 0:  # the logits do not separate the classes
        return 1 / MIN_SCALE
    if slope(MAX_SCALE) <= 0:  # every image is right: no temperature is too low
        return 1 / MAX_SCALE
    return 1 / float(brentq(slope, MIN_SCALE, MAX_SCALE, xtol=1e-9))


def fit_offset(odds: FloatArray, prevalence: float, weights: FloatArray | None = None) -> float:
    """Find what to add to log-odds for the mean of their probabilities to be the prevalence.

    A temperature leaves the prevalence that a network was trained at, such as one half where the classes were
    balanced, in its probabilities.

    Parameters
    ----------
    odds : ndarray of float64, shape (N,)
        Log-odds of the target.
    prevalence : float
        Share of images with the target, above 0 and below 1.
    weights : ndarray of float64, shape (N,), optional
        How much each row counts; all alike if not given.

    Raises
    ------
    MissingExtraError
        If scipy is absent.
    """
    with require_extra("evaluate", "Fitting a calibrator"):
        from scipy.optimize import brentq
        from scipy.special import expit

    def excess(offset: float) -> float:
        return float(np.average(expit(odds + offset), weights=weights)) - prevalence

    # Where no image is near the limit, as with separable logits, any offset up to the nearest one would do.
    if abs(excess(0.0)) < 1e-9:
        return 0.0
    furthest = float(np.abs(odds).max()) + abs(math.log(prevalence / (1 - prevalence))) + 1
    return float(brentq(excess, -furthest, furthest, xtol=1e-9))


def fit_vector(
    logits: FloatArray, labels: IntArray | BoolArray, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Find scale and bias per class that make ``softmax(scale * logits + bias)`` most likely.

    Vector scaling (Guo et al., ICML 2017) with a weak ridge towards the temperature that `fit_temperature`
    finds. It starts there, so the result is never less likely on these images than temperature scaling.

    Parameters
    ----------
    logits, labels, weights
        As for `fit_temperature`.

    Returns
    -------
    scale, bias : ndarray of float64, shape (K,)
        Scales in [0.02, 50]; biases sum to zero.

    Raises
    ------
    DataError, MissingExtraError
        As `fit_temperature`.
    """
    start = 1 / fit_temperature(logits, labels, weights)
    logits, possible, weights = _checked(logits, labels, weights)
    with require_extra("evaluate", "Fitting a calibrator"):
        from scipy.optimize import minimize
        from scipy.special import softmax
    k = logits.shape[1]

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        scale, bias = parameters[:k], parameters[k:]
        scaled = scale * logits + bias
        within = np.where(possible, scaled, -np.inf)
        away = parameters - np.r_[np.full(k, start), np.zeros(k)]
        surprise = np.logaddexp.reduce(scaled, axis=1) - np.logaddexp.reduce(within, axis=1)
        value = weights @ surprise + RIDGE * (away**2).sum() / 2
        error = (softmax(scaled, axis=1) - softmax(within, axis=1)) * weights[:, None]
        return float(value), np.r_[(error * logits).sum(axis=0), error.sum(axis=0)] + RIDGE * away

    bounds = [(MIN_SCALE, MAX_SCALE)] * k + [(None, None)] * k
    found = minimize(loss, np.r_[np.full(k, start), np.zeros(k)], jac=True, method="L-BFGS-B", bounds=bounds)
    scale, bias = found.x[:k], found.x[k:]
    return scale, bias - bias.mean()


def _checked(
    logits: FloatArray, labels: IntArray | BoolArray, weights: FloatArray | None
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Return logits, the classes that each label leaves open, and weights that sum to 1."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise DataError(
            f"a calibrator needs logits (N, K) and N labels, not {logits.shape} and {labels.shape}"
        )
    possible = classes_left_open(labels, logits.shape[1])
    if not np.isfinite(logits).all():
        raise DataError(
            "a logit is not finite; the network diverged, train it again with a lower learning rate"
        )
    shares = np.ones(len(logits)) if weights is None else np.asarray(weights, dtype=np.float64)
    return logits, possible, shares / shares.sum()
