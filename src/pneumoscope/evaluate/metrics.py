"""Every measure with its 95% interval: the content of ``metrics.json``."""

from __future__ import annotations

from typing import Any

import numpy as np

from pneumoscope.domain import DataError
from pneumoscope.evaluate import weighted
from pneumoscope.evaluate.scores import FloatArray, ScoredSet

__all__ = ["MIN_SUBGROUP", "evaluate_scores", "figure"]

MIN_SUBGROUP = 20
"""Fewest pictures of one source that are judged by themselves."""

LEVEL = 0.95
# Weights of one block of resamples: 4 million float64 are 32 MB.
_BLOCK = 4_000_000

_RANKED = ("auroc", "average_precision")
_MACRO = (*_RANKED, "specificity", "ppv", "npv", "f1")
_REASONS = {
    "auroc": "needs pictures with and without {what}",
    "average_precision": "needs pictures with and without {what}",
    "balanced_accuracy": "needs pictures of every class",
    "sensitivity": "no picture shows {what}",
    "specificity": "every picture shows {what}",
    "ppv": "no picture was called {what}",
    "npv": "every picture was called {what}",
    "f1": "no picture shows {what} and none was called so",
    "mcc": "all labels or all answers are alike",
}

# Section, and for the sections with parts the part, then the measure.
_Key = tuple[str, ...]


def evaluate_scores(
    scored: ScoredSet, *, threshold: float, n_boot: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Judge a scored set.

    Each figure is ``{"value", "low", "high"}``: the measure and its 95% percentile interval over `n_boot`
    resamples of the patients (Efron; clustered, since pictures of one patient are alike). A figure that the
    set does not define is None, with a ``reason`` beside it.

    Parameters
    ----------
    scored : ScoredSet
        Judged pictures with their labels.
    threshold : float
        At or above it the probability of pneumonia is a call of pneumonia, in [0, 1].
    n_boot : int
        Resamples; 0 gives figures without intervals.
    seed : int
        Of the resampling.

    Returns
    -------
    dict
        JSON-ready: ``pneumonia`` (against normal, at `threshold`), ``all_classes`` and ``by_class`` (by the
        most likely class), ``bacterial_vs_viral`` (among true pneumonia), ``by_source`` (sources of at least
        20 pictures), counts, confusion matrices (rows true, columns called), how intervals were made.

    Raises
    ------
    DataError
        If there is no picture to judge, or `threshold` is outside [0, 1].
    """
    if not len(scored):
        raise DataError(
            "no picture was judged, so there is nothing to measure; see the reasons of the rejected"
        )
    if not 0 <= threshold <= 1:
        raise DataError(f"the threshold must lie in [0, 1], not {threshold}")
    replicates = _replicates(scored, threshold, n_boot, seed)
    n_patients = len(set(scored.patients))
    figures = {
        key: figure(values, n_patients, reason=_reason(key) if np.isnan(values[0]) else "")
        for key, values in replicates.items()
    }
    counts = np.bincount(scored.labels, minlength=len(scored.classes))
    kinds = (scored.p_pneumonia >= threshold).astype(np.int64)
    return {
        "classes": list(scored.classes),
        "pictures": len(scored),
        "patients": n_patients,
        "pictures_by_class": dict(zip(scored.classes, counts.tolist(), strict=True)),
        "threshold": threshold,
        "intervals": {
            "level": LEVEL,
            "method": "percentile bootstrap, patients resampled with replacement",
            "resamples": n_boot,
            "seed": seed,
        },
        "pneumonia": {
            **_section(figures, "pneumonia"),
            "confusion": _counts(scored.is_pneumonia.astype(np.int64), kinds, 2),
        },
        "all_classes": {
            **_section(figures, "all_classes"),
            "confusion": _counts(scored.labels, scored.probabilities.argmax(axis=1), len(scored.classes)),
        },
        "by_class": {name: _section(figures, "by_class", name) for name in scored.classes},
        "bacterial_vs_viral": _section(figures, "bacterial_vs_viral") or None,
        "by_source": {
            name: {
                "pictures": scored.sources.count(name),
                "pneumonia": int(scored.is_pneumonia[_of_source(scored, name)].sum()),
                **_section(figures, "by_source", name),
            }
            for name in _large_sources(scored)
        },
    }


def _section(figures: dict[_Key, dict[str, Any]], *start: str) -> dict[str, dict[str, Any]]:
    return {key[-1]: figure for key, figure in figures.items() if key[:-1] == start}


def _counts(truth: Any, called: Any, n_classes: int) -> list[list[int]]:
    matrix = weighted.confusion(truth, called, n_classes, np.ones((1, len(truth))))[0]
    counts: list[list[int]] = matrix.astype(int).tolist()
    return counts


def _large_sources(scored: ScoredSet) -> list[str]:
    return sorted(name for name in set(scored.sources) if name and scored.sources.count(name) >= MIN_SUBGROUP)


def _of_source(scored: ScoredSet, name: str) -> Any:
    return np.array([source == name for source in scored.sources], dtype=np.bool_)


def _replicates(scored: ScoredSet, threshold: float, n_boot: int, seed: int) -> dict[_Key, FloatArray]:
    """Every measure on the set itself (first element) and on each resample, shape (1 + n_boot,)."""
    rng = np.random.default_rng(seed)
    patients = scored.patient_index
    parts = [_measures(scored, threshold, np.ones((1, len(scored))))]
    block = max(1, _BLOCK // len(scored))
    for start in range(0, n_boot, block):
        weights = weighted.patient_weights(patients, min(block, n_boot - start), rng)
        parts.append(_measures(scored, threshold, weights))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _measures(scored: ScoredSet, threshold: float, weights: FloatArray) -> dict[_Key, FloatArray]:
    out: dict[_Key, FloatArray] = {}
    out.update({("pneumonia", name): v for name, v in _against_normal(scored, threshold, weights).items()})
    out.update(_over_classes(scored, weights))
    if "bacterial" in scored.classes and "viral" in scored.classes:
        out["bacterial_vs_viral", "auroc"] = _kind_auroc(scored, weights)
    for source in _large_sources(scored):
        mask = _of_source(scored, source)
        part = _against_normal(scored.select(mask), threshold, weights[:, mask])
        out.update({("by_source", source, name): values for name, values in part.items()})
    return out


def _against_normal(scored: ScoredSet, threshold: float, weights: FloatArray) -> dict[str, FloatArray]:
    p, truth = scored.p_pneumonia, scored.is_pneumonia
    auroc, average_precision = weighted.ranking(p, truth, weights)
    matrix = weighted.confusion(truth.astype(np.int64), (p >= threshold).astype(np.int64), 2, weights)
    return {
        "auroc": auroc,
        "average_precision": average_precision,
        **weighted.rates(matrix, 1),
        "brier": weighted.brier(p - truth, weights),
        "ece": weighted.calibration_error(p, truth, weights),
    }


def _over_classes(scored: ScoredSet, weights: FloatArray) -> dict[_Key, FloatArray]:
    p, labels, k = scored.probabilities, scored.labels, len(scored.classes)
    called = p.argmax(axis=1).astype(np.int64)
    matrix = weighted.confusion(labels, called, k, weights)
    by_class: list[dict[str, FloatArray]] = []
    for index in range(k):
        auroc, average_precision = weighted.ranking(p[:, index], labels == index, weights)
        rates = weighted.rates(matrix, index)
        by_class.append({"auroc": auroc, "average_precision": average_precision, **rates})
    overall = {
        "accuracy": weighted.ratio(np.trace(matrix, axis1=1, axis2=2), matrix.sum(axis=(1, 2))),
        "balanced_accuracy": np.mean([part["sensitivity"] for part in by_class], axis=0),
        **{f"macro_{name}": np.mean([part[name] for part in by_class], axis=0) for name in _MACRO},
        "mcc": weighted.multiclass_mcc(matrix),
        "brier": weighted.brier(p - (labels[:, None] == np.arange(k)), weights),
        "ece": weighted.calibration_error(p.max(axis=1), called == labels, weights),
    }
    out: dict[_Key, FloatArray] = {("all_classes", name): values for name, values in overall.items()}
    for name, part in zip(scored.classes, by_class, strict=True):
        out.update({("by_class", name, measure): values for measure, values in part.items()})
    return out


def _kind_auroc(scored: ScoredSet, weights: FloatArray) -> FloatArray:
    bacterial, viral = scored.classes.index("bacterial"), scored.classes.index("viral")
    among = np.isin(scored.labels, (bacterial, viral))
    p = scored.probabilities[among]
    total = p[:, bacterial] + p[:, viral]
    # Sure of normal: the picture says nothing about the kind.
    share = np.divide(p[:, bacterial], total, out=np.full(len(p), 0.5), where=total > 0)
    auroc, _ = weighted.ranking(share, scored.labels[among] == bacterial, weights[:, among])
    return auroc


def figure(values: FloatArray, n_patients: int, *, reason: str) -> dict[str, Any]:
    """Return a measure with its 95% percentile interval.

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
        return {"value": None, "low": None, "high": None, "reason": reason}
    defined = resampled[~np.isnan(resampled)]
    if n_patients < 2:
        reason = "no interval: all pictures are of one patient"
    elif not resampled.size:
        reason = "no interval: no resamples were asked for"
    elif 2 * defined.size < resampled.size:
        reason = "no interval: too few pictures, most resamples hold one class only"
    else:
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(defined, (tail, 100 - tail))
        return {"value": float(value), "low": float(low), "high": float(high)}
    return {"value": float(value), "low": None, "high": None, "reason": reason}


def _reason(key: _Key) -> str:
    measure = key[-1].removeprefix("macro_")
    if key[0] == "all_classes" and measure != "mcc":
        return "some class has no picture, or was never called"
    what = {"by_class": key[1], "bacterial_vs_viral": "bacterial pneumonia"}.get(key[0], "pneumonia")
    return _REASONS[measure].format(what=what)
