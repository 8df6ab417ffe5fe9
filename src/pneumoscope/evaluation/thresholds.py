"""Thresholds on calibrated probabilities: operating points, and conformal prediction sets."""

from __future__ import annotations

import numpy as np

from pneumoscope.domain import ANY_POPULATION, OperatingPoint
from pneumoscope.errors import DataError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray

__all__ = [
    "DEFAULT_POINT",
    "check_both_kinds",
    "choose_operating_points",
    "classes_left_open",
    "conformal_thresholds",
]

DEFAULT_POINT = "balanced"
"""The operating point that a bundle decides at unless another one is chosen."""

SENSITIVITY_FLOOR = SPECIFICITY_FLOOR = 0.98
# Sums of sensitivity and specificity that differ by less are alike: half a standard error on 500 images.
PLATEAU = 0.01
# Sums of weights that are no whole numbers miss a floor by less.
ROUNDING = 1e-9
# Conformal threshold of a class that no label names.
UNSEEN = 0.5

CRITERIA = {
    "screening": f"sensitivity at least {SENSITIVITY_FLOOR:.2f}",
    DEFAULT_POINT: "near the maximum of Youden's J",
    "rule-in": f"specificity at least {SPECIFICITY_FLOOR:.2f}",
}


def check_both_kinds(is_positive: BoolArray, target: str) -> None:
    """Raise `DataError` unless there are images with the target and images without it."""
    if is_positive.all() or not is_positive.any():
        raise DataError(
            f"operating points need images with and without {target}; give a larger calibration set"
        )


def choose_operating_points(
    p_target: FloatArray,
    is_positive: BoolArray,
    weights: FloatArray | None = None,
    *,
    patients: IntArray | None = None,
    target: str = "the target",
    population: str = ANY_POPULATION,
    chosen_on: str = "",
    n_boot: int = 1000,
    seed: int = 0,
) -> tuple[OperatingPoint, ...]:
    """Choose the thresholds ``screening``, ``balanced`` and ``rule-in``.

    * ``balanced`` lies in the middle of the thresholds whose sensitivity + specificity (Youden, 1950) is
      within 0.01 of the maximum: the sum is flat there, and where exactly its maximum lies is chance.
    * ``screening`` is the most specific with sensitivity ≥ 0.98, and never above ``balanced``.
    * ``rule-in`` is the most sensitive with specificity ≥ 0.98, and never below ``balanced``.

    Each lies midway between two neighbouring scores, so that rounding moves no image across it. Where no
    threshold in [0, 1] reaches a floor, the nearest to it is taken; sensitivity and specificity tell.

    Parameters
    ----------
    p_target : ndarray of float64, shape (N,)
        Calibrated probability of the target, in [0, 1].
    is_positive : ndarray of bool, shape (N,)
        The truth.
    weights : ndarray of float64, shape (N,), optional
        How much each counts; all alike if not given.
    patients : ndarray of int64, shape (N,), optional
        Rows of one number are resampled together; each row stands for itself if not given.
    target, population, chosen_on : str
        Name of the target, for messages; the population and the images, for the record.
    n_boot, seed : int
        Resamples of the patients for the 95% intervals, and their seed; 0 gives values without intervals.

    Returns
    -------
    tuple of OperatingPoint
        In the order above: screening, balanced, rule-in; thresholds never fall.

    Raises
    ------
    DataError
        If only one class is there, or a score is outside [0, 1].
    """
    p, truth = np.asarray(p_target, dtype=np.float64), np.asarray(is_positive, dtype=np.bool_)
    check_both_kinds(truth, target)
    if p.shape != truth.shape or not np.all((p >= 0) & (p <= 1)):
        raise DataError("operating points need a probability in [0, 1] of each image")
    shares = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    groups = np.arange(len(p)) if patients is None else np.unique(patients, return_inverse=True)[1]

    def rates(at: float, resampled: FloatArray) -> dict[str, FloatArray]:
        positive = p >= at
        return {
            "sensitivity": weighted.share(positive, truth, resampled * shares),
            "specificity": weighted.share(~positive, ~truth, resampled * shares),
        }

    thresholds = _chosen_thresholds(p, truth, shares)
    values = weighted.replicates(
        groups.astype(np.int64),
        n_boot,
        seed,
        lambda resampled: {
            (name, rate): one for name, at in thresholds.items() for rate, one in rates(at, resampled).items()
        },
    )
    n_groups = int(groups.max()) + 1
    return tuple(
        OperatingPoint(
            name,
            at,
            criterion=CRITERIA[name],
            population=population,
            chosen_on=chosen_on,
            patients=None if patients is None else n_groups,
            sensitivity=weighted.estimate(values[name, "sensitivity"], n_groups),
            specificity=weighted.estimate(values[name, "specificity"], n_groups),
        )
        for name, at in thresholds.items()
    )


def _chosen_thresholds(p: FloatArray, truth: BoolArray, shares: FloatArray) -> dict[str, float]:
    thresholds = _cuts(np.unique(p))
    sensitivity = 1 - _share_below(p[truth], shares[truth], thresholds)
    specificity = _share_below(p[~truth], shares[~truth], thresholds)
    balanced = _middle_of_best(thresholds, sensitivity + specificity)
    # Sensitivity falls and specificity rises with the threshold; at the lowest, every image is positive.
    screening = min(int(np.flatnonzero(sensitivity >= SENSITIVITY_FLOOR - ROUNDING)[-1]), balanced)
    reached = np.flatnonzero(specificity >= SPECIFICITY_FLOOR - ROUNDING)
    rule_in = max(int(reached[0]) if reached.size else len(thresholds) - 1, balanced)
    # The same specificity with more sensitivity is free, and the other way round.
    screening = int(np.flatnonzero(specificity == specificity[screening])[0])
    rule_in = int(np.flatnonzero(sensitivity == sensitivity[rule_in])[-1])
    chosen = {"screening": screening, "balanced": balanced, "rule-in": rule_in}
    return {name: float(thresholds[index]) for name, index in chosen.items()}


def classes_left_open(labels: IntArray | BoolArray, classes: int) -> BoolArray:
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


def _middle_of_best(thresholds: FloatArray, youden: FloatArray) -> int:
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
    """Thresholds below, between and above distinct ascending scores; those in [0, 1] that separate them."""
    lower, upper = np.r_[0.0, levels], np.r_[levels, 1.0]
    middle = (lower + upper) / 2
    # Between neighbouring floats the middle rounds to one of them; the upper still separates the two.
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

    Images of one patient, and augmented copies of one image, are not independent. So patients are counted,
    each with weight one, shared evenly by the patient's rows of the class; that guarantees the coverage for
    one row, drawn at random, of a new patient (Lee, Barber and Willett, Distribution-free inference with
    hierarchical data, 2023).

    A class without a threshold from labels of its own gets that of the labels that leave it open: the set
    then holds one of the classes that such a label names. Only the classes without a threshold of their own
    count for that, since a likelier one with a higher threshold may be missing. For a class that no label
    names nothing can be guaranteed; it is in the set where it is likelier than all others together.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (N, K)
        Calibrated, of images exchangeable with future ones.
    labels : ndarray of int, shape (N,), or of bool, shape (N, K)
        True classes; or the classes that each label leaves open.
    alpha : float
        Share of misses allowed, in (0, 1).
    patients : ndarray of int, shape (N,), optional
        Rows of one number belong together; each row stands for itself if not given.

    Returns
    -------
    tuple of float, length K
        0 for a class with too few images to guarantee anything: it is always in the set. 0.5 for a class
        without any.

    Raises
    ------
    DataError
        If `alpha` is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha must lie between 0 and 1, not {alpha}")
    classes = probabilities.shape[1]
    possible = classes_left_open(labels, classes)
    known = possible & (possible.sum(axis=1) == 1)[:, None]
    groups = np.arange(len(probabilities)) if patients is None else patients
    own = [_least_kept(probabilities[rows, k], groups[rows], alpha) for k, rows in enumerate(known.T)]
    without = np.array(own) == 0
    likeliest = np.where(possible & without, probabilities, 0).max(axis=1)

    def threshold(k: int) -> float:
        open_to_it = possible[:, k] & ~known[:, k]
        if not possible[:, k].any():
            return UNSEEN
        return own[k] or _least_kept(likeliest[open_to_it], groups[open_to_it], alpha)

    return tuple(threshold(k) for k in range(classes))


def _least_kept(p: FloatArray, patients: IntArray, alpha: float) -> float:
    """Return the greatest threshold that less than a share `alpha` of new patients fall below."""
    _, index, rows = np.unique(patients, return_inverse=True, return_counts=True)
    # The new patient may lie below any threshold: one of those who may be missed is spent on that.
    allowed = (len(rows) + 1) * alpha - 1 + ROUNDING
    if allowed < 0:
        return 0.0
    order = np.argsort(p)
    below = np.r_[0.0, np.cumsum(1 / rows[index[order]])][:-1]
    return float(p[order][np.flatnonzero(below <= allowed)[-1]])
