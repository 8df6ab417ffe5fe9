"""The gate: whether an image may be predicted at all.

Three checks, from cheap to expensive: the header, the grey levels, the lungs and what surrounds them
(`pneumoscope.predict.novelty`). Each returns reasons as codes; `advice` turns a code into the sentence that
says what to do. Most reasons reject the image; a caution does not, and says what to know of the prediction.

Exposure is meant as radiographers use the word: over-exposed images are dark, under-exposed ones are bright.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Population, Radiograph, ViewPosition
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.limits import GateLimits
from pneumoscope.predict.novelty import Novelty, describe

__all__ = [
    "advice",
    "check_edges",
    "check_header",
    "check_lungs",
    "check_pixels",
    "inverted",
    "is_inverted",
    "may_be_inverted",
    "population_advice",
    "rejects",
]

# Other names of X-ray modalities, and modalities of images that may show anything.
MODALITY_ALIASES = {"XR": "DX", "XRAY": "DX", "X-RAY": "DX", "DR": "DX"}
ANY_IMAGE = frozenset({"SC", "OT"})
ABSENT = frozenset({"", "UNKNOWN", "UNSPECIFIED", "UNDEFINED", "OTHER", "NONE", "NULL", "NA", "UN"})

# The chest in body parts, also run together with another word and in other languages.
CHEST = re.compile(r"CHEST|THORA|TORA[XKC]|LUNG|PULMO|POLMO|POUMON|CXR|THX|BRUSTKORB|ГРУД|胸|흉부")
SPINE = re.compile(r"SPINE|LUMBA|VERTEB|COLUMN|WIRBEL|RACHI|椎|척추")

# Grey levels are checked on a sample of at most this many rows and columns: enough for a histogram.
SAMPLE_SIDE = 128
ONE_LEVEL = 1 / 255
# Share of a side of the lungs' box along which they may lie at the edge of the image. Above it are 6 of 354
# validation images of seven sources, 343 of them cut to the upper two thirds, and 351 to the lower ones.
MAX_AT_EDGE = 0.4


def rejects(reasons: Iterable[Reason]) -> bool:
    """Return whether any of the reasons keeps an image from being predicted."""
    return any(reason not in CAUTIONS for reason in reasons)


def check_header(radiograph: Radiograph, limits: GateLimits, *, finds_lungs: bool = False) -> list[Reason]:
    """Check what the file states about itself: modality, body part, view, size and shape.

    An image without a DICOM header has no modality, body part or view; what is absent is not held against it.

    Parameters
    ----------
    radiograph : Radiograph
        Only its header fields are read.
    limits : GateLimits
        Of the bundle.
    finds_lungs : bool
        The lungs are checked afterwards. About 15% of the body parts in hospital headers are wrong (Güld
        et al., Quality of DICOM header information for image categorization, SPIE 2002): a wrong one is
        only a caution then, and secondary captures may be chests.

    Returns
    -------
    list of Reason
        Empty where the header gives no reason to reject the image.
    """
    reasons = []
    if _wrong_modality(radiograph, limits, finds_lungs=finds_lungs):
        reasons.append(Reason.NOT_A_CHEST_RADIOGRAPH)
    elif _wrong_body_part(radiograph, limits):
        reasons.append(Reason.BODY_PART_MISMATCH if finds_lungs else Reason.NOT_A_CHEST_RADIOGRAPH)
    if radiograph.view is ViewPosition.LATERAL:
        reasons.append(Reason.LATERAL_VIEW)
    short, long = sorted((radiograph.height, radiograph.width))
    if short < limits.min_side:
        reasons.append(Reason.TOO_SMALL)
    if long > limits.max_aspect * short:
        reasons.append(Reason.CROPPED)
    return reasons


def check_pixels(radiograph: Radiograph, limits: GateLimits) -> list[Reason]:
    """Check the grey levels: reject an image in colours, a blank one, or one mostly pure black or white.

    Parameters
    ----------
    radiograph : Radiograph
        Its pixels, shape (H, W), in [0, 1], bright = dense.
    limits : GateLimits
        Of the bundle.

    Returns
    -------
    list of Reason
        ``not_a_chest_radiograph`` for an image in colours or in black and white, ``over_exposed`` for a dark
        one, ``under_exposed`` for a bright one, or nothing.
    """
    if radiograph.colour > limits.max_colour:
        return [Reason.NOT_A_CHEST_RADIOGRAPH]
    sample = _sample(radiograph.pixels)
    black, white = _clipped(sample)
    if max(black, white) > limits.max_clipped:
        return [Reason.OVER_EXPOSED if black >= white else Reason.UNDER_EXPOSED]
    if black + white > limits.max_clipped:
        return [Reason.NOT_A_CHEST_RADIOGRAPH]
    mean, deviation = (float(values[0, 0]) for values in cv2.meanStdDev(sample))
    if deviation < limits.min_contrast:
        return [Reason.OVER_EXPOSED if mean < 0.5 else Reason.UNDER_EXPOSED]
    return []


def check_lungs(
    standardised: Standardised, limits: GateLimits, novelty: Novelty | None = None
) -> list[Reason]:
    """Check the lungs, where the bundle has a segmenter, and their surroundings, where it has statistics.

    Parameters
    ----------
    standardised : Standardised
        Only its lungs are read.
    limits : GateLimits
        Of the bundle.
    novelty : Novelty, optional
        Statistics of the chest radiographs that the gate was fitted on.

    Returns
    -------
    list of Reason
        ``not_a_chest_radiograph`` where no plausible lungs are detected with certainty or the surroundings
        resemble no known chest; ``lateral_view`` for a single lung field in what otherwise resembles one; or
        nothing.
    """
    lungs = standardised.lungs
    if lungs is None:
        return []
    if not lungs.plausible or lungs.certainty < limits.min_lung_certainty:
        return [Reason.NOT_A_CHEST_RADIOGRAPH]
    if novelty is not None and limits.max_novelty is not None:
        # Not "greater than": a distance that is not a number must reject.
        known = novelty(describe(lungs)) <= limits.max_novelty
        if not known:
            return [Reason.NOT_A_CHEST_RADIOGRAPH]
    return [Reason.LATERAL_VIEW] if lungs.bridge > limits.max_lung_bridge else []


def check_edges(standardised: Standardised) -> list[Reason]:
    """Return the caution that the lungs of a chest radiograph are cut off, where they lie along an edge."""
    lungs = standardised.lungs
    cut_off = lungs is not None and lungs.plausible and lungs.cut_off > MAX_AT_EDGE
    return [Reason.LUNGS_CUT_OFF] if cut_off else []


def may_be_inverted(standardised: Standardised, limits: GateLimits) -> bool:
    """Return whether the lungs are so uncertain that the grayscale may be inverted."""
    lungs = standardised.lungs
    return lungs is not None and not (lungs.plausible and lungs.certainty >= limits.sure_lung_certainty)


def inverted(radiograph: Radiograph) -> Radiograph:
    """Return the image with black and white exchanged."""
    return replace(radiograph, pixels=1 - radiograph.pixels)


def is_inverted(
    given: Standardised, other: Standardised, found: list[Reason], least_certainty: float = 0.0
) -> bool:
    """Return whether the grayscale of an image is inverted.

    The other grayscale has passed the checks; it counts where the given one has not, or where its lungs are
    more certain.

    Parameters
    ----------
    given, other : Standardised
        The image, and the image with black and white exchanged.
    found : list of Reason
        Of `check_lungs` for the given one.
    least_certainty : float
        Certainty of the lungs that the other grayscale must reach.
    """
    if given.lungs is None or other.lungs is None or other.lungs.certainty < least_certainty:
        return False
    return bool(found) or other.lungs.certainty > given.lungs.certainty


def advice(
    reasons: Iterable[Reason], radiograph: Radiograph, limits: GateLimits, *, finds_lungs: bool = True
) -> str:
    """Say in one line why the image is rejected or what to know about its prediction, and what to do.

    Parameters
    ----------
    reasons : iterable of Reason
    radiograph, limits, finds_lungs
        As for `check_header`.
    """
    given = list(reasons)
    if Reason.NOT_A_CHEST_RADIOGRAPH in given and Reason.BODY_PART_MISMATCH in given:
        given.remove(Reason.BODY_PART_MISMATCH)  # the other sentence names the body part
    return " ".join(_sentence(reason, radiograph, limits, finds_lungs=finds_lungs) for reason in given)


def population_advice(age: float | None, view: str, validated: Sequence[Population]) -> str:
    """Say in one line that the bundle was not validated on such patients; empty where it was.

    Parameters
    ----------
    age : float or None
        Of the patient in years, where it is known.
    view : str
        View position; ``unknown`` where it is not known. What is unknown is not held against the image.
    validated : sequence of Population
        The populations that the bundle was validated on; none where that is not stated.
    """
    for population in validated:
        age_fits = age is None or population.includes_age(age)
        view_fits = view == ViewPosition.UNKNOWN or not population.views or view in population.views
        if age_fits and view_fits:
            return ""
    if not validated:
        return ""
    known = "; ".join(population.describe() for population in validated)
    years = "" if age is None else f"{int(age)} years"
    shown = "" if view == ViewPosition.UNKNOWN else f"{view} view"
    stated = ", ".join(part for part in (years, shown) if part)
    return (
        f"Caution: the model was validated on {known}, not on {stated}: see the external tests in its card, "
        "and evaluate it on such patients before relying on it."
    )


def _sentence(reason: Reason, radiograph: Radiograph, limits: GateLimits, *, finds_lungs: bool) -> str:
    size = f"{radiograph.width}x{radiograph.height} pixels"
    if reason is Reason.NOT_A_CHEST_RADIOGRAPH:
        if _wrong_modality(radiograph, limits, finds_lungs=finds_lungs):
            found = f"its modality is {radiograph.modality}"
        elif _wrong_body_part(radiograph, limits):
            found = f"its body part is {radiograph.body_part}"
        elif radiograph.colour > limits.max_colour:
            found = "a photograph, or an image under a colour map or overlay"
        elif sum(_clipped(_sample(radiograph.pixels))) > limits.max_clipped:
            found = "pure black and white, with few grey levels between"
        else:
            found = "lung fields not detected"
        return f"Not a chest radiograph ({found}): give a frontal chest X-ray."
    sentences = {
        Reason.LATERAL_VIEW: (
            "A lateral view: give the frontal (PA or AP) image of the study."
            if radiograph.view is ViewPosition.LATERAL
            else "Only one lung field, as in a lateral view, half a chest or another body part: "
            "give the frontal one."
        ),
        Reason.TOO_SMALL: (
            f"Too small ({size}, the shorter side needs {limits.min_side}): give the original image."
        ),
        Reason.CROPPED: (
            f"Too narrow for a whole chest ({size}, at most {limits.max_aspect:g} to 1): "
            "give the uncropped image."
        ),
        Reason.OVER_EXPOSED: (
            "Almost entirely black (over-exposed or blank): give the original, or repeat the exposure."
        ),
        Reason.UNDER_EXPOSED: (
            "Almost entirely white (under-exposed or blank): give the original, or repeat the exposure."
        ),
        Reason.BODY_PART_MISMATCH: (
            f"Caution: the header states the body part {radiograph.body_part}, but the image shows a chest: "
            "check that it is the right image."
        ),
        Reason.LUNGS_CUT_OFF: (
            "Caution: the lungs reach the edge of the image, and what is cut off was not seen: "
            "give the uncropped image."
        ),
        Reason.INVERTED: "Caution: inverted grayscale, corrected before prediction.",
        Reason.ROTATED: (
            "Caution: rotated by 90, 180 or 270 degrees; predicted upright. Check which side is which."
        ),
        Reason.GREY_LEVELS_RESTORED: (
            "Caution: with the window or bit depth that the file states the image would be black, white or "
            "flat; grey levels were taken from the stored values."
        ),
    }
    return sentences[reason]


def _wrong_modality(radiograph: Radiograph, limits: GateLimits, *, finds_lungs: bool) -> bool:
    modality = (radiograph.modality or "").strip().upper()
    if modality in ABSENT or modality in limits.modalities:
        return False
    if modality in ANY_IMAGE:
        return not finds_lungs
    return MODALITY_ALIASES.get(modality) not in limits.modalities


def _wrong_body_part(radiograph: Radiograph, limits: GateLimits) -> bool:
    stated = (radiograph.body_part or "").strip().upper()
    letters = (c for c in unicodedata.normalize("NFKD", stated) if not unicodedata.combining(c))
    plain = unicodedata.normalize("NFC", "".join(letters))
    if plain in ABSENT:
        return False
    # Free-text values such as "CHEST 2 VIEWS" count by their words, "CHESTPA" by its beginning.
    words = {plain, *re.split(r"[^A-Z]+", plain)}
    runs_together = CHEST.search(plain) and not SPINE.search(plain)
    return words.isdisjoint(limits.body_parts) and not runs_together


def _sample(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step_y, step_x = (-(-side // SAMPLE_SIDE) for side in pixels.shape)
    return np.ascontiguousarray(pixels[::step_y, ::step_x])


def _clipped(sample: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the shares of pixels at the lowest and at the highest level."""
    black = np.count_nonzero(sample <= ONE_LEVEL) / sample.size
    white = np.count_nonzero(sample >= 1 - ONE_LEVEL) / sample.size
    return black, white
