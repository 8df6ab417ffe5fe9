"""A prediction as a row: the columns of every table of results, and its words for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pneumoscope.domain import Prediction, probability_column
from pneumoscope.errors import CAUTIONS

__all__ = [
    "NO_CLASS",
    "columns",
    "csv_safe",
    "decision_text",
    "flat_row",
    "outcome_text",
    "percent_text",
    "plain_text",
    "probability_columns",
    "reason_text",
    "threshold_text",
    "to_row",
    "tsv_header",
    "tsv_line",
]

NO_CLASS = "none: no class reaches the probability that it usually has where it is correct"
"""Text for an empty prediction set."""

LIST_SEPARATOR = ";"
DECIMALS = 6
TINY = 1e-9  # thresholds below it are written with an exponent

# A spreadsheet runs a cell that starts with one of these as a formula (OWASP, CSV Injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def probability_columns(classes: Sequence[str], target: str) -> tuple[str, ...]:
    """Return the columns of probabilities: each class in order, then the target unless it is a class."""
    names = classes if target in classes else (*classes, target)
    return tuple(probability_column(name) for name in names)


def columns(classes: Sequence[str], target: str) -> tuple[str, ...]:
    """Return the columns of a table of results, in order.

    Parameters
    ----------
    classes : sequence of str
        Classes of the bundle, in order.
    target : str
        Name of its target finding.
    """
    return (
        *("path", "status", "reasons"),
        *probability_columns(classes, target),
        *("finding", "decision", "operating_point", "population", "prediction_set", "bundle", "uncertain"),
    )


def plain_text(name: str) -> str:
    """Return a file name that any UTF-8 file can hold; bytes that are no text become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def reason_text(reason: str) -> str:
    """Return the code of a reason as words, such as ``lateral view``."""
    return reason.replace("_", " ")


def percent_text(probability: float) -> str:
    """Return a predicted probability in percent; it is never certain, so not as 0.0% or 100.0%."""
    if probability < 0.001:
        return "<0.1%"
    return ">99.9%" if probability > 0.999 else f"{probability:.1%}"


def threshold_text(threshold: float, *, percent: bool = True) -> str:
    """Return a threshold in percent or as a fraction, with as many digits as tell it from 0 and from 1."""
    if 0 < threshold < TINY:  # of a network whose logits have no bounds
        return f"{threshold * 100:.1e}%" if percent else f"{threshold:.1e}"
    usual, nearest = 3 if percent else 4, min(threshold, 1 - threshold)
    digits = max(usual, 1 - math.floor(math.log10(nearest))) if nearest > 0 else usual
    return f"{threshold:.{digits - 2}%}" if percent else f"{threshold:.{digits}f}"


def decision_text(prediction: Prediction) -> str:
    """Return the result in words, such as ``pneumonia suspected`` or ``no pneumonia detected``."""
    if prediction.status == "unreadable":
        return "could not be read"
    if prediction.status == "rejected":
        return "rejected"
    if prediction.positive is None:
        return "not predicted"
    if prediction.uncertain:
        return f"uncertain, leaning {'towards' if prediction.positive else 'away from'} {prediction.target}"
    return f"{prediction.target} suspected" if prediction.positive else f"no {prediction.target} detected"


def outcome_text(prediction: Prediction) -> str:
    """Return `decision_text`, with the reasons where there is no prediction: ``rejected: lateral view``."""
    words = decision_text(prediction)
    if prediction.status == "ok" or not prediction.reasons:
        return words
    return f"{words}: {', '.join(map(reason_text, shown_reasons(prediction)))}"


def shown_reasons(prediction: Prediction) -> tuple[str, ...]:
    """Return the reasons; where there is no prediction, those for it without the cautions about one."""
    if prediction.status == "ok":
        return prediction.reasons
    return tuple(one for one in prediction.reasons if one not in CAUTIONS) or prediction.reasons


def tone(prediction: Prediction) -> Literal["alarm", "calm", "doubt"]:
    """Return how a result is coloured: positive, negative, or uncertain or without a decision."""
    if prediction.positive is None or prediction.uncertain:
        return "doubt"
    return "alarm" if prediction.positive else "calm"


def to_row(prediction: Prediction, classes: Sequence[str], target: str) -> dict[str, Any]:
    """Return the row of a prediction, its keys in the order of `columns`, with probabilities to six decimals.

    Parameters
    ----------
    prediction : Prediction
    classes : sequence of str
        Classes of the bundle, in order.
    target : str
        Name of its target finding.
    """
    values: dict[str, Any] = {
        "path": plain_text(prediction.path),
        "status": prediction.status,
        "reasons": [str(reason) for reason in prediction.reasons],
        "finding": prediction.finding,
        "decision": prediction.decision,
        "operating_point": prediction.operating_point,
        "population": prediction.population,
        "prediction_set": list(prediction.prediction_set),
        "bundle": prediction.bundle,
        "uncertain": prediction.uncertain,
        probability_column(target): _rounded(prediction.p_target),
    }
    values |= {probability_column(name): _rounded(prediction.probabilities.get(name)) for name in classes}
    return {name: values[name] for name in columns(classes, target)}


def flat_row(prediction: Prediction, classes: Sequence[str], target: str) -> dict[str, str]:
    """Return the row as text cells: lists joined by ``;``, empty where a value is unknown."""
    return {name: _cell(value) for name, value in to_row(prediction, classes, target).items()}


def csv_safe(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe goes before a dangerous start."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def tsv_header(classes: Sequence[str], target: str) -> str:
    """Return the column names, separated by tabs."""
    return "\t".join(columns(classes, target))


def tsv_line(prediction: Prediction, classes: Sequence[str], target: str) -> str:
    """Return one row, cells separated by tabs; a tab or line break in a file name becomes a space."""
    cells = flat_row(prediction, classes, target).values()
    return "\t".join(" ".join(cell.splitlines()).replace("\t", " ") for cell in cells)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return LIST_SEPARATOR.join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{DECIMALS}f}"
    return str(value)
