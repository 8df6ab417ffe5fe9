"""Every measure with its 95% interval: the content of ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import PurePath
from typing import Any

import numpy as np

from pneumoscope.domain import AGE_BANDS, Estimate
from pneumoscope.errors import DataError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.scores import (
    BoolArray,
    FloatArray,
    IntArray,
    ScoredSet,
    Threshold,
    worst_mistakes,
)
from pneumoscope.model.measures import (
    AllClasses,
    ClassMeasures,
    Detection,
    MistakeRow,
    PointMeasures,
    ReliabilityBin,
    Subgroup,
    Subtypes,
    TargetClasses,
)
from pneumoscope.model.results import Evaluation

__all__ = ["MIN_SUBGROUP", "SUBGROUPS", "evaluate_scores", "subgroup_masks"]

MIN_SUBGROUP = 20
"""Fewest images of a subgroup that is evaluated by itself."""

SUBGROUPS = ("by_source", "by_subtype", "by_view", "by_age", "by_sex")
"""Sections for parts of the set; a subtype is evaluated against all images without the target."""

MISTAKES = 10

_RANKED = ("auroc", "average_precision")
_MACRO = (*_RANKED, "specificity", "ppv", "npv", "f1")
_REASONS = {
    "auroc": "needs images with and without {what}",
    "average_precision": "needs images with and without {what}",
    "balanced_accuracy": "needs images with and without {what}",
    "sensitivity": "no image shows {what}",
    "specificity": "every image shows {what}",
    "ppv": "no image was predicted as {what}",
    "npv": "every image was predicted as {what}",
    "f1": "no image shows {what} and none was predicted so",
    "mcc": "all labels or all predictions are alike",
}

# Of means over the classes that have images.
_REASONS_OF_MEANS = {
    "auroc": "needs images of two classes",
    "average_precision": "needs images of two classes",
    "specificity": "needs images of two classes",
    "ppv": "some class was never predicted",
    "npv": "every image was predicted as one class",
}

# Section, and for the sections with parts the part, then the measure.
_Key = tuple[str, ...]
_Estimates = Mapping[_Key, Estimate]


def evaluate_scores(
    scored: ScoredSet,
    *,
    threshold: Threshold,
    n_boot: int = 1000,
    seed: int = 0,
    points: Mapping[str, Threshold] | None = None,
) -> Evaluation:
    """Evaluate a scored set.

    Each measure is an `Estimate`: its value and its 95% percentile interval over `n_boot` resamples of the
    patients (Efron; clustered, since images of one patient are alike). A measure that the set does not define
    has no value, and a reason. `docs/reference/metrics.md` names every section.

    Parameters
    ----------
    scored : ScoredSet
        Evaluated images with their labels.
    threshold : float or ndarray of float64, shape (N,)
        At or above it the probability of the target is a positive prediction, in [0, 1]; one for each image
        where it depends on the population.
    n_boot : int
        Resamples; 0 gives values without intervals.
    seed : int
        Of the resampling.
    points : mapping of str to float or ndarray, optional
        Thresholds of further operating points by name, likewise.

    Returns
    -------
    Evaluation
        ``metrics.json`` is its JSON.

    Raises
    ------
    DataError
        If there is no image to evaluate, or a threshold is outside [0, 1].
    """
    if not len(scored):
        raise DataError(
            "no image was evaluated, so there is nothing to measure; 'pneumoscope predict' with the same "
            "images gives the reasons"
        )
    thresholds = dict(points or {})
    for one in (threshold, *thresholds.values()):
        if not np.all((np.asarray(one) >= 0) & (np.asarray(one) <= 1)):
            raise DataError(f"the threshold must lie in [0, 1], not {one}")
    values = weighted.replicates(
        scored.patient_index, n_boot, seed, lambda weights: _measures(scored, threshold, thresholds, weights)
    )
    n_patients, of_subgroup = len(set(scored.patients)), _patients_of_subgroups(scored)
    estimates = {
        key: weighted.estimate(one, of_subgroup.get(key[:-1], n_patients), reason=_reason(key, scored))
        for key, one in values.items()
    }
    labels, predicted = scored.labels, scored.probabilities.argmax(axis=1)
    counts = np.bincount(labels, minlength=len(scored.classes)).tolist()
    positive = (scored.p_target >= threshold).astype(np.int64)
    subgroups: dict[str, Any] = _by_subgroup(scored, estimates)
    return Evaluation(
        classes=scored.classes,
        target=TargetClasses(name=scored.target.name, classes=scored.target.classes),
        images=len(scored),
        patients=n_patients,
        images_by_class=dict(zip(scored.classes, counts, strict=True)),
        threshold=_one_threshold(threshold),
        intervals=weighted.intervals(n_boot, seed),
        detection=Detection.model_validate(
            _section(estimates, "detection")
            | {"confusion": _counts(scored.is_positive.astype(np.int64), positive, 2)}
        ),
        all_classes=AllClasses.model_validate(
            _section(estimates, "all_classes")
            | {"confusion": _counts(labels, predicted, len(scored.classes))}
        ),
        by_class={
            name: ClassMeasures.model_validate(_section(estimates, "by_class", name))
            for name in scored.classes
        },
        subtypes={
            name: Subtypes.model_validate(_section(estimates, "subtypes", name))
            for name in _subtype_pairs(scored)
        },
        operating_points={
            name: PointMeasures.model_validate(
                {"threshold": _one_threshold(at), **_section(estimates, "operating_points", name)}
            )
            for name, at in thresholds.items()
        },
        **subgroups,
        reliability=_reliability(scored),
        mistakes=_mistakes(scored, threshold),
    )


def _one_threshold(threshold: Threshold) -> float | None:
    return None if isinstance(threshold, np.ndarray) else threshold


def _patients_of_subgroups(scored: ScoredSet) -> dict[_Key, int]:
    patients = scored.patient_index
    return {group: len(np.unique(patients[mask])) for group, mask in subgroup_masks(scored).items()}


def _by_subgroup(scored: ScoredSet, estimates: _Estimates) -> dict[str, dict[str, Subgroup]]:
    sections: dict[str, dict[str, Subgroup]] = {name: {} for name in SUBGROUPS}
    for (section, name), mask in subgroup_masks(scored).items():
        counts = {"images": int(mask.sum()), "positive": int(scored.is_positive[mask].sum())}
        sections[section][name] = Subgroup.model_validate(counts | _section(estimates, section, name))
    return sections


def _reliability(scored: ScoredSet) -> tuple[ReliabilityBin, ...]:
    """Mean predicted probability and observed frequency in each of the 15 bins of the ECE with an image."""
    p, truth = scored.p_target, scored.is_positive
    bins = weighted.bin_of(p)
    return tuple(
        ReliabilityBin(
            low=index / weighted.N_BINS,
            high=(index + 1) / weighted.N_BINS,
            images=int((bins == index).sum()),
            predicted=float(p[bins == index].mean()),
            observed=float(truth[bins == index].mean()),
        )
        for index in np.unique(bins).tolist()
    )


def _mistakes(scored: ScoredSet, threshold: Threshold) -> tuple[MistakeRow, ...]:
    """The most confident mistakes; of an absolute path, which would identify this machine, only the name."""
    rows = [asdict(one) for one in worst_mistakes(scored, threshold, MISTAKES // 2)]
    for row in rows:
        path = PurePath(row["path"])
        row["path"] = path.name if path.is_absolute() else row["path"]
    return tuple(MistakeRow(**row) for row in rows)


def _section(estimates: _Estimates, *start: str) -> dict[str, object]:
    return {key[-1]: estimate for key, estimate in estimates.items() if key[:-1] == start}


def _counts(truth: IntArray, predicted: IntArray, n_classes: int) -> list[list[int]]:
    matrix = weighted.confusion(truth, predicted, n_classes, np.ones((1, len(truth))))[0]
    counts: list[list[int]] = matrix.astype(int).tolist()
    return counts


def _subtype_pairs(scored: ScoredSet) -> dict[str, tuple[int, int]]:
    """Pairs of classes that count as the target, by name."""
    own = np.flatnonzero(scored.target_mask).tolist()
    return {f"{scored.classes[a]} vs {scored.classes[b]}": (a, b) for a, b in combinations(own, 2)}


def subgroup_masks(scored: ScoredSet) -> dict[tuple[str, str], BoolArray]:
    """Return masks of the large enough subgroups, shape (N,), by section of ``metrics.json`` and name."""
    found: dict[tuple[str, str], BoolArray] = {}
    values = {"by_source": scored.sources} | {
        f"by_{name}": values for name, values in scored.attributes.items() if f"by_{name}" in SUBGROUPS
    }
    for section, each in values.items():
        column = np.array(each, dtype=np.str_)
        names, counts = np.unique(column, return_counts=True)
        large = [name for name, count in zip(names.tolist(), counts, strict=True) if count >= MIN_SUBGROUP]
        found |= {(section, name): column == name for name in sorted(large, key=_in_order) if name}
    subtypes = np.flatnonzero(scored.target_mask)
    for index in subtypes if len(subtypes) > 1 else ():
        if (scored.labels == index).sum() >= MIN_SUBGROUP:
            found["by_subtype", scored.classes[index]] = ~scored.is_positive | (scored.labels == index)
    return found


_BAND_ENDS = {name: end for end, name in AGE_BANDS}


def _in_order(name: str) -> tuple[float, str]:
    """Sort age bands by age, everything else by name."""
    return (_BAND_ENDS.get(name, -math.inf), name)


def _measures(
    scored: ScoredSet, threshold: Threshold, points: Mapping[str, Threshold], weights: FloatArray
) -> dict[_Key, FloatArray]:
    out: dict[_Key, FloatArray] = {
        ("detection", name): values for name, values in _detection(scored, threshold, weights).items()
    }
    out.update(_over_classes(scored, weights))
    for name, pair in _subtype_pairs(scored).items():
        out["subtypes", name, "auroc"] = _subtype_auroc(scored, pair, weights)
    for point, at in points.items():
        positive = scored.p_target >= at
        truth = scored.is_positive
        out["operating_points", point, "sensitivity"] = weighted.share(positive, truth, weights)
        out["operating_points", point, "specificity"] = weighted.share(~positive, ~truth, weights)
    for group, mask in subgroup_masks(scored).items():
        own = threshold[mask] if isinstance(threshold, np.ndarray) else threshold
        part = _detection(scored.select(mask), own, weights[:, mask])
        out.update({(*group, name): values for name, values in part.items()})
    return out


def _detection(scored: ScoredSet, threshold: Threshold, weights: FloatArray) -> dict[str, FloatArray]:
    """The target against the rest."""
    p, truth = scored.p_target, scored.is_positive
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
    predicted = p.argmax(axis=1).astype(np.int64)
    matrix = weighted.confusion(labels, predicted, k, weights)
    by_class: list[dict[str, FloatArray]] = []
    for index in range(k):
        auroc, average_precision = weighted.ranking(p[:, index], labels == index, weights)
        rates = weighted.rates(matrix, index)
        by_class.append({"auroc": auroc, "average_precision": average_precision, **rates})
    present = [part for index, part in enumerate(by_class) if (labels == index).any()]
    overall = {
        "accuracy": weighted.ratio(np.trace(matrix, axis1=1, axis2=2), matrix.sum(axis=(1, 2))),
        "balanced_accuracy": np.mean([part["sensitivity"] for part in present], axis=0),
        **{f"macro_{name}": np.mean([part[name] for part in present], axis=0) for name in _MACRO},
        "mcc": weighted.multiclass_mcc(matrix),
        "brier": weighted.brier(p - (labels[:, None] == np.arange(k)), weights),
        "ece": weighted.calibration_error(p.max(axis=1), predicted == labels, weights),
    }
    out: dict[_Key, FloatArray] = {("all_classes", name): values for name, values in overall.items()}
    for name, part in zip(scored.classes, by_class, strict=True):
        out.update({("by_class", name, measure): values for measure, values in part.items()})
    return out


def _subtype_auroc(scored: ScoredSet, pair: tuple[int, int], weights: FloatArray) -> FloatArray:
    """AUROC of the first class against the second, by its share in the probability of both."""
    first, second = pair
    among = np.isin(scored.labels, pair)
    p = scored.probabilities[among]
    total = p[:, first] + p[:, second]
    # Where both are 0 the image does not tell the two apart.
    part = np.divide(p[:, first], total, out=np.full(len(p), 0.5), where=total > 0)
    auroc, _ = weighted.ranking(part, scored.labels[among] == first, weights[:, among])
    return auroc


def _reason(key: _Key, scored: ScoredSet) -> str:
    """Why a measure is undefined, where it is."""
    measure = key[-1].removeprefix("macro_")
    if key[0] == "all_classes" and measure in _REASONS_OF_MEANS:
        return _REASONS_OF_MEANS[measure]
    what = scored.target.name
    if key[0] == "by_class":
        what = key[1]
    elif key[0] == "subtypes":
        what = key[1].partition(" vs ")[0]
    return _REASONS.get(measure, "").format(what=what)
