"""The measures that results consist of: estimates with intervals, by class, subgroup and condition."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

from pneumoscope.domain import Estimate

__all__ = [
    "NOT_MEASURED",
    "AllClasses",
    "BoxMeasures",
    "ClassMeasures",
    "Corrupted",
    "CorruptedMeasures",
    "CorruptionGroup",
    "CurveMeasures",
    "Detection",
    "Intervals",
    "Localisation",
    "LungMeasures",
    "Measured",
    "Measures",
    "MistakeRow",
    "NotEvaluated",
    "PointMeasures",
    "ReliabilityBin",
    "Robustness",
    "RobustnessMeasures",
    "Strength",
    "Subgroup",
    "Subtypes",
    "TargetClasses",
]


def _stated(estimate: Estimate) -> dict[str, Any]:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return ends | ({"reason": estimate.reason} if estimate.reason else {})


Measured = Annotated[Estimate, PlainSerializer(_stated)]
"""An estimate whose empty ``reason`` is not written."""

NOT_MEASURED = Estimate(None, reason="not measured")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class TargetClasses(_Frozen):
    """The finding that was evaluated, and the classes that count as it."""

    name: str
    classes: tuple[str, ...]


class Intervals(_Frozen):
    """How intervals were made: level, method, resamples and seed."""

    level: float = 0.95
    method: str = ""
    resamples: int = 0
    seed: int = 0


class ClassMeasures(_Frozen):
    """Measures of one class, or the target, against the rest; each in [0, 1], ``mcc`` in [-1, 1]."""

    auroc: Measured = NOT_MEASURED
    average_precision: Measured = NOT_MEASURED
    accuracy: Measured = NOT_MEASURED
    balanced_accuracy: Measured = NOT_MEASURED
    sensitivity: Measured = NOT_MEASURED
    specificity: Measured = NOT_MEASURED
    ppv: Measured = NOT_MEASURED
    npv: Measured = NOT_MEASURED
    f1: Measured = NOT_MEASURED
    mcc: Measured = NOT_MEASURED


class Measures(ClassMeasures):
    """Measures that also tell how well the probability is calibrated."""

    brier: Measured = NOT_MEASURED
    ece: Measured = NOT_MEASURED


class Detection(Measures):
    """The target against the rest, at the threshold; ``confusion`` has true rows, predicted columns."""

    confusion: tuple[tuple[int, int], tuple[int, int]] | None = None


class AllClasses(_Frozen):
    """The most probable class against the label.

    ``macro_`` is the mean over the classes that have images, and ``balanced_accuracy`` that of their
    sensitivities.
    """

    accuracy: Measured = NOT_MEASURED
    balanced_accuracy: Measured = NOT_MEASURED
    macro_auroc: Measured = NOT_MEASURED
    macro_average_precision: Measured = NOT_MEASURED
    macro_specificity: Measured = NOT_MEASURED
    macro_ppv: Measured = NOT_MEASURED
    macro_npv: Measured = NOT_MEASURED
    macro_f1: Measured = NOT_MEASURED
    mcc: Measured = NOT_MEASURED
    brier: Measured = NOT_MEASURED
    ece: Measured = NOT_MEASURED
    confusion: tuple[tuple[int, ...], ...] = ()


class Subtypes(_Frozen):
    """Two classes of the target told apart, among images whose label is one of them."""

    auroc: Measured = NOT_MEASURED


class PointMeasures(_Frozen):
    """Sensitivity and specificity at one operating point."""

    threshold: float | None = None
    sensitivity: Measured = NOT_MEASURED
    specificity: Measured = NOT_MEASURED


class Subgroup(Measures):
    """A part of the images: how many, how many with the target, and the measures."""

    images: int
    positive: int


class ReliabilityBin(_Frozen):
    """One bin of the probability of the target: mean predicted, and observed frequency."""

    low: float
    high: float
    images: int
    predicted: float
    observed: float


class MistakeRow(_Frozen):
    """An image on the wrong side of the threshold."""

    path: str
    label: str
    p_target: float
    missed: bool


class NotEvaluated(_Frozen):
    """Images without a prediction, by status and by reason."""

    rejected: int = 0
    unreadable: int = 0
    reasons: dict[str, int] = {}


class LungMeasures(_Frozen):
    """Heat maps against lung masks."""

    images: int
    energy_in_lungs: Measured = NOT_MEASURED
    lung_area: Measured = NOT_MEASURED


class BoxMeasures(_Frozen):
    """Heat maps against radiologists' boxes."""

    images: int
    not_evaluated: int = 0
    without_image: int = 0
    tolerance: float
    iou_at: float
    pointing_game: Measured = NOT_MEASURED
    pointing_game_strict: Measured = NOT_MEASURED
    pointing_chance: Measured = NOT_MEASURED
    iou: Measured = NOT_MEASURED
    energy_in_boxes: Measured = NOT_MEASURED
    box_area: Measured = NOT_MEASURED


class CurveMeasures(_Frozen):
    """Insertion and deletion: areas under the curves, and the mean curves by name."""

    images: int
    steps: int
    insertion: Measured = NOT_MEASURED
    insertion_other: Measured = NOT_MEASURED
    insertion_blur: Measured = NOT_MEASURED
    deletion: Measured = NOT_MEASURED
    deletion_other: Measured = NOT_MEASURED
    deletion_blur: Measured = NOT_MEASURED
    p_blurred: Measured = NOT_MEASURED
    mean: dict[str, tuple[float, ...]] = {}


class Localisation(_Frozen):
    """Heat maps, as far as they were measured."""

    lungs: LungMeasures | None = None
    boxes: BoxMeasures | None = None
    curves: CurveMeasures | None = None


class RobustnessMeasures(_Frozen):
    """Measures of one condition; ``rejected`` is the share of images that the gate rejected."""

    auroc: Measured = NOT_MEASURED
    sensitivity: Measured = NOT_MEASURED
    specificity: Measured = NOT_MEASURED
    rejected: Measured = NOT_MEASURED


class CorruptedMeasures(RobustnessMeasures):
    """Means over the strengths, and their differences from the unchanged images."""

    auroc_change: Measured = NOT_MEASURED
    sensitivity_change: Measured = NOT_MEASURED
    specificity_change: Measured = NOT_MEASURED
    rejected_change: Measured = NOT_MEASURED


class Strength(_Frozen):
    """Values at one strength of a corruption."""

    setting: float | None = None
    auroc: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    rejected: float | None = None


class Corrupted(CorruptedMeasures):
    """One corruption in all its strengths."""

    images: int
    strengths: tuple[Strength, ...] = ()


class CorruptionGroup(_Frozen):
    """Corruptions of one origin, and their mean."""

    mean: CorruptedMeasures = CorruptedMeasures()
    corruptions: dict[str, Corrupted] = {}


class Robustness(_Frozen):
    """Measures under corruptions, harmless handling and shortcuts."""

    images: int
    patients: int
    side: int
    seed: int
    resamples: int
    clean: RobustnessMeasures
    medmnist_c: CorruptionGroup = CorruptionGroup()
    transfer: CorruptionGroup = CorruptionGroup()
    shortcut: CorruptionGroup = CorruptionGroup()
