"""The answers of the REST interface, as pydantic models; OpenAPI is drawn from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.domain import OperatingPoint, Status
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import BundleManifest

__all__ = ["Answer", "BundleFacts", "BundlePage", "Facts", "HeatmapLink", "InlineHeatmap", "Row", "State"]

Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    # An error must not quote what a file is called.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Facts(_Frozen):
    """What the file says about the image."""

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
    """Where the heat map can be fetched, for a short while."""

    finding: str
    region: tuple[float, float, float, float]
    url: str


class Row(_Frozen):
    """One image: the columns of every table of results, and what a page shows beside them."""

    path: str = Field(description="base name of the upload")
    status: Status
    reasons: list[str]
    p_normal: Probability | None
    p_bacterial: Probability | None
    p_viral: Probability | None
    p_pneumonia: Probability | None
    finding: str | None
    decision: Literal["pneumonia", "no pneumonia"] | None
    operating_point: str | None
    prediction_set: list[str]
    bundle: str
    uncertain: bool = Field(description="the prediction set holds normal and pneumonia, or no class at all")
    message: str = Field(description="what to do, for people; empty if there is nothing to do")
    facts: Facts | None
    sha256: str = Field(description="salted hash of the upload; the salt changes when the server starts")
    heatmap: InlineHeatmap | HeatmapLink | None
    preview: str | None = Field(description="data URL of the image, 8-bit grey")


class BundleFacts(_Frozen):
    """The model that answered."""

    identity: str
    name: str
    findings: tuple[str, ...]
    operating_points: tuple[OperatingPoint, ...]
    default_operating_point: str

    @classmethod
    def of(cls, bundle: Bundle) -> BundleFacts:
        """Return those of a bundle."""
        manifest = bundle.manifest
        return cls(
            identity=bundle.identity,
            name=manifest.name,
            findings=manifest.findings,
            operating_points=manifest.operating_points,
            default_operating_point=manifest.default_operating_point,
        )


class Answer(_Frozen):
    """One row for each file of the request, in their order."""

    bundle: BundleFacts
    predictions: list[Row]


class BundlePage(_Frozen):
    """The model, and its card in Markdown."""

    identity: str
    manifest: BundleManifest
    card: str


class State(_Frozen):
    """Whether the server works."""

    status: Literal["ok", "ready"]
