"""The gate: decides whether a picture may be judged at all.

Three looks, from cheap to dear: at the header, at the grey levels, at the lungs. Each returns reasons as
codes; `advice` turns a code into the sentence that says what to do.

Exposure is meant as radiographers mean it: too much of it makes the picture black, too little makes
it white.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph, Reason, ViewPosition
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.bundle import GateLimits

__all__ = ["advice", "check_header", "check_lungs", "check_pixels"]

# Grey levels are judged on a sample of about this many rows and columns: enough for a histogram.
SAMPLE_SIDE = 192
ONE_LEVEL = 1 / 255


def check_header(radiograph: Radiograph, limits: GateLimits) -> list[Reason]:
    """Judge what the file says about itself: modality, body part, view, size, shape.

    A plain picture has no modality, body part or view; what is absent is not held against it.

    Parameters
    ----------
    radiograph : Radiograph
        Only its header fields are read.
    limits : GateLimits
        What the bundle asks for.

    Returns
    -------
    list of Reason
        Empty where nothing speaks against the picture.
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
    return reasons


def check_pixels(radiograph: Radiograph, limits: GateLimits) -> list[Reason]:
    """Judge the grey levels: a blank picture, or one that is mostly pure black or pure white.

    Parameters
    ----------
    radiograph : Radiograph
        Its pixels, shape (H, W), in [0, 1], bright = dense.
    limits : GateLimits
        What the bundle asks for.

    Returns
    -------
    list of Reason
        ``over_exposed`` for a dark picture, ``under_exposed`` for a white one, or nothing.
    """
    sample = _sample(radiograph.pixels)
    black, white = float((sample <= ONE_LEVEL).mean()), float((sample >= 1 - ONE_LEVEL).mean())
    if max(black, white) > limits.max_clipped:
        return [Reason.OVER_EXPOSED if black >= white else Reason.UNDER_EXPOSED]
    if float(sample.std()) < limits.min_contrast:
        return [Reason.OVER_EXPOSED if float(sample.mean()) < 0.5 else Reason.UNDER_EXPOSED]
    return []


def check_lungs(standardised: Standardised, limits: GateLimits) -> list[Reason]:
    """Judge whether the lung segmenter, where the bundle has one, is sure of the lungs of a frontal chest."""
    lungs = standardised.lungs
    if lungs is None or (lungs.plausible and lungs.certainty >= limits.min_lung_certainty):
        return []
    return [Reason.NOT_A_CHEST_RADIOGRAPH]


def advice(reasons: Iterable[Reason], radiograph: Radiograph, limits: GateLimits) -> str:
    """Say in one line why the picture is not judged and what to do about it."""
    return " ".join(_sentence(reason, radiograph, limits) for reason in reasons)


def _sentence(reason: Reason, radiograph: Radiograph, limits: GateLimits) -> str:
    size = f"{radiograph.width}x{radiograph.height} pixels"
    if reason is Reason.NOT_A_CHEST_RADIOGRAPH:
        if _wrong_modality(radiograph, limits):
            found = f"its modality is {radiograph.modality}"
        elif _wrong_body_part(radiograph, limits):
            found = f"its body part is {radiograph.body_part}"
        else:
            found = "no lungs were found in it"
        return f"Not a chest radiograph ({found}): give a frontal chest X-ray."
    sentences = {
        Reason.LATERAL_VIEW: "A lateral view: give the frontal (PA or AP) picture of the study.",
        Reason.TOO_SMALL: (
            f"Too small ({size}, the shorter side must have {limits.min_side}): give the original picture."
        ),
        Reason.CROPPED: (
            f"Too narrow for a whole chest ({size}, at most {limits.max_aspect:g} to 1): "
            "give the uncropped picture."
        ),
        Reason.OVER_EXPOSED: (
            "Almost nothing but black (over-exposed or blank): give the original, or a repeated exposure."
        ),
        Reason.UNDER_EXPOSED: (
            "Almost nothing but white (under-exposed or blank): give the original, or a repeated exposure."
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
    step_y, step_x = (max(1, side // SAMPLE_SIDE) for side in pixels.shape)
    return pixels[::step_y, ::step_x]
