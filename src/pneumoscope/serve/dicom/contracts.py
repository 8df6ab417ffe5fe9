"""What the parts of the node exchange: the result of a study, the objects made of it, their delivery."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, Prediction
from pneumoscope.model.bundle import Bundle

__all__ = [
    "Delivery",
    "Outcome",
    "OutgoingObject",
    "PublishedObject",
    "ResultOptions",
    "Sender",
    "SourceImage",
    "StudyResult",
]


@dataclass(frozen=True, eq=False, slots=True)
class SourceImage:
    """One received image with what was found in it.

    Parameters
    ----------
    path : Path
        The dataset as it was received, a DICOM file with preamble and file meta information.
    sop_class, sop_instance : str
        UIDs that the sender stated and the file meta information has.
    sha256 : str
        Of the received dataset without its file meta information, so that derived UIDs follow the content.
    prediction : Prediction
        Also of an image that was rejected or could not be read; its ``reasons`` and ``message`` say why.
    explanation : Explanation or None
        The heat map, its longer side 256 at most; None without a prediction.
    preview : ndarray of uint8, shape (H, W), or None
        The whole image, bright means dense, its longer side 1,024 at most; None where it was not decoded.
    height, width : int or None
        Rows and columns of the original; None where it was not decoded.
    """

    path: Path
    sop_class: str
    sop_instance: str
    sha256: str
    prediction: Prediction
    explanation: Explanation | None = None
    preview: npt.NDArray[np.uint8] | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class StudyResult:
    """What is reported about a study: the images that were processed together.

    The composition of a result and the time of its making are journalled before anything is made of it. The
    same result therefore gives the same objects, byte for byte, however often it is made.

    Parameters
    ----------
    study_uid : str
        Study Instance UID of all its images.
    images : tuple of SourceImage
        One or more, ordered by SOP Instance UID.
    bundle : Bundle
        That predicted them.
    made : datetime
        When the result was composed, with time zone; the content date and time of all objects.
    revision : int
        0; one more each time that the result is made again after a retraction, which gives new UIDs.
    """

    study_uid: str
    images: tuple[SourceImage, ...]
    bundle: Bundle
    made: datetime.datetime
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Which objects are made of a result.

    Parameters
    ----------
    structured_report, secondary_capture, presentation_state : bool
        For images with a prediction.
    rejections : {"secondary_capture", "structured_report", "both", "none"}
        For images without one.
    institution : str
        Name of the site as the equipment that made the results states it; empty for none.
    series_number : int
        Of the first series of results; the following ones count up.
    """

    structured_report: bool = True
    secondary_capture: bool = True
    presentation_state: bool = False
    rejections: Literal["secondary_capture", "structured_report", "both", "none"] = "both"
    institution: str = ""
    series_number: int = 9000


@dataclass(frozen=True, slots=True)
class PublishedObject:
    """An object that was made of a result and may lie at a destination; what a retraction refers to.

    Parameters
    ----------
    path : Path
        Our own copy of it.
    study_uid, series_uid, sop_class, sop_instance : str
        Its UIDs.
    """

    path: Path
    study_uid: str
    series_uid: str
    sop_class: str
    sop_instance: str


OutgoingObject = PublishedObject
"""An object to send; it is a file that the node wrote itself."""


class Outcome(StrEnum):
    """What became of an object that was to be sent."""

    SENT = "sent"
    """The destination has stored it and has confirmed that."""
    ALREADY_THERE = "already there"
    """The destination had it before."""
    RETRY = "retry"
    """Not stored, or not known whether; to be tried later, asking the destination first."""
    NOT_TRIED = "not tried"
    """Nothing of it was sent, because the connection was lost before its turn or could not be opened."""
    FAILED = "failed"
    """The destination does not take this object at all: it rejects the class or the dataset."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one object.

    Parameters
    ----------
    sop_instance : str
        Of the object.
    outcome : Outcome
    detail : str
        Why, in a line without any attribute of the patient: a status in hexadecimal, an HTTP status, the
        kind of a network error.
    """

    sop_instance: str
    outcome: Outcome
    detail: str = ""


class Sender(Protocol):
    """A destination that objects can be sent to; used by one thread at a time.

    It keeps its connection open between calls and opens it again where the other side has closed it. No
    method raises for what happens on the network, except where stated.
    """

    def present(self, objects: Sequence[OutgoingObject]) -> frozenset[str] | None:
        """Return the SOP Instance UIDs of those objects that the destination has stored already.

        None where it cannot be asked: it is unreachable, or its configuration says that it has no query.
        """
        ...

    def send(self, objects: Sequence[OutgoingObject]) -> list[Delivery]:
        """Send objects; return one `Delivery` each, in order."""
        ...

    def echo(self) -> str:
        """Return an empty string if the destination responds, else why not, in a line."""
        ...

    def close(self) -> None:
        """Release the connection."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
