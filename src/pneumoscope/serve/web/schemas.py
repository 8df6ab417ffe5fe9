"""The responses of the REST interface as pydantic models, from which OpenAPI is generated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.domain import OperatingPoint, Status, Target
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import BundleManifest

__all__ = [
    "BundleFacts",
    "BundleResponse",
    "HeatmapLink",
    "ImageFacts",
    "InlineHeatmap",
    "PopulationFacts",
    "PredictionResponse",
    "PredictionRow",
    "State",
]

Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    # An error must not quote file names.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class ImageFacts(_Frozen):
    """What the file states about the image."""

    format: str
    width: int
    height: int
    bits: int
    view: str
    modality: str | None
    age_band: str | None


class InlineHeatmap(_Frozen):
    """Evidence for a finding: 8-bit grey PNG over `region` (top, left, bottom, right) of the image."""

    finding: str
    region: tuple[float, float, float, float]
    png: str = Field(description="data URL")


class HeatmapLink(_Frozen):
    """URL of the heat map, valid for a short time."""

    finding: str
    region: tuple[float, float, float, float]
    url: str


class PredictionRow(_Frozen):
    """The prediction for one image, with facts of its file."""

    path: str = Field(description="base name of the upload")
    status: Status
    reasons: list[str]
    probabilities: dict[str, Probability] = Field(
        description="calibrated, by class in the order of the model; empty unless the status is ok"
    )
    target: str = Field(description="the finding that the model decides on")
    p_target: Probability | None = Field(description="its probability: the sum over its classes")
    finding: str | None = Field(description="the most probable class")
    decision: str | None = Field(description="the target, or 'no' and the target")
    operating_point: str | None = Field(description="the one that the decision was made at")
    population: str | None = Field(description="the population whose calibration was used")
    prediction_set: list[str] = Field(description="classes that cannot be ruled out")
    bundle: str
    uncertain: bool = Field(
        description="the prediction set holds classes for and against the target, or no class at all"
    )
    message: str = Field(description="what to do, in words; empty if there is nothing to do")
    facts: ImageFacts | None
    sha256: str = Field(description="salted hash of the upload; the salt changes when the server starts")
    heatmap: InlineHeatmap | HeatmapLink | None
    preview: str | None = Field(description="data URL of the image, 8-bit grey")


class PopulationFacts(_Frozen):
    """How predictions of one population are decided."""

    population: str
    operating_points: tuple[OperatingPoint, ...]
    prediction_sets: bool = Field(description="whether prediction sets are given")


class BundleFacts(_Frozen):
    """The model that made the predictions."""

    identity: str
    name: str
    classes: tuple[str, ...] = Field(description="in the order of the model's outputs")
    target: Target
    operating_points: tuple[OperatingPoint, ...] = Field(description="of the default calibration")
    default_operating_point: str
    populations: tuple[PopulationFacts, ...] = Field(
        description="the calibrations by population; the first is the default"
    )

    @classmethod
    def of(cls, bundle: Bundle) -> BundleFacts:
        """Return those of a bundle."""
        manifest = bundle.manifest
        return cls(
            identity=bundle.identity,
            name=manifest.name,
            classes=manifest.classes,
            target=manifest.target,
            operating_points=manifest.calibrations[0].operating_points,
            default_operating_point=manifest.default_operating_point,
            populations=tuple(
                PopulationFacts(
                    population=calibration.population,
                    operating_points=calibration.operating_points,
                    prediction_sets=calibration.conformal is not None,
                )
                for calibration in manifest.calibrations
            ),
        )


class PredictionResponse(_Frozen):
    """One row for each file of the request, in the order of the files."""

    bundle: BundleFacts
    predictions: list[PredictionRow]


class BundleResponse(_Frozen):
    """The model: a summary, its whole manifest, and its card in Markdown."""

    identity: str
    facts: BundleFacts
    manifest: BundleManifest
    card: str


class State(_Frozen):
    """Whether the server works."""

    status: Literal["ok", "ready"]
