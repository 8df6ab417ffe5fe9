"""Results as text: what the report, the model card and the command line share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pneumoscope.domain import Estimate, Prediction
from pneumoscope.errors import CAUTIONS
from pneumoscope.model.measures import (
    CorruptedMeasures,
    CorruptionGroup,
    Localisation,
    NotEvaluated,
    PointMeasures,
    Robustness,
    Subgroup,
)
from pneumoscope.model.results import Evaluation, ExternalValidation, RecalibrationResult, RecalibrationSide
from pneumoscope.report.rows import threshold_text

__all__ = [
    "CHANGES",
    "MapRow",
    "Measure",
    "RobustnessRow",
    "bar_floor",
    "change",
    "comparison_rows",
    "count_not_evaluated",
    "fact_list",
    "line",
    "map_rows",
    "markdown_table",
    "measures_of",
    "robustness_rows",
    "span",
    "subgroup_name",
    "subgroup_rows",
    "summary",
    "threshold",
    "value",
    "with_interval",
    "with_span",
]

Measure = tuple[str, str, str]
"""Attribute of `Measures`, the field's name, and what it means."""

_MEASURES: tuple[Measure, ...] = (
    ("auroc", "AUROC", "probability that an image with {target} scores higher than one without"),
    ("average_precision", "Average precision", "precision averaged over all thresholds"),
    ("sensitivity", "Sensitivity", "share of images with {target} that are detected"),
    ("specificity", "Specificity", "share of images without {target} that are predicted negative"),
    ("ppv", "PPV", "share of positive predictions that are right, at the prevalence of this set"),
    ("npv", "NPV", "share of negative predictions that are right, at the prevalence of this set"),
    ("accuracy", "Accuracy", "share of predictions that are right"),
    ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
    ("f1", "F1", "harmonic mean of sensitivity and PPV"),
    ("mcc", "MCC", "correlation of prediction and label, −1 to 1"),
    ("brier", "Brier score", "mean squared error of the probability; lower is better"),
    ("ece", "ECE", "mean gap between probability and frequency; lower is better"),
)

_SUBGROUPS = {
    "by_population": "population",
    "by_source": "source",
    "by_subtype": "subtype",
    "by_view": "view",
    "by_age": "age",
    "by_sex": "sex",
}

CHANGES = {
    "medmnist_c": "Corruptions of MedMNIST-C",
    "transfer": "Harmless handling",
    "shortcut": "Letters, tubes and borders",
}
"""Groups of `Robustness`, and what they hold."""

# Section and attribute, the chance level, the name, and what it means.
_MAPS = (
    ("lungs", "energy_in_lungs", "lung_area", "Energy in the lungs", "share of the map inside lung masks"),
    ("boxes", "pointing_game", "pointing_chance", "Pointing game", "maximum in or near a box"),
    ("boxes", "pointing_game_strict", "box_area", "Pointing game, strict", "maximum inside a box"),
    ("boxes", "iou", None, "IoU", "overlap of boxes and map, at half its maximum"),
    ("boxes", "energy_in_boxes", "box_area", "Energy in the boxes", "share of the map inside boxes"),
    (
        "curves",
        "insertion",
        "insertion_other",
        "Insertion",
        "score while the strongest are shown; more is better",
    ),
    (
        "curves",
        "deletion",
        "deletion_other",
        "Deletion",
        "score while the strongest are hidden; less is better",
    ),
    ("curves", "insertion_blur", "p_blurred", "Insertion, blur", "the same from a blurred image"),
    ("curves", "deletion_blur", "p_blurred", "Deletion, blur", "the same to a blurred image"),
)


@dataclass(frozen=True, slots=True)
class MapRow:
    """One measure of heat maps: its estimate, and `chance`, what a map unrelated to the image would reach."""

    name: str
    estimate: Estimate
    chance: Estimate | None
    images: int
    meaning: str


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """One corruption, or the mean of a group; `strengths` are the AUROC from the weakest to the strongest."""

    name: str
    strengths: tuple[float | None, ...]
    measures: CorruptedMeasures


def threshold(value: float) -> str:
    """Return a threshold with three decimals, or with as many as tell it from 0 and from 1."""
    return f"{value:.3f}" if 0.001 <= value <= 0.999 else threshold_text(value, percent=False)


def measures_of(target: str) -> tuple[Measure, ...]:
    """Return the measures of detection in the order that people read them."""
    return tuple((key, name, meaning.format(target=target)) for key, name, meaning in _MEASURES)


def map_rows(localisation: Localisation | None) -> list[MapRow]:
    """Return the measures of heat maps that were made, in order."""
    rows = []
    for section, key, chance, name, meaning in _MAPS:
        part = getattr(localisation, section, None)
        if part is not None:
            level = None if chance is None else getattr(part, chance)
            rows.append(MapRow(name, getattr(part, key), level, part.images, meaning))
    return rows


def value(estimate: Estimate | None, digits: int = 3) -> str:
    """Return the value of an estimate, or a dash where it is undefined."""
    return "–" if estimate is None or estimate.value is None else f"{estimate.value:.{digits}f}"


def span(estimate: Estimate | None, digits: int = 3) -> str:
    """Return the interval of an estimate, or an empty text where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def with_interval(estimate: Estimate | None, digits: int = 3) -> str:
    """Return an estimate as "value [low, high]", as far as it is defined."""
    interval = span(estimate, digits).replace(" to ", ", ")
    return f"{value(estimate, digits)} [{interval}]" if interval else value(estimate, digits)


def with_span(estimate: Estimate | None, digits: int = 3) -> str:
    """Return an estimate as "value (low to high)", as far as it is defined."""
    interval = span(estimate, digits)
    return f"{value(estimate, digits)} ({interval})" if interval else value(estimate, digits)


def change(estimate: Estimate, digits: int = 3) -> str:
    """Return a difference with its sign, as "+value (low to high)", as far as it is defined."""
    if estimate.value is None:
        return value(estimate)
    ends = [f"{end:+.{digits}f}" for end in (estimate.low, estimate.high) if end is not None]
    return f"{estimate.value:+.{digits}f}" + (f" ({' to '.join(ends)})" if ends else "")


def subgroup_name(section: str, name: str) -> str:
    """Return what a part of a section of ``metrics.json`` is called, such as ``age: 1 to 5 years``."""
    return f"{_SUBGROUPS[section]}: {name}"


def subgroup_rows(measured: ExternalValidation) -> list[tuple[str, Subgroup]]:
    """Return the subgroups with their names; a group that is the whole set is left out."""
    return [
        (subgroup_name(section, name), part)
        for section in _SUBGROUPS
        for name, part in getattr(measured, section, {}).items()
        if part.images < measured.images
    ]


def robustness_rows(result: Robustness, group: str) -> list[RobustnessRow]:
    """Return the corruptions of one group of `CHANGES`, then their mean."""
    section: CorruptionGroup = getattr(result, group)
    rows = []
    for name, one in section.corruptions.items():
        some = f", {one.images:,} images" if one.images < result.images else ""
        strengths = tuple(part.auroc for part in one.strengths)
        rows.append(RobustnessRow(name.replace("_", " ") + some, strengths, one))
    return [*rows, RobustnessRow("mean", (), section.mean)]


def bar_floor(estimates: Iterable[Estimate]) -> float:
    """Return where the bars of these estimates start, so that they can be told apart: 0.8, 0.5 or 0."""
    ends = (one.value if one.low is None else one.low for one in estimates)
    lowest = min((end for end in ends if end is not None), default=0.0)
    return next((floor for floor in (0.8, 0.5) if lowest >= floor), 0.0)


def summary(evaluation: Evaluation) -> str:
    """Return two sentences on the predictions at the operating point."""
    if evaluation.detection.confusion is None or evaluation.threshold is None:
        return ""
    (cleared, alarms), (missed, found) = evaluation.detection.confusion
    target = evaluation.target.name
    alarm = "alarm" if alarms == 1 else "alarms"
    at = threshold(evaluation.threshold)
    return (
        f"At a threshold of {at}, {found:,} of {found + missed:,} images with {target} were positive and "
        f"{cleared:,} of {cleared + alarms:,} without it negative: {missed:,} missed, "
        f"{alarms:,} false {alarm}."
    )


def count_not_evaluated(predictions: Sequence[Prediction]) -> NotEvaluated:
    """Count the images without a prediction, by status and by reason; cautions are none."""
    status = Counter(one.status for one in predictions)
    reasons = Counter(str(reason) for one in predictions for reason in one.reasons if reason not in CAUTIONS)
    return NotEvaluated(
        rejected=status["rejected"],
        unreadable=status["unreadable"],
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def comparison_rows(results: RecalibrationResult) -> list[tuple[str, str, str]]:
    """Return measure, parent's estimate and recalibrated one, each with its interval."""
    sides = (results.parent, results.recalibrated)

    def row(name: str, *estimates: Estimate | None) -> tuple[str, str, str]:
        before, after = map(with_interval, estimates)
        return name, before, after

    rows = [
        row("AUROC", *(side.auroc for side in sides)),
        row("ECE", *(side.ece for side in sides)),
        row("Brier score", *(side.brier for side in sides)),
    ]
    for point in dict.fromkeys([*sides[1].operating_points, *sides[0].operating_points]):
        both = [side.operating_points.get(point, PointMeasures()) for side in sides]
        rows.append(row(f"{point}: sensitivity", *(one.sensitivity for one in both)))
        rows.append(row(f"{point}: specificity", *(one.specificity for one in both)))
    return rows + [row(name, *(_of_sets(side, name) for side in sides)) for name in _names_of_sets(sides)]


_UNCERTAIN = "uncertain"


def _names_of_sets(sides: Iterable[RecalibrationSide]) -> list[str]:
    sets = [side.prediction_sets for side in sides if side.prediction_sets is not None]
    names = [f"coverage of {name}" for one in reversed(sets) for name in one.coverage]
    return [*dict.fromkeys(names), _UNCERTAIN] if sets else []


def _of_sets(side: RecalibrationSide, name: str) -> Estimate | None:
    if side.prediction_sets is None:
        return None
    if name == _UNCERTAIN:
        return side.prediction_sets.uncertain
    return side.prediction_sets.coverage.get(name.removeprefix("coverage of "))


def line(text: object) -> str:
    """Return text that cannot break a table or a line of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|")


def fact_list(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return a Markdown list of names and facts, without those that are None or empty."""
    return "\n".join(f"- {name}: {line(fact)}" for name, fact in pairs if fact is not None and fact != "")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; each row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line(cell) for cell in row) + " |" for row in lines)
