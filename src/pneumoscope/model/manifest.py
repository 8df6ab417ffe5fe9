"""What ``bundle.json`` says: all that is told of a model besides its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pneumoscope.domain import OperatingPoint
from pneumoscope.errors import BundleError
from pneumoscope.image.standardise import InputSpec

__all__ = ["BundleManifest", "Calibrator", "GateLimits", "Provenance"]

FORMAT_VERSION: Literal[1] = 1

INTENDED_USE = (
    "Research and teaching on frontal chest radiographs. Not a medical device: not for diagnosis, "
    "and not for any decision about a patient."
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibrator(_Frozen):
    """Vector scaling of the logits: softmax(scale * logits + bias); temperature scaling is scale = 1/T.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. After it the log-odds of pneumonia may be
    scaled and moved (Platt, 1999), while the subtypes of pneumonia keep their shares in it: what labels can tell
    that do not know the kind.

    Parameters
    ----------
    method : {"none", "temperature", "vector"}
    scale, bias : tuple of float
        One value, or one per finding.
    odds_scale, odds_bias : float
        Of the log-odds of pneumonia against normal; 1 and 0 leave them alone.
    fitted_on : str
        What images it was fitted on.
    """

    method: Literal["none", "temperature", "vector"] = "none"
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)
    odds_scale: float = Field(default=1.0, gt=0)
    odds_bias: float = 0.0
    fitted_on: str = ""


class GateLimits(_Frozen):
    """What a image must satisfy to be predicted.

    Parameters
    ----------
    min_side : int
        Pixels on the shorter side of the original.
    max_aspect : float
        Longer over shorter side.
    modalities : tuple of str
        DICOM modalities that are projection radiographs.
    body_parts : tuple of str
        DICOM Body Part Examined values that may be a chest; a header without one passes.
    min_contrast : float
        Standard deviation of the grey levels in [0, 1].
    max_clipped : float
        Share of pixels at the lowest or highest level.
    min_lung_certainty : float
        Mean probability that the lung segmenter gives to the lungs it found; where the bundle has one.
        At 0.91 and without `max_novelty` this rejects none of 5,232 children, 4 of 516 adults and 113 of 120
        knees and photographs.
    sure_lung_certainty : float
        Below it the negative of the image is tried as well. Nine of ten adults and 99 of 100 children are
        above it, and no negative of either.
    max_lung_bridge : float
        Share of the height of the lungs at which they may join in the middle; one field of lung is no frontal
        view.
    max_novelty : float or None
        Distance from the chest radiographs that the statistics in ``gate.npz`` stand for; see
        `pneumoscope.predict.novelty`. None where there are none.
    validated_ages : tuple of float
        Years; at the second and above the model is not validated, and the answer says so.
    """

    min_side: int = 64
    max_aspect: float = 2.5
    modalities: tuple[str, ...] = ("CR", "DX", "RG", "DR", "RF")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "LUNG", "RIB", "RIBS", "PORT CHEST", "CHEST PORT")
    min_contrast: float = 0.04
    max_clipped: float = 0.6
    min_lung_certainty: float = 0.91
    sure_lung_certainty: float = 0.945
    max_lung_bridge: float = 0.2
    max_novelty: float | None = None
    validated_ages: tuple[float, float] = (0.0, 18.0)


class Provenance(_Frozen):
    """Where the model comes from, and in what precision it ships.

    Parameters
    ----------
    data_fingerprint, split_fingerprint : str
        Of the data set, held-out images included, and of who is on which side of its split.
    split_method : str
        ``patient`` or ``random``; or ``given``, where the data brought their split, and there is no seed.
    also_description, also_fingerprint : str
        The second data set that was learnt from, and never predicted on.
    teachers : tuple of str
        Their identities.
    parent : str or None
        The bundle that this one was recalibrated from.
    """

    recipe: str = ""
    recipe_sha256: str = ""
    precision: Literal["float32", "int8"] = "float32"
    data_fingerprint: str = ""
    data_description: str = ""
    split_seed: int | None = None
    split_method: str = ""
    split_fingerprint: str = ""
    also_description: str = ""
    also_fingerprint: str = ""
    teachers: tuple[str, ...] = ()
    code_version: str = ""
    created: str = ""
    parent: str | None = None


class BundleManifest(_Frozen):
    """Content of ``bundle.json``.

    Parameters
    ----------
    findings : tuple of str
        Class names in the order of the outputs; the first is ``normal``.
    input : InputSpec
        How images are made ready; the same object that training used.
    operating_points : tuple of OperatingPoint
        Named thresholds on the calibrated probability of pneumonia.
    default_operating_point : str
        The one used unless another is named.
    conformal : tuple of float or None
        Per class, the least calibrated probability at which the class enters the prediction set.
    results : dict
        What ``evaluate`` measured: figures by name, and what they speak of.
    files : dict
        sha256 of each other file of the bundle.
    """

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    findings: tuple[str, ...] = Field(min_length=2)
    input: InputSpec
    calibrator: Calibrator = Calibrator()
    operating_points: tuple[OperatingPoint, ...] = (OperatingPoint("balanced", 0.5),)
    default_operating_point: str = "balanced"
    conformal: tuple[float, ...] | None = None
    conformal_alpha: float | None = None
    gate: GateLimits = GateLimits()
    provenance: Provenance = Provenance()
    results: dict[str, Any] = {}
    intended_use: str = INTENDED_USE
    licence: str = "Apache-2.0"
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _agrees(self) -> BundleManifest:
        if self.findings[0] != "normal":
            raise ValueError(f"the first finding must be 'normal', not {self.findings[0]!r}")
        names = [point.name for point in self.operating_points]
        if self.default_operating_point not in names:
            raise ValueError(f"default operating point {self.default_operating_point!r} is not among {names}")
        if self.conformal is not None and len(self.conformal) != len(self.findings):
            raise ValueError("one conformal threshold per finding is needed")
        if any(
            len(part) not in (1, len(self.findings)) for part in (self.calibrator.scale, self.calibrator.bias)
        ):
            raise ValueError("the calibrator needs one scale and one bias, or one of each per finding")
        return self

    @property
    def calibration_sha256(self) -> str:
        """Hash of all that turns logits into answers: calibrator, operating points, conformal thresholds."""
        parts = self.model_dump(
            mode="json",
            include={"calibrator", "operating_points", "default_operating_point", "conformal"},
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """Return the operating point called `name`, or the default one.

        Raises
        ------
        BundleError
            If the bundle has none of that name.
        """
        wanted = name or self.default_operating_point
        for point in self.operating_points:
            if point.name == wanted:
                return point
        known = ", ".join(point.name for point in self.operating_points)
        raise BundleError(f"{self.name}: no operating point {wanted!r}; it has {known}")
