"""Evaluating a model: measures with intervals, plots, report, model card; and what is fitted after training.

Measures need numpy alone; calibrators, plots and reports need the extra ``evaluate``.
"""

from __future__ import annotations

from pneumoscope.evaluation.calibrate import (
    choose_operating_points,
    conformal_thresholds,
    fit_temperature,
    fit_vector,
)
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.scores import Mistake, ScoredSet, scored_set, worst_mistakes

__all__ = [
    "Mistake",
    "ScoredSet",
    "choose_operating_points",
    "conformal_thresholds",
    "evaluate_scores",
    "fit_temperature",
    "fit_vector",
    "scored_set",
    "worst_mistakes",
]
