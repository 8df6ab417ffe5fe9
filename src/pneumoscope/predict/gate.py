"""The gate: decides whether a image may be predicted at all.

Three looks, from cheap to dear: at the header, at the grey levels, at the lungs and their surroundings. Each
returns reasons as codes; `advice` turns a code into the sentence that says what to do. Most reasons reject
the image; the cautions do not: it is predicted, and they say what to know of the
answer.

Exposure is meant as radiographers mean it: too much of it makes the image black, too little makes
it white.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph, ViewPosition
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.manifest import GateLimits
from pneumoscope.predict.novelty import Novelty, describe

__all__ = [
    "advice",
    "check_header",
    "check_lungs",
    "check_pixels",
    "is_negative",
    "may_be_negative",
    "negative",
    "rejects",
]

# Grey levels are predicted on a sample of at most this many rows and columns: enough for a histogram.
SAMPLE_SIDE = 128
ONE_LEVEL = 1 / 255


def rejects(reasons: Iterable[Reason]) -> bool:
    """Tell whether any of the reasons keeps a image from being predicted."""
    return any(reason not in CAUTIONS for reason in reasons)


def check_header(radiograph: Radiograph, limits: GateLimits) -> list[Reason]:
    """Predict what the file says about itself: modality, body part, view, size, shape, age.

    A plain image has no modality, body part or view; what is absent is not held against it.

    Parameters
    ----------
    radiograph : Radiograph
        Only its header fields are read.
    limits : GateLimits
        What the bundle asks for.

    Returns
    -------
    list of Reason
        Empty where nothing speaks against the image.
    """
    reasons = []
    if _wrong_modality(radiograph, limits) or _wrong_body_part(radiograph, limits):
        reasons.append(Reason.NOT_A_CHEST_RADIOGRAPH)
    if radiograph.view is ViewPosition.LATERAL:
        reasons.append(Reason.LATERAL_VIEW)
    short, long = sorted((radiograph.height, radiograph.width))
    if short < limits.min_side:
        reasons.append(Reason.TOO_SMALL)
    if long > limits.max_aspect * short:
        reasons.append(Reason.CROPPED)
    if radiograph.age is not None and radiograph.age >= limits.validated_ages[1]:
        reasons.append(Reason.ADULT_UNVALIDATED)
    return reasons


def check_pixels(radiograph: Radiograph, limits: GateLimits) -> list[Reason]:
    """Predict the grey levels: a blank image, or one that is mostly pure black or pure white.

    Parameters
    ----------
    radiograph : Radiograph
        Its pixels, shape (H, W), in [0, 1], bright = dense.
    limits : GateLimits
        What the bundle asks for.

    Returns
    -------
    list of Reason
        ``over_exposed`` for a dark image, ``under_exposed`` for a white one, or nothing.
    """
    sample = _sample(radiograph.pixels)
    black = np.count_nonzero(sample <= ONE_LEVEL) / sample.size
    white = np.count_nonzero(sample >= 1 - ONE_LEVEL) / sample.size
    if max(black, white) > limits.max_clipped:
        return [Reason.OVER_EXPOSED if black >= white else Reason.UNDER_EXPOSED]
    mean, deviation = (float(values[0, 0]) for values in cv2.meanStdDev(sample))
    if deviation < limits.min_contrast:
        return [Reason.OVER_EXPOSED if mean < 0.5 else Reason.UNDER_EXPOSED]
    return []


def check_lungs(
    standardised: Standardised, limits: GateLimits, novelty: Novelty | None = None
) -> list[Reason]:
    """Predict the lungs, where the bundle has a segmenter, and what surrounds them, where it has statistics.

    Parameters
    ----------
    standardised : Standardised
        Only its lungs are read.
    limits : GateLimits
        What the bundle asks for.
    novelty : Novelty, optional
        The chest radiographs that the bundle knows.

    Returns
    -------
    list of Reason
        ``not_a_chest_radiograph`` where the segmenter is not sure of plausible lungs or the surroundings are
        like no chest that is known; ``lateral_view`` for a single field of lung in what else is like one;
        or nothing.
    """
    lungs = standardised.lungs
    if lungs is None:
        return []
    if not lungs.plausible or lungs.certainty < limits.min_lung_certainty:
        return [Reason.NOT_A_CHEST_RADIOGRAPH]
    if novelty is not None and limits.max_novelty is not None:
        # Not "greater than": a distance that is no number must reject.
        known = novelty(describe(lungs)) <= limits.max_novelty
        if not known:
            return [Reason.NOT_A_CHEST_RADIOGRAPH]
    return [Reason.LATERAL_VIEW] if lungs.bridge > limits.max_lung_bridge else []


def may_be_negative(standardised: Standardised, limits: GateLimits) -> bool:
    """Tell whether the lungs leave it open that the grey levels are inverted: worth a second look."""
    lungs = standardised.lungs
    return lungs is not None and not (lungs.plausible and lungs.certainty >= limits.sure_lung_certainty)


def negative(radiograph: Radiograph) -> Radiograph:
    """Return the image with black and white exchanged."""
    return replace(radiograph, pixels=1 - radiograph.pixels)


def is_negative(given: Standardised, turned: Standardised, found: list[Reason], other: list[Reason]) -> bool:
    """Tell whether a image is a negative: turned it passes, and its lungs are more certain than as given.

    Parameters
    ----------
    given, turned : Standardised
        The image and its `negative`.
    found, other : list of Reason
        What `check_lungs` said of either.
    """
    if given.lungs is None or turned.lungs is None or other:
        return False
    return bool(found) or turned.lungs.certainty > given.lungs.certainty


def advice(reasons: Iterable[Reason], radiograph: Radiograph, limits: GateLimits) -> str:
    """Say in one line why the image is not predicted or what to know of the answer, and what to do."""
    return " ".join(_sentence(reason, radiograph, limits) for reason in reasons)


def _sentence(reason: Reason, radiograph: Radiograph, limits: GateLimits) -> str:
    size = f"{radiograph.width}x{radiograph.height} pixels"
    if reason is Reason.NOT_A_CHEST_RADIOGRAPH:
        if _wrong_modality(radiograph, limits):
            found = f"its modality is {radiograph.modality}"
        elif _wrong_body_part(radiograph, limits):
            found = f"its body part is {radiograph.body_part}"
        else:
            found = "the two lungs of one were not found in it"
        return f"Not a chest radiograph ({found}): give a frontal chest X-ray."
    sentences = {
        Reason.LATERAL_VIEW: (
            "A lateral view: give the frontal (PA or AP) image of the study."
            if radiograph.view is ViewPosition.LATERAL
            else "One field of lung, as in a lateral view or half a chest: give the frontal (PA or AP) one."
        ),
        Reason.TOO_SMALL: (
            f"Too small ({size}, the shorter side must have {limits.min_side}): give the original image."
        ),
        Reason.CROPPED: (
            f"Too narrow for a whole chest ({size}, at most {limits.max_aspect:g} to 1): "
            "give the uncropped image."
        ),
        Reason.OVER_EXPOSED: (
            "Almost nothing but black (over-exposed or blank): give the original, or a repeated exposure."
        ),
        Reason.UNDER_EXPOSED: (
            "Almost nothing but white (under-exposed or blank): give the original, or a repeated exposure."
        ),
        Reason.INVERTED: "Caution: a negative; it was turned before it was predicted.",
        Reason.ADULT_UNVALIDATED: (
            f"Caution: the model is validated on patients under {limits.validated_ages[1]:g} years only, "
            "and this one is older: trust the answer less."
        ),
    }
    return sentences[reason]


def _wrong_modality(radiograph: Radiograph, limits: GateLimits) -> bool:
    return bool(radiograph.modality) and radiograph.modality not in limits.modalities


def _wrong_body_part(radiograph: Radiograph, limits: GateLimits) -> bool:
    if not radiograph.body_part:
        return False
    # Free-text values such as "CHEST 2 VIEWS" count by their words.
    words = {radiograph.body_part, *re.split(r"[^A-Z]+", radiograph.body_part)}
    return words.isdisjoint(limits.body_parts)


def _sample(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step_y, step_x = (-(-side // SAMPLE_SIDE) for side in pixels.shape)
    return np.ascontiguousarray(pixels[::step_y, ::step_x])
