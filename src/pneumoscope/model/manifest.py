"""The content of ``bundle.json``: everything about a model but its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pneumoscope.domain import (
    ANY_POPULATION,
    DatasetDescription,
    OperatingPoint,
    Population,
    Target,
    ViewPosition,
    probability_column,
)
from pneumoscope.errors import BundleError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.results import Results

__all__ = [
    "CARD_FILE",
    "FORMAT_VERSION",
    "HEAD_FILE",
    "MODEL_FILE",
    "BundleManifest",
    "Calibration",
    "Calibrator",
    "Provenance",
    "State",
    "TrainingData",
    "sha256_of_json",
]

FORMAT_VERSION: Literal[2] = 2

MODEL_FILE, HEAD_FILE, CARD_FILE = "model.onnx", "head.npz", "card.md"
"""Names of the network, the weights of its head, and the model card in a bundle."""

State = Literal["draft", "calibrated", "evaluated"]
"""``draft``: exported, with placeholder thresholds; ``calibrated``: fitted ones; ``evaluated``: tested."""

INTENDED_USE = (
    "Research and teaching on frontal chest radiographs. Not a medical device: not for diagnosis, "
    "and not for any decision about a patient."
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Calibrator(_Frozen):
    """Vector scaling of the logits: softmax(scale * logits + bias); a temperature T is scale = 1/T, bias = 0.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017. Then the log-odds of the target finding
    may be scaled and shifted (Platt, 1999), which leaves the shares of the classes within it as they are: the
    part that can be fitted on labels without subtypes.

    Parameters
    ----------
    method : {"none", "temperature", "vector"}
    scale, bias : tuple of float
        One value, or one per class.
    odds_scale, odds_bias : float
        Of the log-odds of the target; 1 and 0 leave them unchanged.
    prior_shift : float
        Added to the log-odds of the target after that, for another prevalence than that of the images it was
        fitted on. Prediction sets are made without it.
    fitted_on : str
        The images it was fitted on.
    """

    method: Literal["none", "temperature", "vector"] = "none"
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)
    odds_scale: float = Field(default=1.0, gt=0)
    odds_bias: float = 0.0
    prior_shift: float = 0.0
    fitted_on: str = ""


class Calibration(_Frozen):
    """Everything that turns logits into decisions, for one population.

    Parameters
    ----------
    population : str
        Name of one of the bundle's populations, or ``any``.
    calibrator : Calibrator
    prevalence : float or None
        Share of the target among the images it was fitted on; None where it is not known.
    operating_points : tuple of OperatingPoint
        Named thresholds on the calibrated probability of the target.
    conformal : tuple of float or None
        Per class, the least calibrated probability at which the class enters the prediction set.
    conformal_alpha : float or None
        Share of images of each class whose prediction set may miss it.
    """

    population: str = ANY_POPULATION
    calibrator: Calibrator = Calibrator()
    prevalence: float | None = Field(default=None, ge=0, le=1)
    operating_points: tuple[OperatingPoint, ...] = Field(
        default=(OperatingPoint("balanced", 0.5),), min_length=1
    )
    conformal: tuple[float, ...] | None = None
    conformal_alpha: float | None = None

    @property
    def coverage(self) -> float | None:
        """Share of images of each class whose prediction set holds it; None if not stated."""
        if self.conformal is None or self.conformal_alpha is None:
            return None
        return 1 - self.conformal_alpha


class TrainingData(_Frozen):
    """A data set that the network was trained on.

    Parameters
    ----------
    description : DatasetDescription
        What its ``dataset.yaml`` states.
    fingerprint : str
        Of its images and labels, those held out included.
    additional : bool
        Only trained on: none of its images was held out for validation or test.
    images : int or None
        How many of them were trained on.
    """

    description: DatasetDescription = DatasetDescription()
    fingerprint: str = ""
    additional: bool = False
    images: int | None = None


class Provenance(_Frozen):
    """How the model was made.

    Parameters
    ----------
    recipe, recipe_sha256 : str
        Name and hash of the training recipe.
    precision : {"float32", "float16", "int8"}
        Of the weights of the network that ships; with 16 bits it is computed in float32.
    data : tuple of TrainingData
        The data set, then additional ones.
    split_seed : int or None
        None where the data set had a split already.
    split_method : str
        ``patient``, ``random``, or ``given`` where the data set had a split already.
    split_fingerprint : str
        Of the side of the split that each image is on.
    teachers : tuple of str
        Identities of the bundles that the network was distilled from.
    pretrained : str
        Name and source of the weights that training started from; empty for random ones.
    mean, std : tuple of float
        Normalisation of the backbone's input channels, inside the graph.
    steps : tuple of str
        What was done one after the other, where the model was not made by one run of its recipe.
    code_version, created : str
        Version of Pneumoscope, and date and time (ISO 8601).
    parent : str or None
        The bundle that this one was recalibrated from.
    """

    recipe: str = ""
    recipe_sha256: str = ""
    precision: Literal["float32", "float16", "int8"] = "float32"
    data: tuple[TrainingData, ...] = ()
    split_seed: int | None = None
    split_method: str = ""
    split_fingerprint: str = ""
    teachers: tuple[str, ...] = ()
    pretrained: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    steps: tuple[str, ...] = ()
    code_version: str = ""
    created: str = ""
    parent: str | None = None


class BundleManifest(_Frozen):
    """Content of ``bundle.json``.

    Parameters
    ----------
    state : {"draft", "calibrated", "evaluated"}
        How far the bundle is made; a draft has no fitted thresholds and is not for use.
    classes : tuple of str
        In the order of the network's outputs; any names, two or more.
    target : Target
        The finding that the bundle decides on, and the classes that count as it.
    input : InputSpec
        How images are standardised; the same object that training used.
    calibrations : tuple of Calibration
        The first is the default; others are for the populations that they name.
    populations : tuple of Population
        Which ages and views belong to the populations that calibrations name.
    validated : tuple of Population
        The populations that the bundle was evaluated on, with the number of patients.
    default_operating_point : str
        The one used unless another is named; every calibration has it.
    gate : GateLimits
    provenance : Provenance
    results : Results
        What evaluation measured.
    files : dict
        sha256 of each other file of the bundle.
    """

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    state: State = "draft"
    classes: tuple[str, ...] = Field(min_length=2)
    target: Target
    input: InputSpec
    calibrations: tuple[Calibration, ...] = Field(default=(Calibration(),), min_length=1)
    populations: tuple[Population, ...] = ()
    validated: tuple[Population, ...] = ()
    default_operating_point: str = "balanced"
    gate: GateLimits = GateLimits()
    provenance: Provenance = Provenance()
    results: Results = Results()
    intended_use: str = INTENDED_USE
    licence: str = "Apache-2.0"
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> BundleManifest:
        classes, target = self.classes, self.target
        columns = {probability_column(name) for name in classes}
        if len(columns) < len(classes):
            raise ValueError(f"two of the classes {', '.join(classes)} have the same name")
        if not target.classes or not set(target.classes) < set(classes):
            raise ValueError(
                f"the classes of the target, {', '.join(target.classes) or 'none'}, must be some of "
                f"{', '.join(classes)}, but not all"
            )
        if probability_column(target.name) in columns and target.classes != (target.name,):
            raise ValueError(f"the target {target.name!r} is named like a class but is not that class alone")
        known = {ANY_POPULATION, *(population.name for population in self.populations)}
        names = [calibration.population for calibration in self.calibrations]
        if len(set(names)) < len(names) or not set(names) <= known:
            raise ValueError(f"calibrations need one each of the populations {', '.join(sorted(known))}")
        for calibration in self.calibrations:
            self._check_calibration(calibration)
        return self

    def _check_calibration(self, calibration: Calibration) -> None:
        points = [point.name for point in calibration.operating_points]
        if (chosen := self.default_operating_point) not in points:
            raise ValueError(f"default operating point {chosen!r} is not among {', '.join(points)}")
        if calibration.conformal is not None and len(calibration.conformal) != len(self.classes):
            raise ValueError("one conformal threshold per class is needed")
        calibrator = calibration.calibrator
        if any(len(part) not in (1, len(self.classes)) for part in (calibrator.scale, calibrator.bias)):
            raise ValueError("the calibrator needs one scale and one bias, or one of each per class")

    @property
    def target_mask(self) -> npt.NDArray[np.bool_]:
        """Which classes count as the target, shape (K,)."""
        return self.target.mask(self.classes)

    def was_trained_on(self, fingerprint: str) -> bool:
        """Return whether a data set of this fingerprint is among those that it was trained on."""
        return any(data.fingerprint == fingerprint for data in self.provenance.data)

    @property
    def calibration_sha256(self) -> str:
        """Hash of everything that turns logits into decisions, but not of how it was chosen."""
        parts = self.model_dump(mode="json", include={"classes", "populations", "default_operating_point"})
        for population in parts["populations"]:
            del population["hospital"], population["patients"], population["images"]
        calibrations = [
            {
                "population": one.population,
                "calibrator": _calibrator_parts(one.calibrator),
                "thresholds": {point.name: point.threshold for point in one.operating_points},
                "conformal": one.conformal,
            }
            for one in self.calibrations
        ]
        return sha256_of_json(parts | {"target": self.target.classes, "calibrations": calibrations})

    @property
    def decision_sha256(self) -> str:
        """Hash of everything that determines a prediction: networks, input, gate and calibrations."""
        # The head is for heat maps only: the network contains its own.
        files = {name: sha for name, sha in self.files.items() if name not in {CARD_FILE, HEAD_FILE}}
        rest = self.model_dump(mode="json", include={"input", "gate"})
        return sha256_of_json({"files": files, "calibration": self.calibration_sha256, **rest})

    def population_of(
        self, age: float | None, view: str = ViewPosition.UNKNOWN, estimated: str | None = None
    ) -> str:
        """Return the name of the first calibrated population that an image is known to belong to.

        Parameters
        ----------
        age : float or None
            Of the patient in years; None where it is not known.
        view : str
            View position.
        estimated : str, optional
            The population by the bundle's own classifier, for an image whose age is not known.
        """
        calibrated = {calibration.population for calibration in self.calibrations}
        for population in self.populations:
            if population.name in calibrated and population.includes(age, view):
                return population.name
        if age is None and estimated in calibrated:
            return estimated
        return self.calibrations[0].population

    def calibration_for(self, population: str | None = None) -> Calibration:
        """Return the calibration for a population, or the default one.

        Raises
        ------
        BundleError
            If the bundle has none for it.
        """
        if population is None:
            return self.calibrations[0]
        for calibration in self.calibrations:
            if calibration.population == population:
                return calibration
        known = ", ".join(calibration.population for calibration in self.calibrations)
        raise BundleError(f"{self.name}: no calibration for the population {population!r}; it has {known}")

    def operating_point(self, name: str | None = None, population: str | None = None) -> OperatingPoint:
        """Return an operating point by name for a population; the defaults if not given.

        Raises
        ------
        BundleError
            If the bundle has none of that name, or no such population.
        """
        points = self.calibration_for(population).operating_points
        requested = name or self.default_operating_point
        for point in points:
            if point.name == requested:
                return point
        known = ", ".join(point.name for point in points)
        raise BundleError(f"{self.name}: no operating point {requested!r}; it has {known}")


def _calibrator_parts(calibrator: Calibrator) -> dict[str, object]:
    # Without a shift as before there was one: hashes of existing bundles stay.
    unused = {"method", "fitted_on"} | (set() if calibrator.prior_shift else {"prior_shift"})
    return calibrator.model_dump(mode="json", exclude=unused)


def sha256_of_json(parts: Mapping[str, object]) -> str:
    """Return the SHA-256 of values as JSON, with sorted keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
