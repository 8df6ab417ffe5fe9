"""Measures under many weightings of the same images at once, and their intervals by bootstrap.

A bootstrap resample is a count per image. So a matrix of weights, shape (B, N), stands for B resamples, and
each measure sorts or multiplies once for all of them. A measure that a resample does not define (one class
only, say) is NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

from pneumoscope.domain import Estimate
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray
from pneumoscope.model.measures import Intervals

__all__ = [
    "N_BINS",
    "bin_of",
    "brier",
    "calibration_error",
    "confusion",
    "cumulated",
    "estimate",
    "intervals",
    "multiclass_mcc",
    "patient_weights",
    "ranking",
    "rates",
    "ratio",
    "replicates",
    "share",
    "wilson",
]

N_BINS = 15

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
# Sums in another order differ by less, and are no uncertainty.
ROUNDING = 1e-9
# Weights of one block of resamples: 4 million float64 are 32 MB.
_BLOCK = 4_000_000

K = TypeVar("K", bound=Hashable)


def intervals(resamples: int, seed: int) -> Intervals:
    """Return how the intervals of `estimate` are made, for the record."""
    method = "percentile bootstrap, patients resampled with replacement"
    return Intervals(level=LEVEL, method=method, resamples=resamples, seed=seed)


def replicates(
    patients: IntArray, n_boot: int, seed: int, measure: Callable[[FloatArray], Mapping[K, FloatArray]]
) -> dict[K, FloatArray]:
    """Return measures of a set and of `n_boot` resamples of its patients, each of shape (..., 1 + n_boot).

    Parameters
    ----------
    patients : ndarray of int64, shape (N,)
        Patient of each image, in 0..P-1.
    n_boot, seed : int
        Number of resamples, and their seed.
    measure : callable
        From weights, shape (B, N), to measures by key, each of shape (..., B).
    """
    rng = np.random.default_rng(seed)
    parts = [measure(np.ones((1, len(patients))))]
    block = max(1, _BLOCK // len(patients))
    sizes = (min(block, n_boot - start) for start in range(0, n_boot, block))
    parts += [measure(patient_weights(patients, size, rng)) for size in sizes]
    return {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}


def estimate(values: FloatArray, n_patients: int, *, reason: str = "") -> Estimate:
    """Return a measure with its 95% percentile interval (Efron); none where all resamples agree.

    Parameters
    ----------
    values : ndarray of float64, shape (1 + B,)
        The measure on the set itself, then on each resample; NaN where it is undefined.
    n_patients : int
        Patients that were resampled.
    reason : str
        Why the measure is undefined, where it is.
    """
    value, resampled = values[0], values[1:]
    if np.isnan(value):
        return Estimate(None, reason=reason)
    defined = resampled[~np.isnan(resampled)]
    if n_patients < 2:
        reason = "no interval: all images are of one patient"
    elif not resampled.size:
        reason = "no interval: no resamples were requested"
    elif 2 * defined.size < resampled.size:
        reason = "no interval: too few images, most resamples hold one class only"
    else:
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(defined, (tail, 100 - tail))
        if high - low > ROUNDING:
            return Estimate(float(value), float(low), float(high))
        # Such as 15 of 15, or one patient's images: resampling says nothing about how certain that is.
        reason = "no interval: every resample gives the same value"
    return Estimate(float(value), reason=reason)


def share(hit: BoolArray, among: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the share of images `among`, shape (N,), that are `hit`, under each weighting, shape (B,)."""
    return ratio(weights @ (hit & among), weights @ among.astype(np.float64))


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide element by element; NaN where the denominator is not positive."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def wilson(hits: Any, total: Any) -> tuple[FloatArray, FloatArray]:
    """Return both ends of the 95% interval of a share (Wilson, 1927), for counts or arrays of them.

    Parameters
    ----------
    hits, total : int or ndarray
        Of which `total` is above 0.
    """
    share, spread = hits / total, Z * Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # At the ends exactly, where rounding would leave them out.
    return np.where(hits == 0, 0.0, middle - half), np.where(hits == total, 1.0, middle + half)


def patient_weights(patient_index: IntArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Resample patients with replacement and count how often each image is drawn.

    Parameters
    ----------
    patient_index : ndarray of int64, shape (N,)
        Patient of each image, in 0..P-1.
    resamples : int
        Number B of resamples.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of float64, shape (B, N)
    """
    patients = int(patient_index.max()) + 1
    counts = rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples)
    return counts[:, patient_index].astype(np.float64)


def cumulated(scores: FloatArray, positive: BoolArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weight of positive and of negative images at or above each distinct score, the highest first.

    Parameters
    ----------
    scores, positive, weights : ndarray
        As of `ranking`; one image at least.

    Returns
    -------
    hits, alarms : ndarray of float64, shape (B, S)
        For each of the S distinct scores as the threshold: points of the ROC curve, before they are divided
        by their last one.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    gathered = weights[:, order]
    hits = np.add.reduceat(gathered * positive[order], starts, axis=1)
    alarms = np.add.reduceat(gathered * ~positive[order], starts, axis=1)
    return np.cumsum(hits, axis=1), np.cumsum(alarms, axis=1)


def ranking(scores: FloatArray, positive: BoolArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Area under the ROC curve, and average precision; ties count half and as one step.

    Parameters
    ----------
    scores : ndarray of float64, shape (N,)
        Greater means more likely positive.
    positive : ndarray of bool, shape (N,)
        The truth.
    weights : ndarray of float64, shape (B, N)
        Not negative.

    Returns
    -------
    auroc, average_precision : ndarray of float64, shape (B,)
        In [0, 1]; NaN where only one class has weight. The definitions are those of scikit-learn's
        ``roc_auc_score`` and ``average_precision_score``.
    """
    if not scores.size:
        undefined = np.full(len(weights), np.nan)
        return undefined, undefined.copy()
    hits_so_far, alarms_so_far = cumulated(scores, positive, weights)
    hits, alarms = (np.diff(one, axis=1, prepend=0.0) for one in (hits_so_far, alarms_so_far))
    n_positive, n_negative = hits_so_far[:, -1], alarms_so_far[:, -1]
    below = n_negative[:, None] - alarms_so_far
    auroc = ratio((hits * (below + 0.5 * alarms)).sum(axis=1), n_positive * n_negative)
    called = hits_so_far + alarms_so_far
    # A step without weight adds nothing, whatever its precision.
    precision = np.divide(hits_so_far, called, out=np.zeros_like(called), where=called > 0)
    average_precision = ratio((hits * precision).sum(axis=1), n_positive)
    average_precision[n_negative == 0] = np.nan
    return auroc, average_precision


def confusion(truth: IntArray, predicted: IntArray, n_classes: int, weights: FloatArray) -> FloatArray:
    """Count true class (rows) against predicted class (columns).

    Returns
    -------
    ndarray of float64, shape (B, K, K)
    """
    cell = truth * n_classes + predicted
    member = (cell[:, None] == np.arange(n_classes**2)).astype(np.float64)
    counts: FloatArray = (weights @ member).reshape(-1, n_classes, n_classes)
    return counts


def rates(matrix: FloatArray, index: int) -> dict[str, FloatArray]:
    """One class against the rest, from confusion matrices.

    Parameters
    ----------
    matrix : ndarray of float64, shape (B, K, K)
        As `confusion` gives them.
    index : int
        The class that counts as positive.

    Returns
    -------
    dict of str to ndarray of float64, shape (B,)
        Each in [0, 1], but ``mcc``, which lies in [-1, 1] (Matthews, 1975).
    """
    tp = matrix[:, index, index]
    fn = matrix[:, index, :].sum(axis=1) - tp
    fp = matrix[:, :, index].sum(axis=1) - tp
    tn = matrix.sum(axis=(1, 2)) - tp - fn - fp
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    return {
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }


def multiclass_mcc(matrix: FloatArray) -> FloatArray:
    """Matthews correlation for K classes (Gorodkin, 2004), shape (B,)."""
    total, correct = matrix.sum(axis=(1, 2)), np.trace(matrix, axis1=1, axis2=2)
    truth, called = matrix.sum(axis=2), matrix.sum(axis=1)
    spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
    return ratio(correct * total - (truth * called).sum(axis=1), np.sqrt(np.maximum(spread, 0)))


def brier(error: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean of the squared distance between probabilities and the truth, shape (B,).

    Parameters
    ----------
    error : ndarray of float64, shape (N,) or (N, K)
        Probability minus truth (0 or 1). Columns are summed (Brier, 1950): K columns give a value in [0, 2],
        a single one a value in [0, 1].
    weights : ndarray of float64, shape (B, N)
    """
    squared = error**2 if error.ndim == 1 else (error**2).sum(axis=1)
    return ratio(weights @ squared, weights.sum(axis=1))


def bin_of(confidence: FloatArray) -> IntArray:
    """Return the bin, 0..14, of confidences in [0, 1]: (0, 1/15], (1/15, 2/15], …; 0 is in the first."""
    edges = np.linspace(0, 1, N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, N_BINS - 1)
    return bins.astype(np.int64)


def calibration_error(confidence: FloatArray, truth: BoolArray, weights: FloatArray) -> FloatArray:
    """Expected calibration error over 15 bins of equal width, shape (B,), in [0, 1].

    Naeini et al., AAAI 2015; bins (0, 1/15], (1/15, 2/15], … as in Guo et al., ICML 2017.

    Parameters
    ----------
    confidence : ndarray of float64, shape (N,)
        In [0, 1].
    truth : ndarray of bool, shape (N,)
        Whether the prediction that the confidence belongs to is right.
    weights : ndarray of float64, shape (B, N)
    """
    gap = (bin_of(confidence)[:, None] == np.arange(N_BINS)) * (confidence - truth)[:, None]
    return ratio(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1))
