"""An image on its way through `Pipeline` and network: what it is prepared to, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, Prediction, Radiograph, Status, ViewPosition
from pneumoscope.errors import Reason
from pneumoscope.image.standardise import Standardised

__all__ = ["ExplainedPrediction", "Output", "Prepared", "RawScore"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class RawScore:
    """The network's output for one image before calibration; calibrators are fitted on it.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    status : {"ok", "rejected", "unreadable"}
        As in a `Prediction`.
    reasons : tuple of Reason
        Why it was not read or was rejected, and cautions; also kept where the gate was overridden.
    logits : ndarray of float32, shape (K,), or None
        None unless the status is ``ok``.
    message : str
        The line for people that goes with the reasons.
    age : float or None
        Of the patient in years, as header or manifest state it.
    view : str
        View position, likewise.
    estimated : str or None
        The population by the bundle's own classifier; None where it has none or the age is stated.
    estimated_view : str
        The view position, likewise; ``unknown`` where it is stated, or not estimated.
    """

    path: str
    status: Status
    reasons: tuple[Reason, ...] = ()
    logits: Floats | None = None
    message: str = ""
    age: float | None = None
    view: str = ViewPosition.UNKNOWN
    estimated: str | None = None
    estimated_view: str = ViewPosition.UNKNOWN


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """An image that went through the pipeline; the fields of `RawScore`, and what the network gets.

    Parameters
    ----------
    radiograph : Radiograph or None
        The decoded image, inverted grayscale corrected, in the orientation of the file; None where it could
        not be decoded or came from the cache.
    input : Standardised or None
        The network's input; None where the image is rejected or unreadable.
    """

    path: str
    status: Status
    reasons: tuple[Reason, ...] = ()
    message: str = ""
    radiograph: Radiograph | None = None
    input: Standardised | None = None
    age: float | None = None
    view: str = ViewPosition.UNKNOWN
    estimated: str | None = None
    estimated_view: str = ViewPosition.UNKNOWN

    def score(self, logits: Floats | None = None) -> RawScore:
        """Return the score of this image with the network's output."""
        facts = (self.message, self.age, self.view, self.estimated, self.estimated_view)
        return RawScore(self.path, self.status, self.reasons, logits, *facts)


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """All outputs of the network for one image; calibrators, backgrounds and gates are fitted on them.

    Parameters
    ----------
    score : RawScore
        With the logits.
    features : ndarray of float32, shape (D, h, w), or None
        The last feature maps; their mean over all locations is the embedding. None without a prediction.
    standardised : Standardised or None
        The network's input, with the detected lungs; None without a prediction.
    """

    score: RawScore
    features: Floats | None = None
    standardised: Standardised | None = None

    @classmethod
    def of(cls, one: Prepared, logits: Floats | None, features: Floats | None) -> Output:
        """Return the outputs of an image that went through the network, or was not admitted to it."""
        return cls(one.score(logits), features, one.input)


@dataclass(frozen=True, eq=False, slots=True)
class ExplainedPrediction:
    """A prediction with what a report shows beside it.

    Parameters
    ----------
    prediction : Prediction
    radiograph : Radiograph or None
        The decoded image, inverted grayscale corrected; None where it could not be decoded.
    logits : ndarray of float32, shape (K,), or None
        The network's outputs; None without a prediction.
    explanation : Explanation or None
        The heat map for the target finding; None without a prediction.
    standardised : Standardised or None
        The network's input; None without a prediction.
    """

    prediction: Prediction
    radiograph: Radiograph | None = None
    logits: Floats | None = None
    explanation: Explanation | None = None
    standardised: Standardised | None = None
