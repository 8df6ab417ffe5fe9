"""Figures as people read them: what the report and the model card share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pneumoscope.domain import Prediction

__all__ = [
    "CHANGES",
    "MEASURES",
    "SUBGROUP_NAMES",
    "Measure",
    "bar_floor",
    "change",
    "map_measures",
    "not_evaluated_counts",
    "robustness_rows",
    "span",
    "subgroup_rows",
    "summary",
    "value",
    "with_interval",
    "with_span",
]

Figure = Mapping[str, Any]
Measure = tuple[str, str, str]

# Key in metrics.json, the field's name, and what it says.
MEASURES: tuple[Measure, ...] = (
    ("auroc", "AUROC", "chance that a image with pneumonia gets the higher score of two"),
    ("average_precision", "Average precision", "precision averaged over all thresholds"),
    ("sensitivity", "Sensitivity", "share of pneumonia that is found"),
    ("specificity", "Specificity", "share of normal images that are cleared"),
    ("ppv", "PPV", "share of pneumonia calls that are right, at the mix of this set"),
    ("npv", "NPV", "share of all-clears that are right, at the mix of this set"),
    ("accuracy", "Accuracy", "share of answers that are right"),
    ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
    ("f1", "F1", "harmonic mean of sensitivity and PPV"),
    ("mcc", "MCC", "correlation of answer and truth, −1 to 1"),
    ("brier", "Brier score", "mean squared error of the probability; lower is better"),
    ("ece", "ECE", "mean gap between probability and frequency; lower is better"),
)

SUBGROUP_NAMES = {
    "by_source": "source",
    "by_subtype": "kind",
    "by_view": "view",
    "by_age": "age",
    "by_sex": "sex",
}
"""Sections of metrics.json that hold parts of the set, and what the parts differ in."""

CHANGES = {
    "medmnist_c": "Corruptions of MedMNIST-C",
    "transfer": "Harmless handling",
    "shortcut": "Letters, tubes and borders",
}
"""Sections of the robustness in metrics.json, and what they hold."""

# Section and key in metrics.json, what knows nothing of the image, the name, and what it says.
_MAPS = (
    ("lungs", "energy_in_lungs", "lung_area", "Energy in the lungs", "share of the map inside lung masks"),
    (
        "boxes",
        "pointing_game",
        "pointing_chance",
        "Pointing game",
        "strongest place in or near a box",
    ),
    ("boxes", "pointing_game_strict", "box_area", "Pointing game, strict", "strongest place inside a box"),
    ("boxes", "iou", None, "IoU", "overlap of boxes and map, at half its maximum"),
    ("boxes", "energy_in_boxes", "box_area", "Energy in the boxes", "share of the map inside boxes"),
    (
        "curves",
        "insertion",
        "insertion_other",
        "Insertion",
        "score while the strongest come; more is better",
    ),
    (
        "curves",
        "deletion",
        "deletion_other",
        "Deletion",
        "score while the strongest go; less is better",
    ),
    ("curves", "insertion_blur", "p_blurred", "Insertion, blur", "the same out of a blurred image"),
    ("curves", "deletion_blur", "p_blurred", "Deletion, blur", "the same into a blurred image"),
)


def map_measures(localisation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measures of heat maps that were made, in order: ``name, figure, chance, images, says``.

    ``chance`` is what a map scores that knows nothing of the image: by the area, or with the map of another
    patient; for blur, the probability that the blurred image gets by itself.
    """
    return [
        {
            "name": name,
            "figure": localisation[section][key],
            "chance": None if chance is None else localisation[section][chance],
            "images": localisation[section]["images"],
            "says": says,
        }
        for section, key, chance, name, says in _MAPS
        if section in localisation
    ]


def value(figure: Figure | None, digits: int = 3) -> str:
    """Return the value of a figure, or a dash where it is undefined."""
    return "–" if figure is None or figure["value"] is None else f"{figure['value']:.{digits}f}"


def span(figure: Figure | None, digits: int = 3) -> str:
    """Return the interval of a figure, or an empty text where there is none."""
    if figure is None or figure["low"] is None:
        return ""
    return f"{figure['low']:.{digits}f} to {figure['high']:.{digits}f}"


def with_interval(figure: Figure | None, digits: int = 3) -> str:
    """Return a figure as "value [low, high]", as far as it is defined."""
    if figure is None or figure["low"] is None:
        return value(figure, digits)
    return f"{value(figure, digits)} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def with_span(figure: Figure | None, digits: int = 3) -> str:
    """Return a figure as "value (low to high)", as far as it is defined."""
    interval = span(figure, digits)
    return f"{value(figure, digits)} ({interval})" if interval else value(figure, digits)


def change(figure: Figure, digits: int = 3) -> str:
    """Return a difference with its sign, as "+value (low to high)", as far as it is defined."""
    if figure["value"] is None:
        return value(figure)
    ends = () if figure["low"] is None else (figure["low"], figure["high"])
    interval = " to ".join(f"{end:+.{digits}f}" for end in ends)
    return f"{figure['value']:+.{digits}f}" + (f" ({interval})" if interval else "")


def subgroup_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the subgroups with their ``name``, counts and figures; a group that is the whole set is none."""
    return [
        {**part, "name": f"{what}: {name}"}
        for section, what in SUBGROUP_NAMES.items()
        for name, part in metrics.get(section, {}).items()
        if part["images"] < metrics["images"]
    ]


def robustness_rows(result: Mapping[str, Any], group: str) -> list[dict[str, Any]]:
    """Return the corruptions of one group, then their mean: ``name, strengths`` (AUROC), and the figures."""
    section = result[group]
    rows = [
        {**one, "name": name.replace("_", " "), "strengths": [part["auroc"] for part in one["strengths"]]}
        for name, one in section["corruptions"].items()
    ]
    for row in rows:
        if row["images"] < result["images"]:
            row["name"] += f", {row['images']:,} images"
    return [*rows, {**section["mean"], "name": "mean", "strengths": []}]


def bar_floor(figures: Iterable[Figure]) -> float:
    """Return where the bars of these figures start, so that they can be told apart: 0.8, 0.5 or 0."""
    ends = (figure["value"] if figure["low"] is None else figure["low"] for figure in figures)
    lowest = min((end for end in ends if end is not None), default=0.0)
    return next((floor for floor in (0.8, 0.5) if lowest >= floor), 0.0)


def summary(metrics: Mapping[str, Any]) -> str:
    """Say in two sentences what happened to the images at the operating point."""
    (cleared, alarms), (missed, found) = metrics["pneumonia"]["confusion"]
    return (
        f"At a threshold of {metrics['threshold']:.3f} it found {found:,} of {found + missed:,} images "
        f"with pneumonia and cleared {cleared:,} of {cleared + alarms:,} normal ones. "
        f"It missed {missed:,} and raised {alarms:,} false {'alarm' if alarms == 1 else 'alarms'}."
    )


def not_evaluated_counts(rejected: Sequence[Prediction]) -> dict[str, Any]:
    """Count the images without a score, by status and by reason."""
    status = Counter(row.status for row in rejected)
    reasons = Counter(reason for row in rejected for reason in row.reasons)
    return {
        "rejected": status["rejected"],
        "unreadable": status["unreadable"],
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
