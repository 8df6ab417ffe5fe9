"""Predictions as JSON values: the row that a worker returns, its reverse, and the row of a stopped job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumoscope.domain import Prediction
from pneumoscope.errors import Reason
from pneumoscope.model.bundle import Bundle
from pneumoscope.report.rows import plain_text

__all__ = ["prediction_of", "prediction_row", "stopped"]

DECIMALS = 6


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """Return the fields of a prediction, with probabilities to six decimals."""
    p_target = prediction.p_target
    return {
        "path": plain_text(prediction.path),
        "status": prediction.status,
        "reasons": [str(reason) for reason in prediction.reasons],
        "probabilities": {name: round(p, DECIMALS) for name, p in prediction.probabilities.items()},
        "target": prediction.target,
        "p_target": None if p_target is None else round(p_target, DECIMALS),
        "finding": prediction.finding,
        "decision": prediction.decision,
        "operating_point": prediction.operating_point,
        "population": prediction.population,
        "prediction_set": list(prediction.prediction_set),
        "bundle": prediction.bundle,
        "uncertain": prediction.uncertain,
        "message": prediction.message,
    }


def prediction_of(row: Mapping[str, Any], bundle: Bundle) -> Prediction:
    """Return the prediction that a row was made of, but for the rounding of its probabilities.

    Parameters
    ----------
    row : mapping
        Of `prediction_row`.
    bundle : Bundle
        That predicted it, for the coverage of prediction sets, which the row does not have.
    """
    lists = {name: tuple(row[name]) for name in ("reasons", "prediction_set")}
    coverage = None
    if row["population"] is not None:
        coverage = bundle.manifest.calibration_for(row["population"]).coverage
    return Prediction(**{**row, **lists}, set_coverage=coverage)


def stopped(name: str, bundle: Bundle, message: str) -> Prediction:
    """Return the prediction for a file whose reading was stopped."""
    return Prediction(
        name,
        "unreadable",
        (Reason.READER_STOPPED,),
        target=bundle.manifest.target.name,
        bundle=bundle.identity,
        message=message,
    )
