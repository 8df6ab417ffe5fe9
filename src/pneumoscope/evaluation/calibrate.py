"""What is fitted after training: calibrators, operating points, conformal thresholds.

All of it is fitted on images that neither trained the network nor evaluate it.
"""

from __future__ import annotations

import numpy as np

from pneumoscope.domain import OperatingPoint
from pneumoscope.errors import DataError
from pneumoscope.evaluation.extra import evaluate_extra
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray

__all__ = ["choose_operating_points", "conformal_thresholds", "fit_temperature", "fit_vector"]

SENSITIVITY_FLOOR = SPECIFICITY_FLOOR = 0.98
# Sums of sensitivity and specificity that differ by less are alike: half a standard error on 500 images.
PLATEAU = 0.01
# Temperatures outside are no calibration but the sign of a broken network.
MIN_SCALE, MAX_SCALE = 0.02, 50.0
# Pulls towards plain temperature scaling; without it a separable set sends scales and biases to infinity.
RIDGE = 1e-3
# Sums of weights that are no whole numbers miss a floor by less.
ROUNDING = 1e-9


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
    with evaluate_extra("Fitting a calibrator"):
        from scipy.optimize import brentq

    def slope(scale: float) -> float:
        excess = _softmax(scale * logits) - _softmax(np.where(possible, scale * logits, -np.inf))
        return float(weights @ (excess * logits).sum(axis=1))

    if slope(MIN_SCALE) >= 0:  # the logits tell nothing, or the contrary
        return 1 / MIN_SCALE
    if slope(MAX_SCALE) <= 0:  # every image is right: no temperature is too low
        return 1 / MAX_SCALE
    return 1 / float(brentq(slope, MIN_SCALE, MAX_SCALE, xtol=1e-9))


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
    with evaluate_extra("Fitting a calibrator"):
        from scipy.optimize import minimize
    k = logits.shape[1]

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        scale, bias = parameters[:k], parameters[k:]
        scaled = scale * logits + bias
        within = np.where(possible, scaled, -np.inf)
        away = parameters - np.r_[np.full(k, start), np.zeros(k)]
        surprise = np.logaddexp.reduce(scaled, axis=1) - np.logaddexp.reduce(within, axis=1)
        value = weights @ surprise + RIDGE * (away**2).sum() / 2
        error = (_softmax(scaled) - _softmax(within)) * weights[:, None]
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
    possible = _possible(labels, logits.shape[1])
    if not np.isfinite(logits).all():
        raise DataError(
            "a logit is not finite; the network diverged, train it again with a lower learning rate"
        )
    shares = np.ones(len(logits)) if weights is None else np.asarray(weights, dtype=np.float64)
    return logits, possible, shares / shares.sum()


def _possible(labels: IntArray | BoolArray, classes: int) -> BoolArray:
    """Return the classes that each label leaves open, shape (N, K)."""
    if labels.dtype == np.bool_:
        possible: BoolArray = labels.astype(np.bool_)
        if possible.shape[1:] != (classes,) or not possible.any(axis=1).all():
            raise DataError(f"labels must leave at least one of {classes} classes open")
        return possible
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(f"labels must lie in 0..{classes - 1}")
    named: BoolArray = labels[:, None] == np.arange(classes)
    return named


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def choose_operating_points(
    p_pneumonia: FloatArray, is_pneumonia: BoolArray, weights: FloatArray | None = None
) -> tuple[OperatingPoint, ...]:
    """Choose the thresholds ``screening``, ``balanced`` and ``rule-in``.

    * ``balanced`` lies amid the thresholds whose sensitivity + specificity (Youden, 1950) is within 0.01 of
      the greatest: the sum hardly changes over a wide range, and where in it the greatest lies is chance.
    * ``screening`` is the most specific with sensitivity ≥ 0.98, and never above ``balanced``.
    * ``rule-in`` is the most sensitive with specificity ≥ 0.98, and never below ``balanced``.

    Each lies midway between two neighbouring scores, so that rounding moves no image across it. Where no
    threshold in [0, 1] reaches a floor, the nearest to it is taken; the measured figures tell.

    Parameters
    ----------
    p_pneumonia : ndarray of float64, shape (N,)
        Calibrated probability of pneumonia, in [0, 1].
    is_pneumonia : ndarray of bool, shape (N,)
        The truth.
    weights : ndarray of float64, shape (N,), optional
        How much each counts; all alike if not given.

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
            "operating points need images with and without pneumonia; give a larger calibration set"
        )
    if not np.all((p >= 0) & (p <= 1)):
        raise DataError("operating points need probabilities in [0, 1]")
    thresholds = _cuts(np.unique(p))
    shares = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    sensitivity = 1 - _share_below(p[truth], shares[truth], thresholds)
    specificity = _share_below(p[~truth], shares[~truth], thresholds)
    balanced = _amid_the_best(thresholds, sensitivity + specificity)
    # Sensitivity falls and specificity rises with the threshold; the lowest threshold calls everything.
    screening = min(int(np.flatnonzero(sensitivity >= SENSITIVITY_FLOOR - ROUNDING)[-1]), balanced)
    reached = np.flatnonzero(specificity >= SPECIFICITY_FLOOR - ROUNDING)
    rule_in = max(int(reached[0]) if reached.size else len(thresholds) - 1, balanced)
    # The same specificity with more sensitivity is free, and the other way round.
    screening = int(np.flatnonzero(specificity == specificity[screening])[0])
    rule_in = int(np.flatnonzero(sensitivity == sensitivity[rule_in])[-1])
    return tuple(
        OperatingPoint(name, float(thresholds[i]), float(sensitivity[i]), float(specificity[i]))
        for name, i in (("screening", screening), ("balanced", balanced), ("rule-in", rule_in))
    )


def _amid_the_best(thresholds: FloatArray, youden: FloatArray) -> int:
    """Return which of the best thresholds is nearest to the middle between their ends, in log-odds."""
    best = np.flatnonzero(youden >= youden.max() - PLATEAU - ROUNDING)
    inside = np.clip(thresholds[best], 1e-6, 1 - 1e-6)
    odds = np.log(inside / (1 - inside))
    return int(best[np.abs(odds - (odds[0] + odds[-1]) / 2).argmin()])


def _share_below(scores: FloatArray, weights: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Share of the weight that lies on scores below each threshold, in [0, 1]."""
    order = np.argsort(scores)
    so_far = np.r_[0.0, np.cumsum(weights[order])]
    share: FloatArray = so_far[np.searchsorted(scores[order], thresholds, side="left")] / so_far[-1]
    return share


def _cuts(levels: FloatArray) -> FloatArray:
    """Thresholds below, between and above distinct ascending scores; those in [0, 1] that part them."""
    lower, upper = np.r_[0.0, levels], np.r_[levels, 1.0]
    middle = (lower + upper) / 2
    # Between neighbouring floats the middle rounds to one of them; the upper still parts the two.
    cuts: FloatArray = np.where(middle > lower, middle, upper)
    # Above a score of exactly 1 there is no threshold left.
    return cuts[:-1] if levels[-1] == 1 else cuts


def conformal_thresholds(
    probabilities: FloatArray,
    labels: IntArray | BoolArray,
    alpha: float = 0.1,
    patients: IntArray | None = None,
) -> tuple[float, ...]:
    """Fit prediction sets that hold the true class with probability ≥ 1 - alpha, class by class.

    Split conformal prediction, conditional on the class (Vovk, 2012, "Mondrian"), with the score 1 - p of the
    true class and the finite-sample correction: class k is in the set where ``p_k >= threshold_k``.

    Images of one patient, and disturbed views of one image, are no new evidence. So it is patients that
    are counted, each weighing one, shared out evenly over the patient's rows of the class; that keeps the
    promise for one row, drawn at random, of a patient to come (Lee, Barber and Willett, Distribution-free
    inference with hierarchical data, 2023).

    Parameters
    ----------
    probabilities : ndarray of float64, shape (N, K)
        Calibrated, of images exchangeable with those to come.
    labels : ndarray of int, shape (N,), or of bool, shape (N, K)
        True classes; or the classes that each label leaves open: rows with more than one are passed over.
    alpha : float
        Share of misses allowed, in (0, 1).
    patients : ndarray of int, shape (N,), optional
        Rows of one number belong together; each row stands for itself if not given.

    Returns
    -------
    tuple of float, length K
        0 for a class with too few images to promise anything: it is always in the set.

    Raises
    ------
    DataError
        If `alpha` is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha must lie between 0 and 1, not {alpha}")
    classes = probabilities.shape[1]
    possible = _possible(labels, classes)
    known = possible & (possible.sum(axis=1) == 1)[:, None]
    groups = np.arange(len(probabilities)) if patients is None else patients
    return tuple(
        _least_kept(probabilities[known[:, k], k], groups[known[:, k]], alpha) for k in range(classes)
    )


def _least_kept(p: FloatArray, patients: IntArray, alpha: float) -> float:
    """Return the greatest threshold that less than a share `alpha` of patients to come fall below."""
    _, index, rows = np.unique(patients, return_inverse=True, return_counts=True)
    # The patient to come may lie below any threshold: one of those who may be missed is spent on him.
    allowed = (len(rows) + 1) * alpha - 1 + ROUNDING
    if allowed < 0:
        return 0.0
    order = np.argsort(p)
    below = np.r_[0.0, np.cumsum(1 / rows[index[order]])][:-1]
    return float(p[order][np.flatnonzero(below <= allowed)[-1]])
