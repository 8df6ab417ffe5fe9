"""What is fitted after training: calibrators, operating points, conformal thresholds.

All of it is fitted on pictures that neither trained the network nor judge it.
"""

from __future__ import annotations

import math

import numpy as np

from pneumoscope.domain import DataError, OperatingPoint
from pneumoscope.evaluate.extra import evaluate_extra
from pneumoscope.evaluate.scores import BoolArray, FloatArray, IntArray

__all__ = ["choose_operating_points", "conformal_thresholds", "fit_temperature", "fit_vector"]

SENSITIVITY_FLOOR = SPECIFICITY_FLOOR = 0.98
# Temperatures outside are no calibration but the sign of a broken network.
MIN_SCALE, MAX_SCALE = 0.02, 50.0
# Pulls towards plain temperature scaling; without it a separable set sends scales and biases to infinity.
RIDGE = 1e-3


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Find the temperature that makes ``softmax(logits / T)`` most likely.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The loss is convex in 1/T.

    Parameters
    ----------
    logits : ndarray, shape (N, K)
        Raw outputs of the network.
    labels : ndarray of int, shape (N,)
        True classes in 0..K-1.

    Returns
    -------
    float
        T in [0.02, 50]; above 1 for an over-confident network.

    Raises
    ------
    DataError
        If there are no pictures, the shapes disagree, or a logit is not finite.
    MissingExtraError
        If scipy is absent.
    """
    logits, labels = _checked(logits, labels)
    with evaluate_extra("Fitting a calibrator"):
        from scipy.optimize import brentq
    rows = np.arange(len(labels))
    own = logits[rows, labels]

    def slope(scale: float) -> float:
        return float(((_softmax(scale * logits) * logits).sum(axis=1) - own).mean())

    if slope(MIN_SCALE) >= 0:  # the logits tell nothing, or the contrary
        return 1 / MIN_SCALE
    if slope(MAX_SCALE) <= 0:  # every picture is right: no temperature is too low
        return 1 / MAX_SCALE
    return 1 / float(brentq(slope, MIN_SCALE, MAX_SCALE, xtol=1e-9))


def fit_vector(logits: FloatArray, labels: IntArray) -> tuple[FloatArray, FloatArray]:
    """Find scale and bias per class that make ``softmax(scale * logits + bias)`` most likely.

    Vector scaling (Guo et al., ICML 2017) with a weak ridge towards the temperature that `fit_temperature`
    finds. It starts there, so the result is never less likely on these pictures than temperature scaling.

    Parameters
    ----------
    logits : ndarray, shape (N, K)
    labels : ndarray of int, shape (N,)

    Returns
    -------
    scale, bias : ndarray of float64, shape (K,)
        Scales in [0.02, 50]; biases sum to zero.

    Raises
    ------
    DataError, MissingExtraError
        As `fit_temperature`.
    """
    logits, labels = _checked(logits, labels)
    start = 1 / fit_temperature(logits, labels)
    with evaluate_extra("Fitting a calibrator"):
        from scipy.optimize import minimize
    n, k = logits.shape
    truth = (labels[:, None] == np.arange(k)).astype(np.float64)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        scale, bias = parameters[:k], parameters[k:]
        scaled = scale * logits + bias
        top = scaled.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        away = parameters - np.r_[np.full(k, start), np.zeros(k)]
        value = (log_sum - (scaled * truth).sum(axis=1)).mean() + RIDGE * (away**2).sum() / 2
        error = (np.exp(scaled - log_sum[:, None]) - truth) / n
        return float(value), np.r_[(error * logits).sum(axis=0), error.sum(axis=0)] + RIDGE * away

    bounds = [(MIN_SCALE, MAX_SCALE)] * k + [(None, None)] * k
    found = minimize(loss, np.r_[np.full(k, start), np.zeros(k)], jac=True, method="L-BFGS-B", bounds=bounds)
    scale, bias = found.x[:k], found.x[k:]
    return scale, bias - bias.mean()


def _checked(logits: FloatArray, labels: IntArray) -> tuple[FloatArray, IntArray]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise DataError(
            f"a calibrator needs logits (N, K) and N labels, not {logits.shape} and {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(f"labels must lie in 0..{logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise DataError(
            "a logit is not finite; the network diverged, train it again with a lower learning rate"
        )
    return logits, labels


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def choose_operating_points(p_pneumonia: FloatArray, is_pneumonia: BoolArray) -> tuple[OperatingPoint, ...]:
    """Choose the thresholds ``screening``, ``balanced`` and ``rule-in``.

    * ``balanced`` has the greatest sensitivity + specificity (Youden, 1950).
    * ``screening`` is the most specific with sensitivity ≥ 0.98, and never above ``balanced``.
    * ``rule-in`` is the most sensitive with specificity ≥ 0.98, and never below ``balanced``.

    Each lies midway between two neighbouring scores, so that rounding moves no picture across it. Where no
    threshold in [0, 1] reaches a floor, the nearest to it is taken; the measured figures tell.

    Parameters
    ----------
    p_pneumonia : ndarray of float64, shape (N,)
        Calibrated probability of pneumonia, in [0, 1].
    is_pneumonia : ndarray of bool, shape (N,)
        The truth.

    Returns
    -------
    tuple of OperatingPoint
        In the order above: screening, balanced, rule-in; thresholds never fall.

    Raises
    ------
    DataError
        If only one class is there, or a score is outside [0, 1].
    """
    p, truth = np.asarray(p_pneumonia, dtype=np.float64), np.asarray(is_pneumonia, dtype=np.bool_)
    if p.shape != truth.shape or truth.all() or not truth.any():
        raise DataError(
            "operating points need pictures with and without pneumonia; give a larger calibration set"
        )
    if not np.all((p >= 0) & (p <= 1)):
        raise DataError("operating points need probabilities in [0, 1]")
    thresholds = _cuts(np.unique(p))
    # Pictures at or above each threshold.
    hits = truth.sum() - np.searchsorted(np.sort(p[truth]), thresholds, side="left")
    sensitivity = hits / truth.sum()
    specificity = np.searchsorted(np.sort(p[~truth]), thresholds, side="left") / (~truth).sum()
    youden = np.round(sensitivity + specificity, 12)
    balanced = int(np.lexsort((np.abs(sensitivity - specificity), -youden))[0])
    # Sensitivity falls and specificity rises with the threshold; the lowest threshold calls everything.
    screening = min(int(np.flatnonzero(sensitivity >= SENSITIVITY_FLOOR)[-1]), balanced)
    reached = np.flatnonzero(specificity >= SPECIFICITY_FLOOR)
    rule_in = max(int(reached[0]) if reached.size else len(thresholds) - 1, balanced)
    # The same specificity with more sensitivity is free, and the other way round.
    screening = int(np.flatnonzero(specificity == specificity[screening])[0])
    rule_in = int(np.flatnonzero(sensitivity == sensitivity[rule_in])[-1])
    return tuple(
        OperatingPoint(name, float(thresholds[i]), float(sensitivity[i]), float(specificity[i]))
        for name, i in (("screening", screening), ("balanced", balanced), ("rule-in", rule_in))
    )


def _cuts(levels: FloatArray) -> FloatArray:
    """Thresholds below, between and above distinct ascending scores; those in [0, 1] that part them."""
    lower, upper = np.r_[0.0, levels], np.r_[levels, 1.0]
    middle = (lower + upper) / 2
    # Between neighbouring floats the middle rounds to one of them; the upper still parts the two.
    cuts: FloatArray = np.where(middle > lower, middle, upper)
    # Above a score of exactly 1 there is no threshold left.
    return cuts[:-1] if levels[-1] == 1 else cuts


def conformal_thresholds(
    probabilities: FloatArray, labels: IntArray, alpha: float = 0.1
) -> tuple[float, ...]:
    """Fit prediction sets that hold the true class with probability ≥ 1 - alpha, class by class.

    Split conformal prediction, conditional on the class (Vovk, 2012, "Mondrian"), with the score 1 - p of the
    true class and the finite-sample correction: class k is in the set where ``p_k >= threshold_k``.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (N, K)
        Calibrated, of pictures exchangeable with those to come.
    labels : ndarray of int, shape (N,)
        True classes.
    alpha : float
        Share of misses allowed, in (0, 1).

    Returns
    -------
    tuple of float, length K
        0 for a class with too few pictures to promise anything: it is always in the set.

    Raises
    ------
    DataError
        If `alpha` is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha must lie between 0 and 1, not {alpha}")
    thresholds = []
    for k in range(probabilities.shape[1]):
        own = np.sort(probabilities[labels == k, k])
        # A new score falls below the r-th smallest of n with probability at most r / (n + 1).
        allowed = min(math.floor((len(own) + 1) * alpha + 1e-9), len(own))
        thresholds.append(float(own[allowed - 1]) if allowed else 0.0)
    return tuple(thresholds)
