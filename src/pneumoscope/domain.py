"""The words of the house: what is read, what is answered, what can go wrong.

Everything here is frozen and free of third-party imports but numpy.

The error tree; each error is one line that names the file and the fix::

    PneumoscopeError
    ├── UnreadableImageError   a file that is no image we can read; carries a `Reason`
    ├── BundleError            a bundle that is missing, damaged or of another format
    ├── DataError              a data set, manifest or label table that cannot be used
    ├── RecipeError            a training recipe with an unknown key or a wrong value
    ├── DownloadError          a download that failed or did not match its checksum
    └── MissingExtraError      a feature whose optional packages are not installed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "CAUTIONS",
    "BundleError",
    "DataError",
    "DownloadError",
    "Explanation",
    "MissingExtraError",
    "OperatingPoint",
    "PneumoscopeError",
    "Prediction",
    "Radiograph",
    "Reason",
    "RecipeError",
    "Status",
    "UnreadableImageError",
    "ViewPosition",
]


class PneumoscopeError(Exception):
    """Base of every error that Pneumoscope raises on purpose; its text is one line for people."""


class Reason(StrEnum):
    """Why a image was not read or not predicted, or what to know of it, as a code that programs may test."""

    # Unreadable: the file never became a image.
    NOT_FOUND = "not_found"
    NO_PERMISSION = "no_permission"
    EMPTY_FILE = "empty_file"
    FILE_TOO_LARGE = "file_too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    NO_PIXELS = "no_pixels"
    MULTI_FRAME = "multi_frame"
    READER_STOPPED = "reader_stopped"
    # Rejected: a image, but not one that this model may predict.
    NOT_A_CHEST_RADIOGRAPH = "not_a_chest_radiograph"
    LATERAL_VIEW = "lateral_view"
    TOO_SMALL = "too_small"
    CROPPED = "cropped"
    OVER_EXPOSED = "over_exposed"
    UNDER_EXPOSED = "under_exposed"
    # Cautions: predicted, but with something to know.
    INVERTED = "inverted"
    ADULT_UNVALIDATED = "adult_unvalidated"


CAUTIONS = frozenset({Reason.INVERTED, Reason.ADULT_UNVALIDATED})
"""Reasons that do not keep a image from being predicted."""


class UnreadableImageError(PneumoscopeError):
    """A file that cannot be turned into a image.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    reason : Reason
        The code that goes into the row of the batch.
    detail : str
        What is wrong and what to do about it, one sentence.
    """

    def __init__(self, path: str, reason: Reason, detail: str) -> None:
        detail = " ".join(detail.split())  # a codec's own words may run over several lines
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, Reason, str]]:
        """Keep the error whole when it crosses a process boundary."""
        return (type(self), (self.path, self.reason, self.detail))


class BundleError(PneumoscopeError):
    """A bundle that is missing, damaged or of another format."""


class DataError(PneumoscopeError):
    """A data set, manifest or label table that cannot be used."""


class RecipeError(PneumoscopeError):
    """A training recipe with an unknown key or a wrong value."""


class DownloadError(PneumoscopeError):
    """A download that failed or did not match its checksum."""


class MissingExtraError(PneumoscopeError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs more packages: pip install 'pneumoscope[{extra}]'")
        self.extra = extra


class ViewPosition(StrEnum):
    """DICOM View Position (0018,5101), reduced to what matters here."""

    PA = "PA"
    AP = "AP"
    LATERAL = "LL"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, slots=True)
class Radiograph:
    """One decoded X-ray and what its file says about it.

    Parameters
    ----------
    pixels : ndarray of float32, shape (H, W)
        Grey levels in [0, 1]; bright means dense (bone and consolidation bright, air dark).
        May be a DCT-scaled version of the original where the reader was told that less is enough.
    source : str
        The file as the user named it, or ``"<bytes>"``.
    format : str
        ``jpeg``, ``png``, ``tiff``, ``bmp`` or ``dicom``, found from the content.
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
        Salted hash of the patient ID: groups images of one patient, names nobody.
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


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named threshold on the calibrated probability of pneumonia.

    Parameters
    ----------
    name : str
        ``screening``, ``balanced`` or ``rule-in``.
    threshold : float
        At or above it the decision is "pneumonia"; in [0, 1].
    sensitivity, specificity : float or None
        Measured on the images it was chosen on; in [0, 1].
    """

    name: str
    threshold: float
    sensitivity: float | None = None
    specificity: float | None = None


Status = Literal["ok", "rejected", "unreadable"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image; the columns of every table of results, in this order.

    Probabilities are calibrated and in [0, 1]; they are None where the image was not predicted, and
    ``p_bacterial`` and ``p_viral`` are None for a two-class bundle. The decision compares
    ``p_pneumonia`` with the threshold of the operating point and is a thing apart from them.

    ``message`` is the line for people that goes with the reasons; it is no column. Nor is ``set_coverage``,
    the share of images of each class whose prediction set holds their class; None where the bundle makes
    no sets.
    """

    path: str
    status: Status
    reasons: tuple[str, ...] = ()
    p_normal: float | None = None
    p_bacterial: float | None = None
    p_viral: float | None = None
    p_pneumonia: float | None = None
    finding: str | None = None
    decision: Literal["pneumonia", "no pneumonia"] | None = None
    operating_point: str | None = None
    prediction_set: tuple[str, ...] = ()
    bundle: str = ""
    message: str = field(default="", compare=False)
    set_coverage: float | None = field(default=None, compare=False)

    @property
    def uncertain(self) -> bool:
        """Whether the prediction set settles nothing between normal and pneumonia.

        It holds both, or, where the bundle makes sets, nothing at all: the image is like no class.
        """
        if self.status != "ok":
            return False
        if not self.prediction_set:
            return self.set_coverage is not None
        return "normal" in self.prediction_set and len(self.prediction_set) > 1


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """Where in the image the network saw a finding.

    Parameters
    ----------
    finding : str
        The class that the map speaks for.
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
