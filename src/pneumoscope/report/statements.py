"""What a result means, in sentences that stand on their own, for readers without the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from pneumoscope.domain import ANY_POPULATION, OperatingPoint, Population, Prediction
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.report.rows import NO_CLASS, decision_text, percent_text, reason_text, threshold_text

__all__ = [
    "RESEARCH_USE",
    "caution_statements",
    "conclusion",
    "operating_point_statement",
    "population_statement",
    "probability_statement",
    "rejection_statement",
    "set_statement",
]

RESEARCH_USE = "AI result, research use, not verified"
"""What every result says of itself."""

CAUTION_TEXTS = {
    Reason.INVERTED: "The image has inverted grayscale; it was corrected before prediction.",
    Reason.ROTATED: "The image is rotated by 90, 180 or 270 degrees; it was predicted upright.",
    Reason.GREY_LEVELS_RESTORED: "The grey levels were restored from a window that cut them off.",
    Reason.BODY_PART_MISMATCH: "The header states another body part than the chest.",
    Reason.LUNGS_CUT_OFF: "The lungs reach the edge of the image; what is cut off was not seen.",
    Reason.POPULATION_NOT_VALIDATED: "The model was not validated on patients or views like this one.",
}


def conclusion(prediction: Prediction) -> str:
    """Return the result in words, such as ``Pneumonia suspected`` or ``Not predicted: image rejected``."""
    if prediction.p_target is None:
        state = "image rejected" if prediction.status == "rejected" else "image could not be read"
        return f"Not predicted: {state}"
    text = decision_text(prediction)
    return text[0].upper() + text[1:]


def rejection_statement(prediction: Prediction) -> str:
    """Return why an image has no prediction: the sentence for people, and the codes of its reasons."""
    codes = ", ".join(reason_text(reason) for reason in prediction.reasons if reason not in CAUTIONS)
    message = prediction.message or "No further detail."
    return f"{message} Reason: {codes or 'not stated'}."


def probability_statement(prediction: Prediction) -> str:
    """Return what the probability means. Only for an image with a prediction."""
    assert prediction.p_target is not None
    share = _of_100(prediction.p_target)
    shown = percent_text(prediction.p_target)
    return (
        f"Probability {shown}: of 100 images like those the model is calibrated for that "
        f"get this value, {share} show {prediction.target}. Where {prediction.target} is rarer, fewer do. "
        "It is no measure of severity or extent."
    )


def operating_point_statement(point: OperatingPoint, target: str) -> str:
    """Return what the decision is based on and how often it was right where the point was chosen."""
    parts = [
        f"Operating point {point.name}: a probability of {threshold_text(point.threshold)} or more "
        f"counts as {target}"
    ]
    if point.criterion:
        parts.append(f" ({point.criterion})")
    found, spared = (one.value if one else None for one in (point.sensitivity, point.specificity))
    if found is not None and spared is not None:
        parts.append(
            f". Sensitivity {found:.1%}, specificity {spared:.1%} on {point.chosen_on or 'validation'}"
        )
    return "".join(parts) + "."


def population_statement(prediction: Prediction, validated: Sequence[Population]) -> str:
    """Return whom the calibration is for and on whom the model was evaluated."""
    used = prediction.population or ANY_POPULATION
    calibrated = "any patient and view" if used == ANY_POPULATION else used
    evaluated = "; ".join(one.describe() for one in validated) or "not stated"
    return f"Calibration for {calibrated}. Evaluated on: {evaluated}."


def set_statement(prediction: Prediction) -> str:
    """Return the prediction set in words; empty where the bundle makes none."""
    if prediction.set_coverage is None and not prediction.prediction_set:
        return ""
    classes = ", ".join(prediction.prediction_set) or NO_CLASS
    coverage = "" if prediction.set_coverage is None else f" ({prediction.set_coverage:.0%} coverage)"
    return f"Not ruled out{coverage}: {classes}."


def caution_statements(prediction: Prediction) -> list[str]:
    """Return a sentence for each caution of a prediction, without any attribute of the patient."""
    return [text for reason, text in CAUTION_TEXTS.items() if reason in prediction.reasons]


def _of_100(probability: float) -> str:
    count = round(100 * probability)
    if count == 0:
        return "fewer than 1"
    return "more than 99" if count == 100 else f"about {count}"
