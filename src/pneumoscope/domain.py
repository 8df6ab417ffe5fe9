"""The vocabulary that every package shares: images, populations, findings and predictions.

Everything here is frozen and needs no third-party package but numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "AGE_BANDS",
    "ANY_POPULATION",
    "CodedConcept",
    "DatasetDescription",
    "Estimate",
    "Explanation",
    "OperatingPoint",
    "Population",
    "Prediction",
    "Radiograph",
    "Status",
    "Target",
    "ViewPosition",
    "age_band",
    "probability_column",
]


class ViewPosition(StrEnum):
    """DICOM View Position (0018,5101), reduced to what matters here."""

    PA = "PA"
    AP = "AP"
    LATERAL = "LL"
    OTHER = "other"
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        """As people read it, such as ``lateral view``."""
        return "lateral view" if self is ViewPosition.LATERAL else str(self)


@dataclass(frozen=True, eq=False, slots=True)
class Radiograph:
    """One decoded X-ray image and what its file states about it.

    Parameters
    ----------
    pixels : ndarray of float32, shape (H, W)
        Grey levels in [0, 1]; bright means dense (bone and consolidation bright, air dark).
        May be a DCT-scaled version of the original where the reader was told that less is enough.
    source : str
        The file as the user named it, or ``"<bytes>"``.
    format : str
        ``jpeg``, ``jpeg-ls``, ``jpeg-2000``, ``png``, ``tiff``, ``bmp``, ``webp``, ``gif`` or ``dicom``,
        found from the content.
    height, width : int
        Size of the original in pixels, after the orientation tag was applied.
    bits : int
        Bits stored per sample in the file.
    photometric : str
        DICOM photometric interpretation, or ``grey``, ``rgb``, ``cmyk``, ``palette``.
    spacing : tuple of float or None
        Row and column spacing in mm.
    view : ViewPosition
        As the header states it.
    modality, body_part : str or None
        DICOM Modality (0008,0060) and Body Part Examined (0018,0015), upper case.
    age : float or None
        Patient age in years.
    patient_key : str or None
        Salted hash of the patient ID: groups images of one patient without identifying anyone.
    study_uid, series_uid, sop_uid, sop_class : str or None
        DICOM Study (0020,000D), Series (0020,000E) and SOP Instance UID (0008,0018) and SOP Class UID
        (0008,0016), so that a report can reference the image.
    colour : float
        How much colour varies beyond what brightness explains; 0 for grey images.
    cautions : tuple of str
        Codes of `Reason`: what to know about the grey levels.
    """

    pixels: npt.NDArray[np.float32]
    source: str
    format: str
    height: int
    width: int
    bits: int = 8
    photometric: str = "grey"
    spacing: tuple[float, float] | None = None
    view: ViewPosition = ViewPosition.UNKNOWN
    modality: str | None = None
    body_part: str | None = None
    age: float | None = None
    patient_key: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uid: str | None = None
    sop_class: str | None = None
    colour: float = 0.0
    cautions: tuple[str, ...] = ()


AGE_BANDS = (
    (1, "under 1 year"),
    (6, "1 to 5 years"),
    (18, "6 to 17 years"),
    (40, "18 to 39 years"),
    (65, "40 to 64 years"),
    (math.inf, "65 years or more"),
)
"""Age bands of subgroup metrics and reports: the first year beyond the band, and its name."""


def age_band(years: float) -> str:
    """Return the band of an age in years; an exact age would tell more of a patient than is needed."""
    return next(name for end, name in AGE_BANDS if years < end)


def _bounds(ages: tuple[int | None, int | None]) -> tuple[float, float]:
    """Return the first and last year of age, infinite where there is no bound."""
    first, last = ages
    return -math.inf if first is None else first, math.inf if last is None else last


ANY_POPULATION = "any"
"""Name of the population that every image belongs to."""


@dataclass(frozen=True, slots=True)
class Population:
    """A group of patients and images that a model was trained, calibrated or evaluated on.

    Parameters
    ----------
    name : str
        Such as ``children``.
    ages : tuple of int or None
        First and last completed year of age; None where there is no bound.
    views : tuple of str
        View positions (``PA``, ``AP``, ``LL``); empty for any.
    hospital : str
        Where the images were taken; empty if not stated.
    patients, images : int or None
        How many there were; None if not stated.
    """

    name: str = ANY_POPULATION
    ages: tuple[int | None, int | None] = (None, None)
    views: tuple[str, ...] = ()
    hospital: str = ""
    patients: int | None = None
    images: int | None = None

    def includes(self, age: float | None, view: str = ViewPosition.UNKNOWN) -> bool:
        """Return whether an age in years and a view are known to lie inside; what is unknown does not.

        A population without bounds on age, or on views, includes every age, or view, known or not.
        """
        return self.includes_age(age) and (not self.views or view in self.views)

    def is_known_to_include(self, age: float | None, view: str = ViewPosition.UNKNOWN) -> bool:
        """Return whether this has bounds, and an age and a view are known to lie inside."""
        return self.is_bounded and self.includes(age, view)

    def membership(self, age: float | None, view: str = ViewPosition.UNKNOWN) -> int:
        """Return 1 where an age and a view are known to lie inside, -1 where outside, 0 where not known."""
        if self.includes(age, view):
            return 1
        may_be = age is None or self.includes_age(age)
        may_be = may_be and (not self.views or view in (*self.views, ViewPosition.UNKNOWN))
        return 0 if may_be else -1

    def part(self, other: Population) -> int:
        """Return 1 where all images of another population lie inside, -1 where none do, 0 otherwise."""
        low, high = _bounds(self.ages)
        first, last = _bounds(other.ages)
        if last < low or first > high:
            return -1
        in_views = not self.views or (bool(other.views) and set(other.views) <= set(self.views))
        return int(low <= first and last <= high and in_views)

    def includes_age(self, age: float | None) -> bool:
        """Return whether an age in years lies inside; an unknown one only where there is no bound."""
        first, last = self.ages
        if first is None and last is None:
            return True
        if age is None:
            return False
        return (first is None or age >= first) and (last is None or math.floor(age) <= last)

    @property
    def is_bounded(self) -> bool:
        """Whether there are bounds on age or view."""
        return self.ages != (None, None) or bool(self.views)

    @property
    def is_stated(self) -> bool:
        """Whether anything is stated but how many there were."""
        return replace(self, patients=None, images=None) != Population()

    def describe_with_counts(self) -> str:
        """Return the population in words, with the number of patients and images."""
        counts = [
            f"{count:,} {what}"
            for count, what in ((self.patients, "patients"), (self.images, "images"))
            if count is not None
        ]
        return self.describe() + (f" ({', '.join(counts)})" if counts else "")

    def describe(self) -> str:
        """Return the population in words: name, ages, views and hospital, as far as they are stated."""
        first, last = self.ages
        ages = ""
        if first is not None and last is not None:
            ages = f"{first} to {last} years"
        elif first is not None:
            ages = f"{first} years or more"
        elif last is not None:
            ages = f"up to {last} years"
        views = " and ".join(self.views) + " view" if self.views else ""
        parts = [self.name if self.name != ANY_POPULATION else "", ages, views, self.hospital]
        return ", ".join(part for part in parts if part) or "any patient and view"


@dataclass(frozen=True, slots=True)
class DatasetDescription:
    """What a data set states about itself: the content of ``dataset.yaml``. Empty means not stated.

    Parameters
    ----------
    name : str
        Of the data set.
    population : Population
        Age range and views of the patients.
    hospital : str
        Where the images were taken.
    label_source : str
        Who or what gave the labels, such as ``two radiologists`` or ``mined from reports``.
    licence, citation : str
        Terms of use, and the publication to cite.
    """

    name: str = ""
    population: Population = Population()
    hospital: str = ""
    label_source: str = ""
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True, slots=True)
class CodedConcept:
    """A concept of a terminology, in DICOM's words: code value, coding scheme designator, code meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Target:
    """The finding that a model decides on.

    Parameters
    ----------
    name : str
        Such as ``pneumonia``.
    classes : tuple of str
        The classes that count as it; its probability is the sum of theirs.
    code : CodedConcept or None
        Its code, SNOMED CT for pneumonia.
    """

    name: str
    classes: tuple[str, ...]
    code: CodedConcept | None = None

    @property
    def absent(self) -> str:
        """The decision against it, such as ``no pneumonia``."""
        return f"no {self.name}"

    def includes(self, label: str) -> bool:
        """Return whether a label says that the finding is there: one of its classes, or its own name."""
        return label in self.classes or label == self.name

    def mask(self, classes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which classes count as the target, shape (K,)."""
        import numpy as np  # here, so that `--help` does not wait for it

        return np.array([self.includes(name) for name in classes], np.bool_)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with the ends of its 95% interval; each is None where it is not defined.

    Parameters
    ----------
    value, low, high : float or None
        The measure and its interval.
    reason : str
        Why there is no value, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named threshold on the calibrated probability of the target finding.

    Parameters
    ----------
    name : str
        ``screening``, ``balanced`` or ``rule-in``.
    threshold : float
        At or above it the decision is for the finding; in [0, 1].
    criterion : str
        What the threshold was chosen for, such as ``sensitivity at least 0.98``.
    population : str
        Name of the population that it is for.
    chosen_on : str
        The images that it was chosen on.
    patients : int or None
        Patients among them.
    sensitivity, specificity : Estimate or None
        Measured on those images, in [0, 1].
    """

    name: str
    threshold: float
    criterion: str = ""
    population: str = ANY_POPULATION
    chosen_on: str = ""
    patients: int | None = None
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None


Status = Literal["ok", "rejected", "unreadable"]


def probability_column(name: str) -> str:
    """Return the column of tables that holds the probability of a class or finding: ``p_`` and its name."""
    return "p_" + re.sub(r"\W+", "_", name.strip())


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    status : {"ok", "rejected", "unreadable"}
        Whether there is a prediction.
    reasons : tuple of str
        Codes of `Reason`: why there is none, or cautions.
    probabilities : mapping of str to float
        Calibrated, by class in the order of the bundle, adding up to 1; empty unless the status is ``ok``.
    target : str
        Name of the finding that the bundle decides on.
    p_target : float or None
        Its calibrated probability: the sum over its classes.
    finding : str or None
        The most probable class.
    decision : str or None
        `target` or ``no`` and `target`: `p_target` compared with the threshold of the operating point.
    operating_point, population : str or None
        The operating point that was used, and the population that it is for.
    prediction_set : tuple of str
        The classes that cannot be ruled out at the bundle's coverage.
    bundle : str
        Identity of the model.
    uncertain : bool
        The prediction set holds classes for and against the finding, or is empty although the bundle makes
        sets.
    message : str
        The line for people that goes with the reasons; no column of tables.
    set_coverage : float or None
        Share of images of each class whose prediction set holds it; None where the bundle makes no sets.
    """

    path: str
    status: Status
    reasons: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    target: str = ""
    p_target: float | None = None
    finding: str | None = None
    decision: str | None = None
    operating_point: str | None = None
    population: str | None = None
    prediction_set: tuple[str, ...] = ()
    bundle: str = ""
    uncertain: bool = False
    message: str = field(default="", compare=False)
    set_coverage: float | None = field(default=None, compare=False)

    @property
    def positive(self) -> bool | None:
        """Whether the decision is for the target finding; None without a decision."""
        return None if self.decision is None else self.decision == self.target


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """Where in the image the network found evidence for a finding.

    Parameters
    ----------
    finding : str
        The finding that the map is for.
    heatmap : ndarray of float32, shape (h, w)
        Evidence in [0, 1] over the region of the image that the network saw.
    region : tuple of float
        That region in the image: top, left, bottom, right as fractions of height and width.
    method : {"cam", "occlusion"}
        Class activation map, or occlusion sensitivity.
    """

    finding: str
    heatmap: npt.NDArray[np.float32]
    region: tuple[float, float, float, float]
    method: Literal["cam", "occlusion"] = "cam"
