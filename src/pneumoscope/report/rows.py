"""A prediction as a row: the columns of every table of results, in one place."""

from __future__ import annotations

from typing import TypedDict

from pneumoscope.domain import Prediction

__all__ = [
    "COLUMNS",
    "NO_CLASS",
    "Row",
    "csv_safe",
    "flat_row",
    "plain_text",
    "to_row",
    "tsv_header",
    "tsv_line",
]

NO_CLASS = "none: no class is as probable as it usually is where it is right"
"""What an empty prediction set says."""

LIST_SEPARATOR = ";"
DECIMALS = 6

# A spreadsheet runs a cell that starts with one of these as a formula (OWASP, CSV Injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


class Row(TypedDict):
    """One row of results; the keys are the columns, in this order."""

    path: str
    status: str
    reasons: list[str]
    p_normal: float | None
    p_bacterial: float | None
    p_viral: float | None
    p_pneumonia: float | None
    finding: str | None
    decision: str | None
    operating_point: str | None
    prediction_set: list[str]
    bundle: str
    uncertain: bool


COLUMNS: tuple[str, ...] = tuple(Row.__annotations__)


def plain_text(name: str) -> str:
    """Return a file name that any UTF-8 file can hold; bytes that are no text become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def to_row(prediction: Prediction) -> Row:
    """Return the row of a prediction, with probabilities to six decimals."""
    return Row(
        path=plain_text(prediction.path),
        status=prediction.status,
        reasons=[str(reason) for reason in prediction.reasons],
        p_normal=_rounded(prediction.p_normal),
        p_bacterial=_rounded(prediction.p_bacterial),
        p_viral=_rounded(prediction.p_viral),
        p_pneumonia=_rounded(prediction.p_pneumonia),
        finding=prediction.finding,
        decision=prediction.decision,
        operating_point=prediction.operating_point,
        prediction_set=list(prediction.prediction_set),
        bundle=prediction.bundle,
        uncertain=prediction.uncertain,
    )


def flat_row(prediction: Prediction) -> dict[str, str]:
    """Return the row as text cells: lists joined by ``;``, nothing for what is unknown."""
    return {name: _cell(value) for name, value in to_row(prediction).items()}


def csv_safe(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe goes before a dangerous start."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def tsv_header() -> str:
    """Return the column names, separated by tabs."""
    return "\t".join(COLUMNS)


def tsv_line(prediction: Prediction) -> str:
    """Return one row, cells separated by tabs; a tab or line break in a file name becomes a space."""
    cells = flat_row(prediction).values()
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
