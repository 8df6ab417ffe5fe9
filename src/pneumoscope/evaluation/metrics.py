"""Every measure with its 95% interval: the content of ``metrics.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import numpy as np

from pneumoscope.errors import DataError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.scores import NORMAL, BoolArray, FloatArray, ScoredSet, worst_mistakes

__all__ = ["MIN_SUBGROUP", "SUBGROUPS", "evaluate_scores", "figure"]

MIN_SUBGROUP = 20
"""Fewest images of a subgroup that is evaluated by itself."""

SUBGROUPS = ("by_source", "by_subtype", "by_view", "by_age", "by_sex")
"""Sections of ``metrics.json`` for parts of the set; a subtype of pneumonia is held against all normals."""

MISTAKES = 10

LEVEL = 0.95
# Weights of one block of resamples: 4 million float64 are 32 MB.
_BLOCK = 4_000_000

_RANKED = ("auroc", "average_precision")
_MACRO = (*_RANKED, "specificity", "ppv", "npv", "f1")
_REASONS = {
    "auroc": "needs images with and without {what}",
    "average_precision": "needs images with and without {what}",
    "balanced_accuracy": "needs images of every class",
    "sensitivity": "no image shows {what}",
    "specificity": "every image shows {what}",
    "ppv": "no image was called {what}",
    "npv": "every image was called {what}",
    "f1": "no image shows {what} and none was called so",
    "mcc": "all labels or all answers are alike",
}

# Section, and for the sections with parts the part, then the measure.
_Key = tuple[str, ...]
_Figures = Mapping[_Key, dict[str, Any]]


def evaluate_scores(
    scored: ScoredSet,
    *,
    threshold: float,
    n_boot: int = 1000,
    seed: int = 0,
    points: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Evaluate a scored set.

    Each figure is ``{"value", "low", "high"}``: the measure and its 95% percentile interval over `n_boot`
    resamples of the patients (Efron; clustered, since images of one patient are alike). A figure that the
    set does not define is None, with a ``reason`` beside it. `docs/reference/metrics.md` names every section.

    Parameters
    ----------
    scored : ScoredSet
        Evaluated images with their labels.
    threshold : float
        At or above it the probability of pneumonia is a call of pneumonia, in [0, 1].
    n_boot : int
        Resamples; 0 gives figures without intervals.
    seed : int
        Of the resampling.
    points : mapping of str to float, optional
        Thresholds of further operating points by name, each in [0, 1].

    Returns
    -------
    dict
        JSON-ready: the content of ``metrics.json``.

    Raises
    ------
    DataError
        If there is no image to evaluate, or a threshold is outside [0, 1].
    """
    if not len(scored):
        raise DataError(
            "no image was evaluated, so there is nothing to measure; see the reasons of the rejected"
        )
    thresholds = dict(points or {})
    for one in (threshold, *thresholds.values()):
        if not 0 <= one <= 1:
            raise DataError(f"the threshold must lie in [0, 1], not {one}")
    replicates = _replicates(scored, threshold, thresholds, n_boot, seed)
    n_patients = len(set(scored.patients))
    figures = {
        key: figure(values, n_patients, reason=_reason(key) if np.isnan(values[0]) else "")
        for key, values in replicates.items()
    }
    method = "percentile bootstrap, patients resampled with replacement"
    return {
        **_what_was_evaluated(scored, threshold),
        "intervals": {"level": LEVEL, "method": method, "resamples": n_boot, "seed": seed},
        **_by_measure(scored, threshold, figures),
        "operating_points": {
            name: {"threshold": at, **_section(figures, "operating_points", name)}
            for name, at in thresholds.items()
        },
        **_by_subgroup(scored, figures),
        "reliability": _reliability(scored),
        "mistakes": _mistakes(scored, threshold),
    }


def _what_was_evaluated(scored: ScoredSet, threshold: float) -> dict[str, Any]:
    counts = np.bincount(scored.labels, minlength=len(scored.classes))
    return {
        "classes": list(scored.classes),
        "images": len(scored),
        "patients": len(set(scored.patients)),
        "images_by_class": dict(zip(scored.classes, counts.tolist(), strict=True)),
        "threshold": threshold,
    }


def _by_measure(scored: ScoredSet, threshold: float, figures: _Figures) -> dict[str, Any]:
    called = (scored.p_pneumonia >= threshold).astype(np.int64)
    return {
        "pneumonia": {
            **_section(figures, "pneumonia"),
            "confusion": _counts(scored.is_pneumonia.astype(np.int64), called, 2),
        },
        "all_classes": {
            **_section(figures, "all_classes"),
            "confusion": _counts(scored.labels, scored.probabilities.argmax(axis=1), len(scored.classes)),
        },
        "by_class": {name: _section(figures, "by_class", name) for name in scored.classes},
        "bacterial_vs_viral": _section(figures, "bacterial_vs_viral") or None,
    }


def _by_subgroup(scored: ScoredSet, figures: _Figures) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {name: {} for name in SUBGROUPS}
    for (section, name), mask in _subgroups(scored).items():
        sections[section][name] = {
            "images": int(mask.sum()),
            "pneumonia": int(scored.is_pneumonia[mask].sum()),
            **_section(figures, section, name),
        }
    return sections


def _reliability(scored: ScoredSet) -> list[dict[str, float]]:
    """What was said and what was found in each of the 15 bins of the ECE that holds a image."""
    p, truth = scored.p_pneumonia, scored.is_pneumonia
    bins = weighted.bin_of(p)
    return [
        {
            "low": index / weighted.N_BINS,
            "high": (index + 1) / weighted.N_BINS,
            "images": int((bins == index).sum()),
            "said": float(p[bins == index].mean()),
            "found": float(truth[bins == index].mean()),
        }
        for index in np.unique(bins).tolist()
    ]


def _mistakes(scored: ScoredSet, threshold: float) -> list[dict[str, Any]]:
    """The most confident mistakes; a path that is absolute would tell of this machine, so only its name."""
    return [
        {**asdict(one), "path": PurePath(one.path).name if PurePath(one.path).is_absolute() else one.path}
        for one in worst_mistakes(scored, threshold, MISTAKES // 2)
    ]


def _section(figures: _Figures, *start: str) -> dict[str, dict[str, Any]]:
    return {key[-1]: figure for key, figure in figures.items() if key[:-1] == start}


def _counts(truth: Any, called: Any, n_classes: int) -> list[list[int]]:
    matrix = weighted.confusion(truth, called, n_classes, np.ones((1, len(truth))))[0]
    counts: list[list[int]] = matrix.astype(int).tolist()
    return counts


def _subgroups(scored: ScoredSet) -> dict[tuple[str, str], BoolArray]:
    """Masks of the subgroups that are large enough, by section of ``metrics.json`` and name, shape (N,)."""
    found: dict[tuple[str, str], BoolArray] = {}
    values = {"by_source": scored.sources} | {
        f"by_{name}": values for name, values in scored.attributes.items() if f"by_{name}" in SUBGROUPS
    }
    for section, each in values.items():
        column = np.array(each, dtype=np.str_)
        names, counts = np.unique(column, return_counts=True)
        large = [name for name, count in zip(names.tolist(), counts, strict=True) if count >= MIN_SUBGROUP]
        found |= {(section, name): column == name for name in sorted(large, key=_in_order) if name}
    if len(scored.classes) > 2:
        for index, name in enumerate(scored.classes):
            if name != NORMAL and (scored.labels == index).sum() >= MIN_SUBGROUP:
                found["by_subtype", name] = ~scored.is_pneumonia | (scored.labels == index)
    return found


def _in_order(name: str) -> tuple[float, str]:
    """Sort groups of ages by their lower end, everything else by name."""
    lower = re.match(r"\d+", name)
    return (float(lower[0]) if lower else -1.0, name)


def _replicates(
    scored: ScoredSet, threshold: float, points: Mapping[str, float], n_boot: int, seed: int
) -> dict[_Key, FloatArray]:
    """Every measure on the set itself (first element) and on each resample, shape (1 + n_boot,)."""
    rng = np.random.default_rng(seed)
    patients = scored.patient_index
    parts = [_measures(scored, threshold, points, np.ones((1, len(scored))))]
    block = max(1, _BLOCK // len(scored))
    for start in range(0, n_boot, block):
        weights = weighted.patient_weights(patients, min(block, n_boot - start), rng)
        parts.append(_measures(scored, threshold, points, weights))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _measures(
    scored: ScoredSet, threshold: float, points: Mapping[str, float], weights: FloatArray
) -> dict[_Key, FloatArray]:
    out: dict[_Key, FloatArray] = {}
    out.update({("pneumonia", name): v for name, v in _against_normal(scored, threshold, weights).items()})
    out.update(_over_classes(scored, weights))
    if "bacterial" in scored.classes and "viral" in scored.classes:
        out["bacterial_vs_viral", "auroc"] = _kind_auroc(scored, weights)
    for point, at in points.items():
        called = (scored.p_pneumonia >= at).astype(np.int64)
        matrix = weighted.confusion(scored.is_pneumonia.astype(np.int64), called, 2, weights)
        part = weighted.rates(matrix, 1)
        out.update({("operating_points", point, name): part[name] for name in ("sensitivity", "specificity")})
    for group, mask in _subgroups(scored).items():
        part = _against_normal(scored.select(mask), threshold, weights[:, mask])
        out.update({(*group, name): values for name, values in part.items()})
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
    # Sure of normal: the image says nothing about the kind.
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
        reason = "no interval: all images are of one patient"
    elif not resampled.size:
        reason = "no interval: no resamples were asked for"
    elif 2 * defined.size < resampled.size:
        reason = "no interval: too few images, most resamples hold one class only"
    else:
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(defined, (tail, 100 - tail))
        return {"value": float(value), "low": float(low), "high": float(high)}
    return {"value": float(value), "low": None, "high": None, "reason": reason}


def _reason(key: _Key) -> str:
    measure = key[-1].removeprefix("macro_")
    if key[0] == "all_classes" and measure != "mcc":
        return "some class has no image, or was never called"
    what = {"by_class": key[1], "bacterial_vs_viral": "bacterial pneumonia"}.get(key[0], "pneumonia")
    return _REASONS[measure].format(what=what)
