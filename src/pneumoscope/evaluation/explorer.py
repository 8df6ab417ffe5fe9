"""What each threshold would do: the content of a report's threshold explorer and table of operating points.

A page without a server cannot resample patients. So each group of images is measured on a grid of thresholds
when the report is written, on the same resamples as every other measure; the page shows what was measured.

PPV and NPV depend on the prevalence, which the reader sets. By Bayes' theorem PPV rises with its value at a
prevalence of one half, whatever the prevalence; percentiles keep their rank under such a function. So the
ends of the interval at one half, converted, are those at any prevalence; likewise for NPV.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pneumoscope.domain import ANY_POPULATION, Estimate
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.metrics import MIN_SUBGROUP, subgroup_masks
from pneumoscope.evaluation.scores import BoolArray, FloatArray, ScoredSet, Threshold
from pneumoscope.evaluation.tables import subgroup_name
from pneumoscope.model.measures import Intervals

__all__ = ["LEVELS", "Explored", "PointRow", "at_prevalence", "explore"]

LEVELS = (
    *(0.0001, 0.0005, 0.001, 0.002, 0.005),
    *(step / 100 for step in range(1, 100)),
    *(0.995, 0.998, 0.999, 0.9995, 0.9999),
)
"""Thresholds that a reader can name; those of the operating points are added."""

ALL_IMAGES = "all images"
MOST_GROUPS = 24  # 6 kB of the page each
PER = 1000  # patients
DECIMALS = 6

_RATES = ("sensitivity", "specificity")
_VALUES = ("ppv", "npv")


@dataclass(frozen=True, slots=True)
class PointRow:
    """One operating point on one group of images.

    Parameters
    ----------
    point, group : str
        Names.
    threshold : float or None
        None where it differs between the populations of the group.
    sensitivity, specificity, ppv, npv : Estimate
        PPV and NPV at the prevalence of the group, which is taken as known.
    referred, missed : float or None
        Of 1,000 patients at that prevalence: positive predictions, and patients with the target among the
        others; None where a rate is undefined.
    """

    point: str
    group: str
    threshold: float | None
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    referred: float | None
    missed: float | None


@dataclass(frozen=True, slots=True)
class Explored:
    """What `explore` found: the rows of the static table, and the data of the page's explorer."""

    rows: tuple[PointRow, ...]
    data: Mapping[str, Any]

    @property
    def json(self) -> str:
        """The data as JSON that cannot end the element it is written into."""
        text = json.dumps(self.data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def explore(
    scored: ScoredSet, points: Mapping[str, Threshold], intervals: Intervals, *, start: Threshold = 0.5
) -> Explored:
    """Measure the set and its groups at every threshold of a grid and at the operating points.

    Groups are all images, populations with a calibration of their own, and the subgroups of the report.

    Parameters
    ----------
    scored : ScoredSet
        N evaluated images with their labels.
    points : mapping of str to float or ndarray of float64, shape (N,)
        Thresholds of the operating points by name; one for each image where they depend on the population.
    intervals : Intervals
        Number of resamples and seed, those of the other measures, so that equal measures are equal.
    start : float or ndarray of float64, shape (N,)
        The threshold that the page shows first; 0.5 where it depends on the population.

    Returns
    -------
    Explored
    """
    first = 0.5 if isinstance(start, np.ndarray) else start
    fixed = {first, *(float(one) for at in points.values() for one in np.unique(at))}
    grid = np.array(sorted({*LEVELS, *fixed}))
    populations = _populations(scored)
    groups = _groups(scored, populations)
    cuts = [scored.p_target >= at for at in points.values()]
    # Columns are the thresholds of the grid, then the operating points.
    values = weighted.replicates(
        scored.patient_index,
        intervals.resamples,
        intervals.seed,
        lambda weights: {
            (name, key): one
            for name, mask in groups.items()
            for key, one in _measures(scored, mask, grid, cuts, weights).items()
        },
    )
    patients = {name: len(np.unique(scored.patient_index[mask])) for name, mask in groups.items()}
    estimates = {
        key: [weighted.estimate(one, patients[key[0]]) for one in rows] for key, rows in values.items()
    }
    content, rows = [], []
    for name, mask in groups.items():
        measured = {key: estimates[name, key] for key in (*_RATES, *_VALUES)}
        own = {point: _one(at, mask) for point, at in points.items()}
        content.append(_group(scored, name, mask, grid, measured, own) | {"patients": patients[name]})
        if name == ALL_IMAGES or name in populations:
            prevalence = float(scored.is_positive[mask].mean())
            for column, point in enumerate(points, start=len(grid)):
                at_point = {key: one[column] for key, one in measured.items()}
                rows.append(_row(point, name, own[point], at_point, prevalence))
    data = {
        "thresholds": grid.tolist(),
        "start": int(np.searchsorted(grid, first)),
        "points": list(points),
        "groups": content,
    }
    return Explored(tuple(rows), data)


def at_prevalence(estimate: Estimate, prevalence: float) -> Estimate:
    """Convert PPV from a prevalence of one half to another; NPV with one minus the prevalence.

    Parameters
    ----------
    estimate : Estimate
        PPV, or NPV, at a prevalence of one half, in [0, 1].
    prevalence : float
        Share of patients with the target, for NPV of those without it, in [0, 1].
    """

    def converted(half: float | None) -> float | None:
        if half is None:
            return None
        right, wrong = half * prevalence, (1 - half) * (1 - prevalence)
        return right / (right + wrong) if right + wrong > 0 else None

    value = converted(estimate.value)
    return Estimate(value, converted(estimate.low), converted(estimate.high), reason=estimate.reason)


def _populations(scored: ScoredSet) -> dict[str, BoolArray]:
    """Return masks of the populations with a calibration of their own, shape (N,), by name."""
    found: dict[str, BoolArray] = {}
    populations = np.array(scored.attributes.get("population", ()), dtype=np.str_)
    for population in sorted(set(populations.tolist()) - {""}):
        mask: BoolArray = populations == population
        if MIN_SUBGROUP <= mask.sum() < len(scored):
            shown = "any other" if population == ANY_POPULATION else population
            found[subgroup_name("by_population", shown)] = mask
    return found


def _groups(scored: ScoredSet, populations: Mapping[str, BoolArray]) -> dict[str, BoolArray]:
    """Return masks of the groups that the page offers, shape (N,), by name: all images first."""
    always = {ALL_IMAGES: np.ones(len(scored), dtype=np.bool_), **populations}
    more = {
        name: mask
        for (section, part), mask in subgroup_masks(scored).items()
        if mask.sum() < len(scored) and (name := subgroup_name(section, part)) not in always
    }
    largest = sorted(more, key=lambda name: -int(more[name].sum()))[: max(0, MOST_GROUPS - len(always))]
    return always | {name: mask for name, mask in more.items() if name in largest}


def _measures(
    scored: ScoredSet, mask: BoolArray, grid: FloatArray, cuts: Sequence[BoolArray], weights: FloatArray
) -> dict[str, FloatArray]:
    """Return rates, and predictive values at a prevalence of one half, each of shape (T + K, B)."""
    counts = []
    for members in (mask & scored.is_positive, mask & ~scored.is_positive):
        own = weights[:, members]
        above = _at_or_above(scored.p_target[members], grid, [cut[members] for cut in cuts], own)
        counts.append((above.T, own.sum(axis=1)))
    (found, positive), (alarms, negative) = counts
    sensitivity = weighted.ratio(found, positive)
    specificity = weighted.ratio(negative - alarms, negative)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": weighted.ratio(sensitivity, sensitivity + (1 - specificity)),
        "npv": weighted.ratio(specificity, specificity + (1 - sensitivity)),
    }


def _at_or_above(
    p: FloatArray, grid: FloatArray, cuts: Sequence[BoolArray], weights: FloatArray
) -> FloatArray:
    """Return the weight of images at or above each threshold, then of those in each cut, shape (B, T + K)."""
    order = np.argsort(p, kind="stable")
    so_far = np.zeros((len(weights), len(p) + 1))
    np.cumsum(weights[:, order], axis=1, out=so_far[:, 1:])
    below = np.searchsorted(p[order], grid, side="left")
    columns = [
        so_far[:, -1:] - so_far[:, below],
        *(weights @ cut[:, None].astype(np.float64) for cut in cuts),
    ]
    return np.concatenate(columns, axis=1)


def _one(threshold: Threshold, mask: BoolArray) -> float | None:
    """Return the threshold of a group; None where its images have several."""
    own = np.unique(threshold[mask] if isinstance(threshold, np.ndarray) else threshold)
    return float(own[0]) if len(own) == 1 else None


def _group(
    scored: ScoredSet,
    name: str,
    mask: BoolArray,
    grid: FloatArray,
    measured: Mapping[str, Sequence[Estimate]],
    own: Mapping[str, float | None],
) -> dict[str, Any]:
    """Return what the page needs of one group: counts, ends of intervals, and where its points lie."""
    truth, p = scored.is_positive[mask], scored.p_target[mask]
    positive, negative = np.sort(p[truth]), np.sort(p[~truth])
    ends: dict[str, Any] = {}
    for key, estimates in measured.items():
        # Rates are shown as they are, in thousandths; predictive values are converted first.
        rounded = _thousandths if key in _RATES else _rounded
        kept = estimates[: len(grid)]
        ends[key] = [[rounded(one.low) for one in kept], [rounded(one.high) for one in kept]]
    return {
        "name": name,
        "positive": len(positive),
        "negative": len(negative),
        "found": (len(positive) - np.searchsorted(positive, grid, side="left")).tolist(),
        "alarms": (len(negative) - np.searchsorted(negative, grid, side="left")).tolist(),
        "ends": ends,
        "points": {
            point: None if at is None else int(np.searchsorted(grid, at)) for point, at in own.items()
        },
    }


def _thousandths(value: float | None) -> int | None:
    # As the tables of the report round it.
    return None if value is None else int(f"{value:.3f}".replace(".", ""))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _row(
    point: str, group: str, threshold: float | None, measured: Mapping[str, Estimate], prevalence: float
) -> PointRow:
    sensitivity, specificity = measured["sensitivity"], measured["specificity"]
    referred = missed = None
    if sensitivity.value is not None and specificity.value is not None:
        found = prevalence * sensitivity.value
        referred = PER * (found + (1 - prevalence) * (1 - specificity.value))
        missed = PER * (prevalence - found)
    return PointRow(
        point,
        group,
        threshold,
        sensitivity,
        specificity,
        at_prevalence(measured["ppv"], prevalence),
        at_prevalence(measured["npv"], 1 - prevalence),
        referred,
        missed,
    )
