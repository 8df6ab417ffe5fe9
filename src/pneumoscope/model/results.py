"""What was measured of a bundle: the part ``results`` of ``bundle.json``, and what ``metrics.json`` holds.

`pneumoscope.evaluation` measures and writes it; cards, reports and ``pneumoscope info`` read it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pneumoscope.domain import Population
from pneumoscope.model.measures import (
    NOT_MEASURED,
    AllClasses,
    ClassMeasures,
    Detection,
    Intervals,
    Localisation,
    Measured,
    MistakeRow,
    NotEvaluated,
    PointMeasures,
    ReliabilityBin,
    Robustness,
    Subgroup,
    Subtypes,
    TargetClasses,
)

__all__ = [
    "EstimateMeasures",
    "Evaluation",
    "ExternalValidation",
    "GateMeasures",
    "ParentResults",
    "PredictionSets",
    "RecalibrationResult",
    "RecalibrationSide",
    "Results",
    "Speed",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ExternalValidation(_Frozen):
    """What a bundle did on one set of images.

    Parameters
    ----------
    evaluated_on : str
        What the images are.
    population : Population or None
        Ages, views and hospital of the images, as far as stated.
    decisions : str
        `BundleManifest.decision_sha256` of the bundle as it was measured: results of other decisions are not
        this bundle's. Empty in the own evaluation of a bundle of format 1.
    images_by_class : dict of str to int
        The classes are those that the labels distinguish.
    threshold : float
        On the probability of the target.
    """

    evaluated_on: str = ""
    population: Population | None = None
    decisions: str = ""
    images: int = 0
    patients: int = 0
    images_by_class: dict[str, int] = {}
    threshold: float | None = None
    intervals: Intervals = Intervals()
    detection: Detection = Detection()
    by_source: dict[str, Subgroup] = {}
    by_subtype: dict[str, Subgroup] = {}
    by_view: dict[str, Subgroup] = {}
    by_age: dict[str, Subgroup] = {}
    by_sex: dict[str, Subgroup] = {}
    localisation: Localisation | None = None
    not_evaluated: NotEvaluated | None = None


class Evaluation(ExternalValidation):
    """All that was measured on the bundle's own test images; ``metrics.json`` is its JSON."""

    classes: tuple[str, ...] = ()
    target: TargetClasses = TargetClasses(name="pneumonia", classes=())
    all_classes: AllClasses = AllClasses()
    by_class: dict[str, ClassMeasures] = {}
    subtypes: dict[str, Subtypes] = {}
    operating_points: dict[str, PointMeasures] = {}
    reliability: tuple[ReliabilityBin, ...] = ()
    mistakes: tuple[MistakeRow, ...] = ()
    robustness: Robustness | None = None


class PredictionSets(_Frozen):
    """Share of each class's images whose prediction set holds it, and of images that are uncertain."""

    coverage: dict[str, Measured] = {}
    uncertain: Measured = NOT_MEASURED


class RecalibrationSide(_Frozen):
    """Measures before, or after, a recalibration."""

    auroc: Measured = NOT_MEASURED
    ece: Measured = NOT_MEASURED
    brier: Measured = NOT_MEASURED
    operating_points: dict[str, PointMeasures] = {}
    prediction_sets: PredictionSets | None = None


class RecalibrationResult(_Frozen):
    """What a recalibration was fitted on and what it brought.

    Parameters
    ----------
    copies : int
        Augmented copies of each image that were fitted on as well.
    target_only : bool
        Whether the labels did not distinguish the classes of the target, so that only the target was
        calibrated against the rest.
    not_evaluated : int
        Images that were unreadable or rejected.
    """

    evaluated_on: str = ""
    population: Population | None = None
    data_fingerprint: str = ""
    method: str = ""
    copies: int = 0
    target_only: bool = False
    folds: int = 0
    images: int = 0
    patients: int = 0
    not_evaluated: int = 0
    images_by_class: dict[str, int] = {}
    intervals: Intervals = Intervals()
    parent: RecalibrationSide = RecalibrationSide()
    recalibrated: RecalibrationSide = RecalibrationSide()


class ParentResults(_Frozen):
    """The bundle that this one was recalibrated from, its own evaluation and its own recalibration."""

    identity: str
    evaluation: Evaluation | None = None
    recalibration: RecalibrationResult | None = None


class GateMeasures(_Frozen):
    """How the gate treats one source of chest radiographs, or one kind of other images.

    Parameters
    ----------
    images : int
    chest : bool
        Whether they are frontal chest radiographs.
    rejected : float
        Share of held-out images that the chest classifier rejects, in [0, 1].
    rejected_left_out : float or None
        The same for a classifier that was fitted without this source or kind; None for the only source.
    """

    images: int
    chest: bool
    rejected: float
    rejected_left_out: float | None


class EstimateMeasures(_Frozen):
    """How often the classifier of populations, or of views, is right, for one of them.

    Parameters
    ----------
    images : int
        Held-out images that are known to be of the population or view.
    correct : float
        Share of them that are assigned to it, in [0, 1].
    """

    images: int
    correct: float


class Speed(_Frozen):
    """Time from file to prediction; ``latency_ms`` is the median of one image alone."""

    images_per_second: float
    latency_ms: float
    measured_on: str = ""


class Results(_Frozen):
    """The part ``results`` of ``bundle.json``.

    The bundle's own evaluation; external validations by name; its recalibration, and the bundle that it was
    recalibrated from; how its gate treats each source and kind of images; how well it estimates
    population and view; and its speed, with the machine.
    """

    evaluation: Evaluation | None = None
    external: dict[str, ExternalValidation] = {}
    recalibration: RecalibrationResult | None = None
    parent: ParentResults | None = None
    gate: dict[str, GateMeasures] = {}
    populations: dict[str, EstimateMeasures] = {}
    views: dict[str, EstimateMeasures] = {}
    speed: Speed | None = None
